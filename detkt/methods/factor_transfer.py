"""FT: factor transfer, the teacher paraphrases its last map into factors and the student learns to translate into them.

Kim, Park, Kwak: "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018
(arXiv:1802.04977).

1. Without labels, a paraphraser P (convolutions, then transposed convolutions back) learns to reconstruct the teacher's
   map t: ||t - P(t)||^2 (Eq. 1). Its middle output, of k times the channels of t, is the teacher factor F_t.
2. A translator, the same convolutions on the student's map and trained with it, gives the student factor F_s:

    L_task + beta * || F_t / ||F_t||_2 - F_s / ||F_s||_2 ||_p        (Eq. 2 to 4), p = 1 or 2

The paper is silent, or we do otherwise, in this:

* Scale of Eq. 4. The official code takes the mean over the n elements of a factor in place of the norm. The elements of
  a vector of length 1 are about 1 / sqrt(n), so that the same beta is 24 times weaker on a 38 x 63 map of 1024 channels
  than on the paper's CIFAR map. We bring the factors to a root mean square of 1 instead, where a difference does not
  depend on n, and keep the official value at ``reference_elements`` = 2048, the factor of a CIFAR ResNet's last group
  (8 x 8, 64 channels, k = 0.5). So beta = 500, the paper's for CIFAR, holds for maps of any size; the paper's
  10^3 for ImageNet (n = 12544, ResNet-34) is 404 in this scale. ``reference_elements=0`` is the plain mean, which the
  presets ``paper`` (ImageNet and VOC, beta 10^3), ``paper-cifar`` and ``paper-cifar10`` take.
* The paraphraser's loss is the mean over the elements, and t is divided by its root mean square (``normalize``), and
  gradients are clipped to a norm of 1: with squares the paper's learning rate of 0.1 explodes, as its appendix warns
  (the official code resorts to absolute differences). The factors' scale is normalised away in the loss. The presets
  ``paper*`` leave ``normalize`` out and keep the clipping.
* Steps: the paper has at most 30 epochs on CIFAR, 1 on ImageNet; ``paraphraser_steps`` batches here. It says nothing of
  VOC, where the configuration reads all of trainval once, too.
* The rate k: the presets have 0.5. The paper tries 0.5, 0.75, 1, 2 and 4 and quotes the best of each pair, which is 2
  for WRN-40-1 / ResNet-20 on CIFAR-10 and 4 for ResNet-110 / ResNet-20 on CIFAR-100; so have their configurations.
* Factors of unequal size are both averaged (adaptive average pool) to the smaller.
* Several layers (or the levels of a feature pyramid) count by their mean.
* Padding is zero before the first convolution and cut out of all norms and means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkt.knowledge import FeatureSpec, Knowledge, Spec
from detkt.methods.adapters import to_common_size
from detkt.methods.base import (
    STUDENT,
    Heads,
    LayerPair,
    Method,
    MethodConfig,
    Needs,
    Player,
    Stage,
    Update,
    view_title,
)
from detkt.methods.paraphraser import Encoder, Paraphraser, paraphraser_widths
from detkt.methods.reductions import full_precision, mean_square, root_mean_square

CIFAR_ELEMENTS = 2048  # of the factor the paper's beta was chosen on: 8 x 8 cells, 0.5 * 64 channels
# The official mean over elements; 30 epochs of 390 batches.
PAPER_CIFAR = {"reference_elements": 0, "normalize": False, "paraphraser_steps": 11700}


def factor_loss(
    student_factor: Tensor,
    teacher_factor: Tensor,
    p: int = 1,
    mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    reference_elements: int = CIFAR_ELEMENTS,
) -> Tensor:
    """Distance of the factors, each flattened a picture and of Euclidean length 1; mean over pictures. Scalar.

    With d the difference of the two vectors and n their elements, it is (1/n sum |d|^p)^(1/p) * sqrt(n / n_0):
    independent of the map's size, and the official code's mean of |d| at n = n_0 and p = 1.

    Args:
        student_factor, teacher_factor: (N, F, H_s, W_s) and (N, F, H_t, W_t). Unequal sizes are averaged (adaptive
            average pool) to the smaller height and the smaller width.
        p: exponent, 1 or 2.
        mask, teacher_mask: (N, 1, H, W) of the two factors, 1 where they show picture; None: everywhere. Only cells
            that show picture in both count, so that one mask does for equal sizes.
        reference_elements: n_0; 0 leaves the square root out, as the official code does.

    Raises:
        ValueError: the factors differ in their pictures or channels.
    """
    if student_factor.shape[:2] != teacher_factor.shape[:2]:
        shapes = f"{tuple(student_factor.shape)} and {tuple(teacher_factor.shape)}"
        raise ValueError(f"factors must agree in pictures and channels, got {shapes}")
    ours, theirs, mask = to_common_size(student_factor, teacher_factor, mask, teacher_mask)
    if mask is None:
        elements = ours.new_full((len(ours),), ours[0].numel())
    else:
        ours, theirs = ours * mask, theirs * mask
        elements = mask.sum(dim=(1, 2, 3)).clamp_min(1) * ours.shape[1]
    difference = F.normalize(ours.flatten(1), dim=1) - F.normalize(theirs.flatten(1), dim=1)
    distance = torch.linalg.vector_norm(difference, ord=p, dim=1) / elements ** (1 / p)
    if reference_elements:
        distance = distance * (elements / reference_elements).sqrt()
    return distance.mean()


def reconstruction_loss(reconstructed: Tensor, feature: Tensor, mask: Tensor | None = None) -> Tensor:
    """Eq. 1: (t - P(t))^2, mean over all elements (N, C, H, W) or, with *mask* (N, 1, H, W), over its cells. Scalar."""
    return mean_square(full_precision(feature) - full_precision(reconstructed), mask)


@dataclass
class ParaphraserConfig(MethodConfig):
    """``num_layers``: convolutions of the paraphraser's half and of the translator, 1 to 3.

    ``reference_elements``: where beta has its official meaning, see the module's docstring. ``normalize``: bring the
    teacher's map to a root mean square of 1 before the paraphraser. ``paraphraser_*``: stage 1.
    """

    beta: float = 500.0
    p: int = 1
    num_layers: int = 3
    batch_norm: bool = False
    reference_elements: int = CIFAR_ELEMENTS
    normalize: bool = True
    paraphraser_steps: int = 300
    paraphraser_lr: float = 0.1


@dataclass
class FactorTransferConfig(ParaphraserConfig):
    """``rate``: k, the factors' channels over the teacher's."""

    rate: float = 0.5


class FactorTransfer(Method):
    """The teacher paraphrases its map into factors, and the student learns to translate into them.

    See the module's docstring. Stages: paraphraser, distill.
    """

    name = "ft"
    citation = "Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS 2018"
    Config: ClassVar[type[ParaphraserConfig]] = FactorTransferConfig
    config: ParaphraserConfig
    presets = {
        "default": {},
        "paper": {**PAPER_CIFAR, "beta": 1e3, "paraphraser_steps": 5000},
        "paper-cifar": PAPER_CIFAR,
        "paper-cifar10": {**PAPER_CIFAR, "batch_norm": True},
    }

    def __init__(self, config: ParaphraserConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        check_loss(self, config)
        self.require("num_layers", config.num_layers in (1, 2, 3), "1, 2 or 3")
        self.require("paraphraser_steps", config.paraphraser_steps > 0, "1 or more")
        self.paraphrasers, self.translators = nn.ModuleDict(), nn.ModuleDict()
        for pair in self.pairs():
            paraphraser, translator = self.nets(*self.pair_specs(pair))
            self.paraphrasers[pair.key], self.translators[pair.key] = paraphraser, translator

    def nets(self, student: FeatureSpec, teacher: FeatureSpec) -> tuple[Paraphraser, Encoder]:
        """Paraphraser and translator between two maps."""
        config = cast(FactorTransferConfig, self.config)  # a subclass with other settings has other nets
        self.require("rate", config.rate > 0, "greater than 0 (the paper has 0.5 to 4)")
        factors = max(1, round(config.rate * teacher.channels))
        widths = [paraphraser_widths(spec.channels, factors, config.num_layers) for spec in (teacher, student)]
        return Paraphraser(widths[0], config.batch_norm), Encoder(widths[1], config.batch_norm)

    def stages(self) -> Sequence[Stage]:
        reading = Needs.TEACHER_FEATURES
        return [
            Stage("paraphraser", reading, ("paraphraser",), self.config.paraphraser_steps),
            Stage("distill", reading | Needs.STUDENT),
        ]

    def players(self) -> dict[str, Player]:
        lr = self.config.paraphraser_lr
        return {
            "paraphraser": Player((self.paraphrasers,), "sgd", lr, weight_decay=5e-4, clip_norm=1.0),
            STUDENT: Player((self.translators,)),
        }

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        # Its batch norm learns in its own stage alone.
        self.paraphrasers.train(stage.name == "paraphraser")
        if stage.name == "paraphraser":
            losses = [self._paraphraser_losses(pair, teacher) for pair in self.pairs()]
            means = {name: torch.stack([terms[name] for terms in losses]).mean() for name in losses[0]}
            yield Update("paraphraser", means)
            return
        distances = []
        for pair in self.pairs():
            student_factor, teacher_factor = factors = self._factors(pair, student, teacher)
            masks = student.mask(student_factor), teacher.mask(teacher_factor)
            distances.append(factor_loss(*factors, self.config.p, *masks, self.config.reference_elements))
        added = self.config.beta * torch.stack(distances).mean()
        yield Update(STUDENT, {self.name: added})

    def views(self, student: Knowledge, teacher: Knowledge) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        for pair in self.pairs():
            student_factor, teacher_factor = self._factors(pair, student, teacher)
            views |= {
                view_title("teacher", pair.teacher): teacher.features[pair.teacher],
                view_title("teacher factor", pair.teacher): teacher_factor,
                view_title("student factor", pair.student): student_factor,
                view_title("student", pair.student): student.features[pair.student],
            }
        return views

    def _factors(self, pair: LayerPair, student: Knowledge, teacher: Knowledge) -> tuple[Tensor, Tensor]:
        """The student's factor, and the teacher's, which nothing learns from here."""
        with torch.no_grad():
            paraphraser = cast(Paraphraser, self.paraphrasers[pair.key])
            teacher_factor = paraphraser.encoder(self._teacher_map(pair, teacher))
        ours = student.features[pair.student]
        return self.translators[pair.key](_without_padding(ours, student.mask(ours))), teacher_factor

    def _paraphraser_losses(self, pair: LayerPair, teacher: Knowledge) -> dict[str, Tensor]:
        feature = self._teacher_map(pair, teacher)
        factor, reconstructed = self.paraphrasers[pair.key](feature)
        reconstruction = reconstruction_loss(reconstructed, feature, teacher.mask(feature))
        return {"paraphraser_reconstruction": reconstruction, **self.penalties(factor, teacher.mask(factor))}

    def penalties(self, factor: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """What the paraphraser minimises beside the reconstruction, by name: nothing but in the ablations."""
        return {}

    def _teacher_map(self, pair: LayerPair, teacher: Knowledge) -> Tensor:
        """The teacher's map with zero padding, of a root mean square of 1 over the batch's pictures."""
        feature = teacher.features[pair.teacher]
        mask = teacher.mask(feature)
        if self.config.normalize:
            feature = feature / root_mean_square(feature, mask)
        return _without_padding(feature, mask)


def check_loss(method: Method, config: Any) -> None:
    """Raise InputError where `factor_loss` has no such settings as *method*'s *config*."""
    method.require("p", config.p in (1, 2), "1 or 2")
    method.require("reference_elements", config.reference_elements >= 0, "0 or more")


def _without_padding(feature: Tensor, mask: Tensor | None) -> Tensor:
    """*feature* with zeros where *mask* is 0: a kernel would mix padding into the picture's border."""
    return feature if mask is None else feature * mask
