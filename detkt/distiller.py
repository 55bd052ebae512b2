"""The library class: knowledge distillation in a training loop of your own."""

from __future__ import annotations

import io
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from detkt import methods
from detkt.base.errors import InputError
from detkt.base.processes import average_gradients, broadcast, mean_over_processes
from detkt.knowledge import Knowledge
from detkt.methods.balance import Balance, gradient_share
from detkt.methods.base import STUDENT, Heads, Stage, Update, require_offered
from detkt.methods.players import Players, schedule_factor
from detkt.tasks import build_task
from detkt.tasks.base import TeacherMaps, evaluating

# Of the trainer's usual schedule: what a progress is turned into.
MILESTONES, GAMMA = (0.7,), 0.1


class Distiller(nn.Module):
    """A student, a frozen teacher and a method. The networks stay unmodified.

    Args:
        student: a torchvision detector or a classifier, already trained for methods that read its head (KTAN, DLN). Of
            a whole network that ``torch.compile`` wraps, the network itself runs; compile its backbone instead.
        teacher: trained; moved to the student's device, frozen, and put in evaluation mode, until `close`.
        method: ``ktan``, ``kd``, a sum ``ktan+kd``, or a `detkt.methods.Method` of yours.
        settings: the method's settings, e.g. ``{"beta": 5.0}``; for a sum ``{"ktan": {...}, "kd": {...}}``.
        student_classes, teacher_classes: class names without background; methods that use scores compare those of the
            classes that both nets of a detector pair know.
        image_size: side, or height and width, of a classifier's pictures (default: 32 for CIFAR nets, else 224).
        teacher_cache: the teacher's maps of your pictures, to be read in place of its backbone's passes.
        accumulate: in how many calls a batch of yours comes, where you step your optimizer after so many only.
        class_map: a class of a detector's -> the teacher's that it is, None for none; the others are found by name.
        own_size: a detector's teacher sees the pictures at its own transform's size, not at the student's.

    Your loop trains ``trainable_parameters()`` on the returned losses; the method's other players (a discriminator,
    say) learn inside the call, with optimizers of their own:

        with detkt.Distiller(student, teacher, method="ktan") as distiller:
            optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.01, momentum=0.9)
            distiller.prepare(loader)
            for images, targets in loader:
                losses = distiller(images, targets)
                optimizer.zero_grad()
                sum(losses.values()).backward()
                optimizer.step()

    The distiller notices the steps of the optimizer that holds the student: they are the updates that a method's stages
    are counted in, and the rates of players that must not outpace the student follow its learning rate, as a share of
    its highest so far. So this loop learns what detkt's trainer learns. With several processes
    (``DistributedDataParallel(distiller)``, Accelerate) the players' gradients are averaged too.

    Attributes:
        metrics: what the last call, or ``prepare``, knows beside the returned losses, by name: the losses of the
            method's own players, and what it tells of itself (KTAN: how often the discriminator is right).
        compares_gradients: whether the student's updates have the metric ``gradient_share``
            (`detkt.methods.balance.gradient_share`).

    Raises:
        InputError: the method cannot apply to these two networks.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        method: str | type[methods.Method] = "ktan",
        settings: Mapping[str, Any] | None = None,
        student_classes: Iterable[str] = (),
        teacher_classes: Iterable[str] = (),
        image_size: int | tuple[int, int] | None = None,
        teacher_cache: TeacherMaps | None = None,
        accumulate: int = 1,
        class_map: Mapping[str, str | None] | None = None,
        own_size: bool = False,
    ) -> None:
        super().__init__()
        _check(method, settings)
        with _told_as_arguments(method):
            configs = _parse(method, settings)
        student, teacher = _network(student, "student"), None if teacher is None else _network(teacher, "teacher")
        if teacher is None and any(cls.needs_teacher for cls in configs):
            raise InputError(f"method '{'+'.join(cls.name for cls in configs)}' needs a teacher")
        if type(accumulate) is not int or accumulate < 1:
            raise InputError(f"accumulate is {accumulate!r}: it must be a whole number, 1 or more")
        our_names = _class_names(student_classes, "student_classes")
        their_names = _class_names(teacher_classes, "teacher_classes")
        weight = next(student.parameters())
        self.student = student
        # Not a submodule: the teacher is no part of this module's state, mode or parameters.
        self._teacher = [teacher]
        self.task = build_task(student, teacher, our_names, their_names, image_size, teacher_cache, class_map, own_size)
        self._closed = False
        try:
            if teacher is not None:
                teacher.to(weight.device)
            with _told_as_arguments(method):
                pairs = methods.required_layers(configs)
                specs = self.task.reveal([pair.student for pair in pairs], [pair.teacher for pair in pairs])
                self.method = methods.build(configs, *specs).to(weight.device, weight.dtype)
            require_offered(self.method, self.task.offered)
            with _told_as_arguments(method):
                shares = self.method.shares()
        except BaseException:
            self.close()
            raise
        self.compares_gradients = False
        self.balance = Balance(shares, mean_over_processes, accumulate).to(weight.device) if shares else None
        self._stages = list(self.method.stages())
        self.metrics: dict[str, Tensor] = {}
        self._accumulate, self._part = accumulate, 0
        self._players: Players | None = None
        self._players_state: dict[str, Any] | None = None
        self._prepared = not any(not stage.trains_student for stage in self._stages)
        self._student_updates, self._called = 0, False
        # The student's optimizer, which of its groups is followed, that one's highest rate, and its share of it.
        self._optimizer: weakref.ref[torch.optim.Optimizer] | None = None
        self._group, self._full_rate, self._factor = 0, 0.0, 1.0
        self._notice_optimizers()
        own = {id(p) for name, group in self.player_parameters().items() if name != STUDENT for p in group}
        # DistributedDataParallel waits for gradients of all parameters: those of the players never come by its way.
        self._ddp_params_and_buffers_to_ignore = [name for name, p in self.named_parameters() if id(p) in own]

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher, None for plain training."""
        return self._teacher[0]

    @property
    def stages(self) -> list[Stage]:
        """The method's stages in order."""
        return self._stages

    def close(self) -> None:
        """Leave both nets as they came, but for what was learnt: no hook, the teacher's modes and gradients back.

        A teacher of several distillers stays frozen until the last of them is closed.
        """
        self._closed = True
        self.task.close()

    def __del__(self) -> None:
        # Where it is dropped without a word; there is no task where it was refused.
        if "task" in self.__dict__:
            self.close()

    def __enter__(self) -> Distiller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def player_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by player; ``student`` holds the student's and the nets that learn with it."""
        groups = {STUDENT: [p for p in self.student.parameters() if p.requires_grad]}
        for name, player in self.method.players().items():
            own = [p for module in player.modules for p in module.parameters() if p.requires_grad]
            groups[name] = groups.get(name, []) + own
        return groups

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What your optimizer trains: the student and the method's nets that learn with it."""
        return self.player_parameters()[STUDENT]

    def updates(self, stage: Stage, images: Any, targets: Any) -> Iterator[Update]:
        """The updates of one batch in *stage*, in order; apply each before asking for the next."""
        if self._closed:
            raise InputError("this distiller is closed; make another")
        # A method is given what its stage needs, and reads nothing else.
        student, teacher, heads = cast(tuple[Knowledge, Knowledge, Heads], self.task.run(images, targets, stage.needs))
        done = False
        for update in self.method.step(stage, student, teacher, heads):
            if update.player == STUDENT:
                if self.balance is not None:
                    update = self.balance(update, student)
                if self.compares_gradients:
                    update = gradient_share(update, student)
                update, done = update.with_task(student.losses), True
            yield update
        if stage.trains_student and not done:
            yield Update(STUDENT, dict(student.losses))

    # A loop of one's own

    def prepare(self, batches: Iterable[tuple[Any, Any]]) -> dict[str, float]:
        """Run the stages that precede the student's (KTAN's teacher-to-student layer, ...), cycling over *batches*.

        Where they are done already, in this process or in the one whose state was loaded, nothing is trained.

        Returns:
            The losses and metrics of the last step; empty where nothing was trained.

        Raises:
            InputError: the student is in evaluation mode, in which it could not go on; too few batches.
        """
        if self._prepared:
            return {}
        if not self.student.training:
            raise InputError("the student is in evaluation mode: call train() on it, or on the distiller, first")
        for stage in self._stages:
            if stage.trains_student:
                break
            for step, batch in enumerate(_cycle(batches, stage.steps or 0)):
                if not isinstance(batch, list | tuple) or len(batch) != 2:
                    raise InputError(f"prepare() takes batches (images, targets), not {type(batch).__name__}")
                self.metrics = {}
                for update in self.updates(stage.turn(step), *batch):
                    self._learn(update)
        self._prepared = True
        return {name: float(value) for name, value in self.metrics.items()}

    def forward(self, images: Any, targets: Any, progress: float | None = None) -> dict[str, Tensor]:
        """Task and method losses by name, to be summed and minimised over ``trainable_parameters()``.

        Under ``torch.no_grad()`` nobody learns and nothing is counted: a validation loss, of the student in whichever
        mode it is.

        Args:
            images, targets: as the student takes them in training.
            progress: the share of the training that is done, in [0, 1], for a loop whose optimizer's rate says nothing
                (a schedule-free optimizer): the players' rates fall to a tenth at 0.7, as the trainer's do.

        Raises:
            InputError: ``prepare`` has not been called, the student is in evaluation mode, or the batch is malformed.
        """
        if not self._prepared:
            raise InputError(f"method '{self.method.name}' has stages before the student's: call prepare(loader) first")
        if not torch.is_grad_enabled():
            return self._validation_losses(images, targets)
        self._own_players().set_rates(self._rate_factor(progress))
        self._count_call()
        losses: dict[str, Tensor] = {}
        self.metrics = {}
        last = self._part == self._accumulate - 1
        for update in self.updates(self._current_stage(), images, targets):
            if update.player == STUDENT:
                losses.update(update.losses)
                self.metrics |= {name: value.detach() for name, value in update.metrics.items()}
            else:
                self._learn(update, last)
        self._part = (self._part + 1) % self._accumulate
        self._called = self._called or last
        return losses

    def _validation_losses(self, images: Any, targets: Any) -> dict[str, Tensor]:
        """The losses of the current stage; nobody learns, and nothing is counted."""
        with evaluating(self.method):
            updates = [update for update in self.updates(self._current_stage(), images, targets)]
        return next(update.losses for update in updates if update.player == STUDENT)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Take *optimizer* for the student's before its first step, by which it would be noticed anyway.

        Needed only where a method's players are to follow a warm-up from the very first batch.
        """
        index = self._group_of_student(optimizer)
        if index is None:
            raise InputError("this optimizer does not train the student: give it distiller.trainable_parameters()")
        # Where a state was loaded, its rates are those of an optimizer that this one goes on for.
        if self._optimizer is not None or not self._full_rate:
            group = optimizer.param_groups[index]
            self._full_rate = float(group.get("max_lr", group.get("initial_lr", group["lr"])))
        self._optimizer, self._group = weakref.ref(optimizer), index

    def _current_stage(self) -> Stage:
        """The student's stage of the next update, in its turn."""
        own = [stage for stage in self._stages if stage.trains_student]
        stage, left = own[0], self._student_updates
        for stage in own:
            if stage.steps is None or left < stage.steps:
                break
            left -= stage.steps
        return stage.turn(left)

    def _notice_optimizers(self) -> None:
        """Count the steps of whichever optimizer holds the student, from now until the end of this object."""
        own = weakref.ref(self)

        def stepped(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if (distiller := own()) is not None:
                distiller._stepped(optimizer)

        handle = register_optimizer_step_post_hook(stepped)
        weakref.finalize(self, handle.remove)

    def _stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """The first step after a call is an update: of several optimizers, the first one's."""
        if not self._called:
            return
        if optimizer is not self._followed():
            if self._group_of_student(optimizer) is None:
                return
            self.follow(optimizer)
        self._student_updates, self._called = self._student_updates + 1, False

    def _followed(self) -> torch.optim.Optimizer | None:
        return self._optimizer() if self._optimizer is not None else None

    def _count_call(self) -> None:
        """Count the last call as an update where no optimizer has been seen and no gradient waits for more parts."""
        if self._optimizer is None and self._called and all(p.grad is None for p in self.student.parameters()):
            self._student_updates, self._called = self._student_updates + 1, False

    def _group_of_student(self, optimizer: torch.optim.Optimizer) -> int | None:
        """The first of its parameter groups that holds any of the student's."""
        own = {id(p) for p in self.student.parameters()}
        groups = enumerate(optimizer.param_groups)
        return next((index for index, group in groups if any(id(p) in own for p in group["params"])), None)

    def _rate_factor(self, progress: float | None) -> float:
        """What the rates of players that follow the student are to be multiplied by: 1 at most."""
        if progress is not None:
            if isinstance(progress, str) or not 0 <= progress <= 1:
                raise InputError(f"progress is {progress!r}: it must be the share of the training that is done, 0 to 1")
            return schedule_factor(progress, 1.0, MILESTONES, GAMMA, 0)
        if (optimizer := self._followed()) is not None:
            rate = float(optimizer.param_groups[self._group]["lr"])
            # A warm-up by hand begins below the rate that it leads to.
            self._full_rate = max(self._full_rate, rate)
            self._factor = rate / self._full_rate if self._full_rate else 1.0
        return self._factor

    def _own_players(self) -> Players:
        """The method's players, made when they are first needed: on the device and in the precision of then."""
        if self._players is None:
            parameters, players = self.player_parameters(), self.method.players()
            device = next(self.student.parameters()).device.type
            half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
            self._players = Players(
                players, parameters, accumulate=self._accumulate, half=half, average=average_gradients
            )
            broadcast(p for name, group in parameters.items() if name != STUDENT for p in group)
            if self._players_state is not None:
                self._players.load_state_dict(self._players_state)
                self._players_state = None
        return self._players

    def _learn(self, update: Update, last: bool = True) -> None:
        """Let the player of *update*, one of the method's own, take its step."""
        with torch.autocast(next(self.student.parameters()).device.type, enabled=False):
            self._own_players().step(update, last)
        self.metrics |= {name: value.detach() for name, value in (update.losses | update.metrics).items()}

    # State

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: they follow no optimizer of this one's."""
        return {**self.__dict__, "_optimizer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._notice_optimizers()

    def _apply(self, fn, recurse: bool = True) -> Distiller:
        """``to``, ``cuda`` and the like take the teacher along."""
        if self.teacher is not None:
            self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def get_extra_state(self) -> Tensor:
        """Progress and the players' optimizers: with them ``state_dict()`` is all that a loop of yours has to keep.

        As bytes in a tensor, since formats such as safetensors hold nothing else.
        """
        self._count_call()
        players = self._players.state_dict() if self._players is not None else self._players_state
        rates = [self._full_rate, self._rate_factor(None)]
        state = {"prepared": self._prepared, "updates": self._student_updates, "players": players, "rates": rates}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """The reverse of `get_extra_state`."""
        kept = torch.load(io.BytesIO(state.cpu().numpy().tobytes()), map_location="cpu", weights_only=True)
        self._prepared, self._student_updates, self._players_state = kept["prepared"], kept["updates"], kept["players"]
        self._full_rate, self._factor = kept.get("rates", (self._full_rate, self._factor))
        if self._players is not None and self._players_state is not None:
            self._players.load_state_dict(self._players_state)
            self._players_state = None


def _check(method: Any, settings: Any) -> None:
    """InputError for arguments of other types than a method's and its settings'."""
    own = isinstance(method, type) and issubclass(method, methods.Method) and bool(method.name)
    if not isinstance(method, str) and not own:
        raise InputError(f"method must be a name such as 'ktan', or a subclass of detkt.Method, not {method!r}")
    if settings is not None and not isinstance(settings, Mapping):
        raise InputError(f"settings must be a dict of the method's settings, not {settings!r}")


def _parse(
    method: str | type[methods.Method], settings: Mapping[str, Any] | None
) -> dict[type[methods.Method], methods.MethodConfig]:
    """The configs of what the caller asked for."""
    if isinstance(method, type) or "+" not in method:
        method = methods.method_class(method)
        settings = {method.name: settings}
    return methods.parse(method, settings)


def _network(net: Any, role: str) -> nn.Module:
    """*net* without what ``torch.compile`` or data parallelism wraps around it."""
    if not isinstance(net, nn.Module):
        raise InputError(f"the {role} must be a network (nn.Module), not {type(net).__name__}")
    net = net._modules.get("_orig_mod") or net
    if isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel):
        if role == "student":
            raise InputError(
                f"the student is wrapped in {type(net).__name__}: give the network itself, and wrap the distiller in "
                "DistributedDataParallel"
            )
        net = net.module
    if next(net.parameters(), None) is None:
        raise InputError(f"the {role} is a {type(net).__name__} without parameters; give a network that has some")
    return net


def _class_names(given: Any, argument: str) -> tuple[str, ...]:
    """Class names as a tuple; none where None is given."""
    names = () if given is None else given
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InputError(f"{argument} must be a list of class names, not {given!r}")
    return tuple(names)


@contextmanager
def _told_as_arguments(method: str | type[methods.Method]) -> Iterator[None]:
    """Errors inside the block name a setting as the call has it, ``settings['beta']``; their cause, as its key."""
    several = isinstance(method, str) and "+" in method

    def argument(found: re.Match[str]) -> str:
        name, key = found.groups()
        if name is None:
            return "image_size"
        return "settings" + (f"['{name}']" if several else "") + (f"['{key}']" if key else "")

    try:
        yield
    except InputError as error:
        # Of an unknown method there are no settings to be told of: that error comes again.
        known = "|".join(re.escape(cls.name) for cls in methods.classes(method))
        key = rf"\bmethods\.({known})(?![\w-])(?:\.(\w+))?|\bdata\.image_size\b"
        raise InputError(re.sub(key, argument, error.args[0])) from error


@contextmanager
def settings_told_as_keys() -> Iterator[None]:
    """For a distiller that a config describes: errors name the config's keys, not the call's arguments."""
    try:
        yield
    except InputError as error:
        raise error.__cause__ if isinstance(error.__cause__, InputError) else error from None


def _cycle(batches: Iterable, steps: int) -> Iterator:
    """*steps* batches, starting over at the end."""
    if not isinstance(batches, Iterable):
        raise InputError(f"prepare() takes a DataLoader or a list of batches, not {type(batches).__name__}")
    done = 0
    while done < steps:
        before = done
        for batch in batches:
            yield batch
            done += 1
            if done == steps:
                return  # before another batch is taken, that of the caller's next step
        if done == before:
            raise InputError(
                f"prepare() got {done} batches but needs {steps}; give it a DataLoader or a list, to go through again"
            )
