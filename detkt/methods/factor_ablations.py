"""CAE, RAE and F-ActT: what factor transfer is without its paraphraser (its own paper's ablations).

Kim, Park, Kwak: "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018
(arXiv:1802.04977), section 4.1, tables 1 to 3, and appendix B. See :mod:`detkt.methods.factor_transfer` for the loss.

* ``cae``: the paraphraser is an undercomplete convolutional autoencoder of stride 2 with batch norm: each of its three
  convolutions halves the map and doubles the channels. The paper's kernel is lost; 4 x 4 is the one that halves and
  doubles exactly with its padding of 1. ``growth`` is the factor on the channels: on wide teachers 2 is expensive
  (1024 channels end in 8192 and the paraphraser has 1.4 billion weights), and 1 is enough to be undercomplete.
* ``rae``: the paraphraser is overcomplete, k = 2, and its factors sparse: it minimises
  ||t - P(t)||^2 + lambda ||F_t||_1 (Eq. 6). The paper's lambda is lost; we take the mean over elements and 10^-2.
* ``fact``: full activation transfer, hints as in FitNets: the whole map of the teacher is the factor, and a 1 x 1
  convolution, trained with the student, the translator. What the paper leaves open, and we decided: the loss is factor
  transfer's own with p = 2, the hint's, so that the two differ by the factors alone; ``fitnet`` is the hint as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.knowledge import FeatureSpec, Knowledge, Spec
from detkt.methods.base import STUDENT, Heads, Method, MethodConfig, Player, Stage, Update
from detkt.methods.factor_transfer import (
    CIFAR_ELEMENTS,
    PAPER_CIFAR,
    FactorTransfer,
    FactorTransferConfig,
    ParaphraserConfig,
    check_loss,
    factor_loss,
)
from detkt.methods.paraphraser import Encoder, Paraphraser
from detkt.methods.reductions import full_precision, masked_mean


@dataclass
class CAEConfig(ParaphraserConfig):
    """``growth``: factor of each convolution on the channels."""

    growth: float = 2.0
    batch_norm: bool = True


class ConvolutionalAutoencoder(FactorTransfer):
    """Factor transfer with an autoencoder of fewer numbers than the teacher's map as paraphraser.

    See the module's docstring. Stages: paraphraser, distill.
    """

    name = "cae"
    Config = CAEConfig
    config: CAEConfig
    presets = {"default": {}, "paper": PAPER_CIFAR}

    def nets(self, student: FeatureSpec, teacher: FeatureSpec) -> tuple[Paraphraser, Encoder]:
        config = self.config
        self.require("growth", config.growth > 0, "greater than 0")
        smallest = 2**config.num_layers
        for role, spec in (("student", student), ("teacher", teacher)):
            if min(spec.height, spec.width) < smallest:
                raise InputError(
                    f"method 'cae' halves maps {config.num_layers} times, but the {role}'s is "
                    f"{spec.height}x{spec.width}; set fewer with methods.cae.num_layers"
                )
        widths = [_widths(spec.channels, config.growth, config.num_layers) for spec in (teacher, student)]
        paraphraser = Paraphraser(widths[0], config.batch_norm, stride=2)
        return paraphraser, Encoder([*widths[1][:-1], widths[0][-1]], config.batch_norm, stride=2)


def _widths(channels: int, growth: float, num_layers: int) -> list[int]:
    return [max(1, round(channels * growth**i)) for i in range(num_layers + 1)]


@dataclass
class RAEConfig(FactorTransferConfig):
    """Settings of ``ft``; ``sparsity``: lambda."""

    rate: float = 2.0
    sparsity: float = 1e-2


class RegularizedAutoencoder(FactorTransfer):
    """Factor transfer with a wider paraphraser, whose factors are sparse.

    See the module's docstring. Stages: paraphraser, distill.
    """

    name = "rae"
    Config = RAEConfig
    config: RAEConfig
    presets = {"default": {}, "paper": PAPER_CIFAR}

    def penalties(self, factor: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        magnitude = masked_mean(full_precision(factor).abs(), mask)
        return {"paraphraser_sparsity": self.config.sparsity * magnitude}


@dataclass
class FullActivationConfig(MethodConfig):
    """``beta``, ``p`` and ``reference_elements`` as of ``ft``."""

    beta: float = 500.0
    p: int = 2
    reference_elements: int = CIFAR_ELEMENTS


class FullActivationTransfer(Method):
    """Factor transfer without a paraphraser: the teacher's whole map is the factor.

    See the module's docstring. One stage: distill.
    """

    name = "fact"
    citation = FactorTransfer.citation
    Config = FullActivationConfig
    config: FullActivationConfig
    presets = {"default": {}, "paper": {"reference_elements": 0}}

    def __init__(self, config: FullActivationConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        check_loss(self, config)
        specs = [self.pair_specs(pair) for pair in self.pairs()]
        self.translators = nn.ModuleList(nn.Conv2d(ours.channels, theirs.channels, 1) for ours, theirs in specs)

    def players(self) -> dict[str, Player]:
        return {STUDENT: Player((self.translators,))}

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        distances = []
        for translator, pair in zip(self.translators, self.pairs(), strict=True):
            ours, theirs = translator(student.features[pair.student]), teacher.features[pair.teacher]
            masks = student.mask(ours), teacher.mask(theirs)
            distances.append(factor_loss(ours, theirs, self.config.p, *masks, self.config.reference_elements))
        added = self.config.beta * torch.stack(distances).mean()
        yield Update(STUDENT, {self.name: added})
