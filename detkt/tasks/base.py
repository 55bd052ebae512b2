"""What the engine needs of a task: probe both nets, run a batch, read heads, and let both nets go as they came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from detkt.base.errors import InputError, suggestion
from detkt.knowledge import FeatureSpec, Knowledge, Spec
from detkt.methods.base import Heads, Needs


class TeacherMaps(Protocol):
    """The teacher's maps of training pictures, kept from an earlier pass over them."""

    def read(self, pictures: Sequence[int], flipped: Sequence[bool], device: torch.device) -> dict[str, Tensor]:
        """Maps (N, C, H, W) by name of a batch: its pictures' indices in the data set, and which are mirrored."""
        ...


class Task(Protocol):
    """Obtains knowledge from a student and a frozen teacher, which both stay unmodified.

    With a teacher cache, ``run`` takes the teacher's maps from it, and the teacher's backbone does not run; a head of
    the teacher's that a method asks for still does, on these maps.
    """

    student: nn.Module
    teacher: nn.Module | None
    offered: Needs  # what `run` can find out about these nets

    def reveal(self, student_layers: Iterable[str], teacher_layers: Iterable[str]) -> tuple[Spec, Spec | None]:
        """Reveal the named inner layers beside the outputs from now on, and probe both nets' maps."""
        ...

    def compile(self) -> None:
        """Let ``torch.compile`` translate both backbones, the revealed layers with them, when they next run."""
        ...

    def run(self, inputs: Any, targets: Any, needs: Needs) -> tuple[Knowledge | None, Knowledge | None, Heads]:
        """The passes in *needs* on one batch: student's and teacher's knowledge, and the heads."""
        ...

    def pictures(self, targets: Any) -> list[int]:
        """Indices of a batch's pictures in the data set, to name those of a loss that fails."""
        ...

    def teacher_maps(self, images: Any) -> dict[str, Tensor]:
        """The teacher's maps by name of a batch that ``run`` takes; no random number is drawn."""
        ...

    def input_size(self, width: int, height: int) -> tuple[int, ...]:
        """Height and width of what the backbones see of a batch of pictures of this size, and what else it goes by."""
        ...

    def close(self) -> None:
        """Leave both nets as they came: no hook, the teacher's parameters and modes as they were."""
        ...


class LayerRecorder:
    """Records the outputs of named inner modules of a network during its passes, through forward hooks.

    The hooks are there only while a pass is recorded, so that the network can be copied, pickled and scripted between
    two passes; a compiled network needs them to stay (:meth:`stay`). Nothing is kept alive after the pass. A layer that
    the next one changes in place (a convolution before VGG's ReLUs) is seen as that one left it.

    Raises:
        InputError: the network has no such layer; *role* is whose it is.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], role: str) -> None:
        # torch.compile(module) is the module under another name.
        modules: dict[str, nn.Module] = {}
        for name, module in network.named_modules():
            modules.setdefault(".".join(part for part in name.split(".") if part != "_orig_mod"), module)
        del modules[""]
        self._modules: list[tuple[str, nn.Module]] = []
        self._recorded: dict[str, Tensor] | None = None
        self._handles: list[RemovableHandle] = []
        self._stays = False
        for name in names:
            if name not in modules:
                top = [key for key in modules if key.count(".") == 0]
                raise InputError(
                    f"the {role}'s backbone has no layer '{name}'{suggestion(name, modules)}; "
                    f"its stages are: {', '.join(top)}"
                )
            self._modules.append((name, modules[name]))

    def _hook(self, name: str) -> Any:
        def record(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if self._recorded is not None:
                self._recorded[name] = output

        return record

    def stay(self) -> None:
        """Keep the hooks until :meth:`close`."""
        if not self._stays:
            self._stays = True
            self._handles = [module.register_forward_hook(self._hook(name)) for name, module in self._modules]

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._stays = [], False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Have the hooks in place inside the block."""
        if self._stays:
            yield
            return
        with ExitStack() as stack:
            for name, module in self._modules:
                stack.callback(module.register_forward_hook(self._hook(name)).remove)
            yield

    @contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        """Fill the yielded dict with the layers' outputs of the passes inside the block."""
        self._recorded = {}
        try:
            yield self._recorded
        finally:
            self._recorded = None


class Revealing:
    """A net whose backbone runs in ``features`` and reveals inner layers; ``features`` can be compiled.

    Args:
        backbone: whose layers are named.
        role: ``student`` or ``teacher``, for messages.
    """

    def __init__(self, backbone: nn.Module, role: str) -> None:
        self.backbone, self.role = backbone, role
        self.recorder = LayerRecorder(backbone, [], role)

    def _record(self, names: Iterable[str]) -> None:
        """Record these inner layers from now on, and no others."""
        self.recorder.close()
        self.recorder = LayerRecorder(self.backbone, list(dict.fromkeys(names)), self.role)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Backbone alone: its outputs by name and the revealed inner layers."""
        raise NotImplementedError

    def compile(self) -> None:
        """Run the backbone through ``torch.compile``."""
        self.recorder.stay()
        self.features = torch.compile(self.features)  # type: ignore[method-assign]

    def __getstate__(self) -> dict[str, Any]:
        """Hooks lead from a compiled network to here: with a compiled function it could not be copied or pickled."""
        return {name: value for name, value in vars(self).items() if name != "features"}


@dataclass
class _AsItCame:
    """How a network was before it was frozen, by names of its parts, and how many hold it frozen."""

    gradients: dict[str, bool]
    modes: dict[str, bool]
    holders: int = 0


_FROZEN: WeakKeyDictionary[nn.Module, _AsItCame] = WeakKeyDictionary()


class FrozenTeacher:
    """A teacher in evaluation mode and without gradients, until the last of those that hold it lets it go."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._hold(
            {name: parameter.requires_grad for name, parameter in model.named_parameters()},
            {name: module.training for name, module in model.named_modules()},
        )
        model.eval().requires_grad_(False)

    def _hold(self, gradients: dict[str, bool], modes: dict[str, bool]) -> None:
        self._came: _AsItCame | None = _FROZEN.setdefault(self.model, _AsItCame(gradients, modes))
        self._came.holders += 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy holds the copied network."""
        self.model, self._came = state["model"], None
        if (came := state["_came"]) is not None:
            self._hold(came.gradients, came.modes)

    def keep(self) -> None:
        """See that it is still in evaluation mode: a module that holds it may have been put into training."""
        if any(module.training for module in self.model.modules()):
            self.model.eval()

    def close(self) -> None:
        """Give it its own modes and ``requires_grad`` back, where nobody else needs it frozen."""
        came, self._came = self._came, None
        if came is None:
            return
        came.holders -= 1
        if came.holders:
            return
        _FROZEN.pop(self.model, None)  # gone already where a cycle is collected
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(came.gradients.get(name, True))
        for name, module in self.model.named_modules():
            module.training = came.modes.get(name, module.training)


def require_two_nets(student: nn.Module, teacher: nn.Module) -> None:
    """Raise InputError where both roles are played by one network, or share a part of one."""
    if teacher is student:
        raise InputError("student and teacher are the same object; give a copy (copy.deepcopy) as the teacher")
    ours = {id(parameter): name for name, parameter in student.named_parameters()}
    for name, parameter in teacher.named_parameters():
        if id(parameter) in ours:
            raise InputError(
                f"student and teacher share a parameter ('{ours[id(parameter)]}' and '{name}'): what freezes the "
                "teacher would freeze the student; give the teacher a copy (copy.deepcopy)"
            )


def require_training(student: nn.Module) -> None:
    """Raise InputError where the student is to learn in evaluation mode."""
    if not student.training and torch.is_grad_enabled():
        raise InputError(
            "the student is in evaluation mode: call train() on it, or on the distiller, before training; a validation "
            "loss in this mode needs torch.no_grad()"
        )


def require_one_precision(student: nn.Module, teacher: nn.Module) -> None:
    """Raise InputError where two nets that see one batch compute in different precisions."""
    ours, theirs = (next((p.dtype for p in net.parameters()), None) for net in (student, teacher))
    if theirs is not None and ours != theirs:
        raise InputError(
            f"the student is in {ours} and the teacher in {theirs}: convert one, as with teacher.to({ours})"
        )


def map_specs(maps: dict[str, Tensor], role: str) -> dict[str, FeatureSpec]:
    """Shapes of probed maps by name; InputError for a layer that gives no map."""
    for name, feature in maps.items():
        if not isinstance(feature, Tensor) or feature.dim() != 4:
            raise InputError(f"layer '{name}' of the {role}'s backbone gives no map (N, C, H, W); name another")
    return {name: FeatureSpec(m.shape[1], m.shape[2], m.shape[3], bool((m >= 0).all())) for name, m in maps.items()}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """*module* in evaluation mode, each part of it as it was afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def replaced(module: nn.Module, **parts: nn.Module | None) -> Iterator[None]:
    """*module* with other *parts* under the names of its own, which are back afterwards."""
    own = {name: module._modules[name] for name in parts}
    module._modules.update(parts)
    try:
        yield
    finally:
        module._modules.update(own)


class Calling(nn.Module):
    """A part that calls *function* in place of the module *instead_of*, and else looks like that one.

    *own* are attributes of its own.
    """

    def __init__(self, function: Any, instead_of: nn.Module, **own: Any) -> None:
        super().__init__()
        self.training = instead_of.training
        # Not as submodules: what counts a net's parts must not meet one twice.
        self.__dict__.update(own, _function=function, _instead_of=instead_of)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_instead_of"], name)

    def forward(self, *arguments: Any) -> Any:
        """What the function gives."""
        return self._function(*arguments)
