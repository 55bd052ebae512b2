"""What the trainer needs of a task: probe both nets, run a batch, and read heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from detkt.base.errors import InputError, suggestion
from detkt.knowledge import FeatureSpec, Knowledge, Spec
from detkt.methods.base import Heads, Needs


class TeacherMaps(Protocol):
    """The teacher's maps of training pictures, kept from an earlier pass over them."""

    def read(self, pictures: Sequence[int], flipped: Sequence[bool], device: torch.device) -> dict[str, Tensor]:
        """Maps (N, C, H, W) by name of a batch: its pictures' indices in the data set, and which are mirrored."""
        ...


class Task(Protocol):
    """Obtains knowledge from a student and a frozen teacher.

    Where ``teacher_cache`` is set, ``run`` takes the teacher's maps from it, and the teacher's backbone does not run; a
    head of the teacher's that a method asks for still does, on these maps.
    """

    student: nn.Module
    teacher: nn.Module | None
    teacher_cache: TeacherMaps | None
    offered: Needs  # what `run` can find out about these nets

    def watch(self, student_layers: Iterable[str], teacher_layers: Iterable[str]) -> tuple[Spec, Spec | None]:
        """Reveal the named inner layers from now on, and probe both nets' maps."""
        ...

    def compile(self) -> None:
        """Let ``torch.compile`` translate both backbones, the watched layers with them, when they next run."""
        ...

    def run(self, inputs: Any, targets: Any, needs: Needs) -> tuple[Knowledge | None, Knowledge | None, Heads]:
        """The passes in *needs* (see Stage) on one batch: student's and teacher's knowledge, and the heads."""
        ...

    def pictures(self, targets: Any) -> list[int]:
        """Indices of a batch's pictures in the data set, to name those of a loss that fails."""
        ...

    def teacher_maps(self, images: Any) -> dict[str, Tensor]:
        """The teacher's maps by name of a batch that ``run`` takes; no random number is drawn."""
        ...

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of what the backbones see of a batch of pictures of this size."""
        ...


class LayerRecorder:
    """Records the outputs of named inner modules while it is asked to, through forward hooks.

    The modules stay unmodified, and nothing is kept alive after the pass. A layer that the next one changes in place
    (a convolution before VGG's ReLUs) is seen as that one left it.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], role: str) -> None:
        modules = dict(network.named_modules())
        self._recorded: dict[str, Tensor] | None = None
        for name in names:
            if name not in modules or not name:
                top = [key for key in modules if key and key.count(".") == 0]
                raise InputError(
                    f"the {role}'s backbone has no layer '{name}'{suggestion(name, modules)}; "
                    f"its stages are: {', '.join(top)}"
                )
            modules[name].register_forward_hook(partial(self._record, name))

    def _record(self, name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if self._recorded is not None:
            self._recorded[name] = output

    @contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        """Fill the yielded dict with the layers' outputs of the passes inside the block."""
        self._recorded = {}
        try:
            yield self._recorded
        finally:
            self._recorded = None


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
