"""A student, a frozen teacher and a method: what a training loop drives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detkt import methods
from detkt.base.errors import InputError
from detkt.engine.optimizers import build_player_optimizer
from detkt.methods.base import STUDENT, Stage, Update, require_offered
from detkt.tasks import build_task


class Distiller(nn.Module):
    """Distils *teacher* into *student* with a method, in your own loop or detkt's trainer.

    Args:
        student, teacher: any torchvision R-CNN detectors, or two :class:`detkt.models.Classifier`s; the teacher is
            frozen here, None with ``method="none"``. Their backbones' weights are put in channels-last memory order
            (:func:`detkt.models.layout.channels_last`, which says how to undo it).
        method: a name of ``detkt.methods.available()``, a sum ``"a+b"``, or a :class:`~detkt.methods.Method` of yours.
        settings: the method's settings, e.g. ``{"beta": 5.0}``; for a sum ``{"ktan": {...}, "kd": {...}}``.
        student_classes, teacher_classes: class names without background; compared by methods that use scores.
        image_size: side, or height and width, of a classifier's pictures (default: 32 for CIFAR nets, else 224).

    Your loop trains ``trainable_parameters()`` on the returned losses; the method's other players (a discriminator,
    say) learn inside the call, with optimizers of their own at constant rates (detkt's trainer lets a discriminator's
    rate follow the student's schedule)::

        distiller = detkt.Distiller(student, teacher, method="ktan")
        distiller.prepare(loader)
        for images, targets in loader:
            losses = distiller(images, targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()

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
    ) -> None:
        super().__init__()
        if isinstance(method, type) or "+" not in method:
            method = methods.method_class(method)
            settings = {method.name: settings}
        configs = methods.parse(method, settings)
        if teacher is None and any(cls.needs_teacher for cls in configs):
            raise InputError(f"method '{'+'.join(cls.name for cls in configs)}' needs a teacher")
        self.task = build_task(student, teacher, student_classes, teacher_classes, image_size)
        device = next(student.parameters()).device
        self.student = student
        # Not a submodule: the teacher is no part of this module's state, mode or parameters.
        self._teacher = [teacher]
        if teacher is not None:
            teacher.to(device).eval().requires_grad_(False)
        pairs = methods.required_layers(configs)
        specs = self.task.watch([pair.student for pair in pairs], [pair.teacher for pair in pairs])
        self.method = methods.build(configs, *specs).to(device)
        require_offered(self.method, self.task.offered)
        self._stages = list(self.method.stages())
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._student_updates = 0
        self._prepared = False

    @property
    def teacher(self) -> nn.Module | None:
        return self._teacher[0]

    @property
    def stages(self) -> list[Stage]:
        return self._stages

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
        student, teacher, heads = self.task.run(images, targets, stage.needs)
        done = False
        for update in self.method.step(stage, student, teacher, heads):
            if update.player == STUDENT:
                update, done = update.with_task(student.losses), True
            yield update
        if stage.trains_student and not done:
            yield Update(STUDENT, dict(student.losses))

    def prepare(self, batches: Iterable[tuple[Any, Any]]) -> None:
        """Run the stages that precede the student's (KTAN's teacher-to-student layer, ...), cycling over *batches*."""
        for stage in self._stages:
            if stage.trains_student:
                break
            for step, (images, targets) in enumerate(_cycle(batches, stage.steps)):
                for update in self.updates(stage.turn(step), images, targets):
                    self._learn(update)
        self._prepared = True

    def forward(self, images: Any, targets: Any) -> dict[str, Tensor]:
        """Task and method losses by name, to be summed and minimised over ``trainable_parameters()``."""
        own = [stage for stage in self._stages if stage.trains_student]
        if len(own) < len(self._stages) and not self._prepared:
            raise InputError(f"method '{self.method.name}' has stages before the student's: call prepare(loader) first")
        stage, left = own[0], self._student_updates
        for stage in own:
            if stage.steps is None or left < stage.steps:
                break
            left -= stage.steps
        losses = {}
        for update in self.updates(stage.turn(left), images, targets):
            if update.player == STUDENT:
                losses.update(update.losses)
            else:
                self._learn(update)
        self._student_updates += 1
        return losses

    def _apply(self, fn, recurse: bool = True) -> Distiller:
        """``to``, ``cuda`` and the like take the teacher along."""
        if self.teacher is not None:
            self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def get_extra_state(self) -> dict[str, Any]:
        """Progress and the players' optimizers: with them ``state_dict()`` is all that a loop of yours has to keep."""
        optimizers = {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}
        return {"prepared": self._prepared, "student_updates": self._student_updates, "optimizers": optimizers}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._prepared, self._student_updates = state["prepared"], state["student_updates"]
        for name, optimizer in state["optimizers"].items():
            self._optimizer(name).load_state_dict(optimizer)

    def _optimizer(self, name: str) -> torch.optim.Optimizer:
        if name not in self._optimizers:
            player, parameters = self.method.players()[name], self.player_parameters()[name]
            self._optimizers[name] = build_player_optimizer(player, parameters)
        return self._optimizers[name]

    def _learn(self, update: Update) -> None:
        """Let the player of *update*, one of the method's own, take its step."""
        parameters, optimizer = self.player_parameters()[update.player], self._optimizer(update.player)
        optimizer.zero_grad()
        update.total.backward(inputs=parameters)
        clip_norm = self.method.players()[update.player].clip_norm
        if clip_norm:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        # Inside your autocast the player would go on with half-precision copies of its old weights.
        torch.clear_autocast_cache()


def _cycle(batches: Iterable, steps: int) -> Iterator:
    """*steps* batches, starting over at the end."""
    done = 0
    while done < steps:
        before = done
        for batch in batches:
            if done == steps:
                return
            yield batch
            done += 1
        if done == before:
            raise InputError(
                f"prepare() got {done} batches but needs {steps}; give it a DataLoader or a list, to go through again"
            )
