"""What methods have in common that compare each of the student's maps with the teacher's, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from detkt.knowledge import FeatureSpec, Knowledge, Spec
from detkt.methods.adapters import to_common_size
from detkt.methods.base import STUDENT, LayerPair, Method, MethodConfig, Player, view_title

SUBSAMPLED = "output.pool"
"""The level that torchvision adds to a pyramid: every second cell of the last one."""

ONE_STAGE, TWO_STAGE = "one_stage", "two_stage"
"""Detectors, by what published weights of sums were chosen for; classifiers take those of two stages."""

REFERENCE_CHANNELS = 256
"""Of the pyramids that published weights of sums were chosen for."""


class Matched(NamedTuple):
    """A level's two maps in one shape (N, C, H, W), and where they show picture: (N, 1, H, W) of 0 and 1, None: all."""

    student: Tensor
    teacher: Tensor
    mask: Tensor | None


class PairedMaps(Method):
    """Brings the student's map of every level to the teacher's channels, and both to the smaller size.

    The adapters learn with the student. One stage: distill. ``published``: by kind of detector, the settings that are
    taken where the config leaves them at null.
    """

    published: ClassVar[dict[str, dict[str, float]]] = {}

    def __init__(self, config: MethodConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        self.adapters = nn.ModuleList(self.adapter(*self.pair_specs(pair)) for pair in self.pairs())

    def settled(self) -> dict[str, float]:
        """The settings that `published` has, as they are set, or else as published for the student's kind."""
        found = self.published[kind_of_weights(self.student_spec)]
        given = {key: getattr(self.config, key) for key in found}
        return {key: found[key] if value is None else value for key, value in given.items()}

    def adapter(self, source: FeatureSpec, target: FeatureSpec) -> nn.Module:
        """A 1x1 convolution to the target's channels; nothing where there are as many."""
        if source.channels == target.channels:
            return nn.Identity()
        return nn.Conv2d(source.channels, target.channels, 1)

    def adapted(self, adapter: nn.Module, feature: Tensor, mask: Tensor | None) -> Tensor:
        """*feature* in the teacher's channels; *mask* is 1 where it shows picture."""
        return adapter(feature)

    def pairs(self) -> list[LayerPair]:
        """The configured pairs, or the backbone outputs that both nets have, without a subsampled last level."""
        pairs = super().pairs()
        return pairs if self.config.layers else [pair for pair in pairs if pair.student != SUBSAMPLED]

    def players(self) -> dict[str, Player]:
        return {STUDENT: Player(tuple(self.children()))}

    def matched(self, student: Knowledge, teacher: Knowledge) -> list[Matched]:
        """The maps of every level, comparable and in full precision."""
        levels = []
        for adapter, pair in zip(self.adapters, self.pairs(), strict=True):
            ours, theirs = student.features[pair.student], teacher.features[pair.teacher]
            mask = student.mask(ours)
            ours = self.adapted(adapter, ours, mask)
            levels.append(Matched(*to_common_size(ours, theirs, mask, teacher.mask(theirs))))
        return levels

    def views(self, student: Knowledge, teacher: Knowledge) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        for adapter, pair in zip(self.adapters, self.pairs(), strict=True):
            ours, theirs = student.features[pair.student], teacher.features[pair.teacher]
            views[view_title("teacher", pair.teacher)] = theirs
            if not isinstance(adapter, nn.Identity):
                views[view_title("student, adapted", pair.student)] = self.adapted(adapter, ours, student.mask(ours))
            views[view_title("student", pair.student)] = ours
        return views


def kind_of_weights(student: Spec) -> str:
    """Whose published weights a student takes: :data:`ONE_STAGE` if its head scores anchors, else :data:`TWO_STAGE`."""
    return ONE_STAGE if student.scores is not None and student.scores.of == "anchors" else TWO_STAGE


def channel_factor(level: Matched, cells: float) -> float:
    """What a sum over the channels of a level is multiplied with to be as large as one of 256; 1 where *cells* is 0."""
    return REFERENCE_CHANNELS / level.student.shape[1] if cells else 1.0


def cell_factor(levels: Sequence[Matched], cells: float) -> Tensor | float:
    """What sums over the cells of all *levels* are multiplied with to be as large as those of *cells* cells.

    A factor a picture (N,), by the cells that show it; 1 where *cells* is 0 or less.
    """
    if not cells:
        return 1.0
    shown = [m.student[0, 0].numel() if m.mask is None else m.mask.sum(dim=(1, 2, 3)) for m in levels]
    return cells / sum(shown)
