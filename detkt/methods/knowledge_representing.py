"""KR: knowledge representing, the student learns what neighbouring teacher layers have in common, large gaps first.

Liu, Wen, Gao, Tao, Chen, Osa, Kato: "Knowledge Representing: Efficient, Sparse Representation of Prior Knowledge for
Knowledge Distillation", CVPR Workshops 2019.

The equations of the text that we have are lost. What follows is our formulation of what its words state; every part
that the words do not fix is marked "ours".

Knowledge aggregation (Eq. 7 to 9). m neighbouring layers of the teacher, with maps F_1 ... F_m, are merged into one map
for one layer of the student, by the least cost of transport from the layers to it: "a simple distance" of the maps,
weighted by each layer's standard deviation, so that layers with more accumulated error count more:

    K = sum_i a_i * F_i,    min over a:  sum_i w_i mean (K - F_i)^2,    w_i = std(F_i) / sum_j std(F_j)

Identity mapping layers first bring the F_i to the student's height and width (an adaptive average pool, without
weights). Ours: a_i holds one weight a channel, 1 / m at first. The cost is least at K = sum_i w_i F_i, and no channel
gains from another, so that a full convolution could do no better. Unlike a learnt code for the layers, K lives in the
teacher's space: it can neither collapse nor run away from the student. The F_i are divided by the root mean square of
the last, so that learning rate and weights do not depend on the teacher's scale. (The paper's lambda on the cost would
scale the one term of an optimizer of its own, as does its learning rate.)

Sparse recoding penalty (Eq. 3, 4, 10). With the gap r = reg(s) - K (ours: reg is a 1x1 convolution on the student's map
s, trained with it, which lets widths differ), each element of the student's map is penalised by

    Omega(r) = gamma / 2 * max(r^2, theta^2),    whose gradient is   gamma * r  where |r| > theta,   0 elsewhere

So Omega recodes the gradients that the student propagates: outside the threshold it amplifies them (gamma > 1 against
the r of a plain r^2 / 2), inside it answers with zero and all elements are rewarded equally; the student need not be
strictly close to K, and learns the dominant gaps first.

theta starts at the mean magnitude of the tensor that Omega is given, on the first batch. (The paper says: of the
parameters. As in its Eq. 9, a map stands for the parameters that made it.) The paper calls it learnable "within the
update of gradient optimization" and does not say on what. Omega itself cannot be its loss: the derivative with respect
to theta is gamma * theta * (share of elements inside), never negative, so that theta falls to 0 within some 150 updates
and what is left is ``kr-dense``. Ours: theta descends on (theta - mean |r|)^2 / 2, at a rate of ``threshold_rate`` of
its own, which makes it a running mean of the gap's magnitude. So it falls as the gap closes and lets finer gaps in, and
the dominant ones are those above the mean at any time. At a rate of 0 it stays where it started. ``kr_threshold`` and
``kr_active``, the share of elements outside, are logged.

    L_task + weight * mean Omega(r)

``kr-dense`` has theta = 0: gamma / 2 * r^2, the framework without the penalty, which pulls as hard at the gaps outside
a threshold. The paper's figures set Omega beside traditional, convex penalties (structured sparsity, the L1 norm),
which have their least value at 0 alone. ``kr-l1`` is the framework with gamma * |r| in place of Omega, whose gradient
has one size everywhere. (The paper's penalise parameters; a map stands for these here, too.) The three take the same
``weight`` and ``gain``, so that a table of them compares penalties and not weights.

Two optimizers alternate in each iteration (Algorithm 1): that of a (player ``aggregation``: SGD, learning rate 0.1,
momentum 0.9, weight decay 10^-5), then the student's, to which reg belongs (the paper: 0.01, of the training
configuration here), with K held fixed. The paper divides both rates by 10 at 30k and 48k iterations; here both follow
the training configuration's schedule. Several student layers count by their mean. Padding is cut out of all means.

Ours, too, beside what is marked above: weight = 4 and gamma = 2 (the text has a "predefined parameter" without a
value, and "enhances" without a factor); m counts residual blocks by the names of their outputs, where the text counts
convolution layers; and the posterior term of Eq. 1 and 2 (cross entropy to the teacher's scores, NST or KDGAN) is
absent: ``kr+kd``, ``kr+nst`` or ``kr+kdgan`` add it.

``layers`` lists STUDENT=TEACHER: the last of m neighbouring layers of the teacher, counted back by the number its name
ends in (``layer3=layer3.22`` with m = 3 reads layer3.20, layer3.21, layer3.22), or the layers themselves joined by a
plus (``output=layer3.20+layer3.22``; m is then not asked). Without it the neighbours are the levels of a feature
pyramid. A lone backbone output has none and is an error, unless ``m=1`` asks for no aggregation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.knowledge import FeatureSpec, Knowledge, Spec
from detkt.methods.adapters import Regressor, average_pool
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
from detkt.methods.layer_groups import Group, named_groups, output_groups
from detkt.methods.reductions import full_precision, masked_mean, mean_square, root_mean_square


def deviation_weights(maps: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """w_i (m,): standard deviation of each map (N, C, H, W) over its elements, or over the cells of *mask*; sum 1."""
    deviations = []
    for feature in maps:
        feature = full_precision(feature)
        deviations.append(mean_square(feature - masked_mean(feature, mask), mask).sqrt())
    # Maps of constants have nothing to weigh them by: equal weights.
    weights = torch.stack(deviations) + torch.finfo(deviations[0].dtype).tiny
    return weights / weights.sum()


def transport_cost(aggregated: Tensor, maps: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Sum of w_i * mean (K - F_i)^2 for K and maps F_i of one shape (N, C, H, W); means over *mask*'s cells. Scalar.

    The weights are :func:`deviation_weights`, without a gradient.
    """
    weights = deviation_weights([feature.detach() for feature in maps], mask)
    distances = [mean_square(full_precision(aggregated) - full_precision(feature), mask) for feature in maps]
    return (weights * torch.stack(distances)).sum()


def sparse_recoding_penalty(gap: Tensor, threshold: Tensor, gain: float = 2.0, mask: Tensor | None = None) -> Tensor:
    """gamma / 2 * max(r^2, theta^2), mean over all elements (N, C, H, W) or over the cells of *mask*. Scalar.

    Args:
        gap: r.
        threshold: theta, a scalar.
        gain: gamma; the gradient with respect to an element is gain * r / elements outside, 0 inside.
        mask: (N, 1, H, W) of 0 and 1; None: all cells.
    """
    squared = torch.where(gap.abs() > threshold.abs(), gap.square(), threshold.square())
    return gain / 2 * masked_mean(squared, mask)


class Aggregator(nn.Module):
    """K: the weighted sum of m maps (N, C, H, W), one weight a map and channel; the plain mean at first."""

    def __init__(self, maps: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((maps, channels, 1, 1), 1 / maps))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return sum(weight * feature for weight, feature in zip(self.weight, maps, strict=True))


class Threshold(nn.Module):
    """theta: the mean magnitude of the first tensor it is asked for, and a running mean of that from then on.

    A buffer: its rate must not depend on the student's optimizer, and processes average it as they do running
    statistics.
    """

    value: Tensor
    started: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def learn(self, gap: Tensor, mask: Tensor | None = None) -> None:
        """One step of gradient descent on (theta - mean |gap|)^2 / 2 for a map (N, C, H, W), over *mask*'s cells."""
        magnitude = masked_mean(gap.abs(), mask).to(self.value.dtype)
        # Chosen on the device: asking whether it has started would wait for it in every step.
        self.value.copy_(torch.where(self.started, self.value.lerp(magnitude, self.rate), magnitude))
        self.started.fill_(True)


@dataclass
class KRDenseConfig(MethodConfig):
    """``m``: neighbouring teacher layers a student's layer; ``weight``: of the distance or penalty.

    ``gain``: gamma, how much the gradient of a gap (outside the threshold) is amplified.
    """

    m: int = 3
    weight: float = 4.0
    gain: float = 2.0
    aggregation_lr: float = 0.1


class KRDense(Method):
    """KR with a threshold of 0: gamma / 2 of the gap's square. See the module's docstring. One stage: distill."""

    name = "kr-dense"
    citation = "Liu et al., Knowledge Representing, CVPR Workshops 2019"
    Config = KRDenseConfig
    config: KRDenseConfig
    presets = {"default": {}, "paper": {}, "paper-imagenet": {"m": 4}}

    def __init__(self, config: KRDenseConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        if not config.gain > 1:
            raise InputError(f"methods.{self.name}.gain is {config.gain}: it must be greater than 1 to amplify")
        if config.layers:
            self.groups = named_groups(self.name, config.layers, config.m)
        else:
            self.groups = output_groups(self.name, self.pairs(), config.m)
        self.aggregators, self.regressors = nn.ModuleList(), nn.ModuleList()
        for group in self.groups:
            source, target = self._specs(group)
            self.aggregators.append(Aggregator(len(group.teachers), target.channels))
            self.regressors.append(Regressor(source, target))

    @classmethod
    def layer_pairs(cls, config: MethodConfig) -> list[LayerPair]:
        assert isinstance(config, KRDenseConfig)
        groups = named_groups(cls.name, config.layers, config.m)
        return [LayerPair(group.student, teacher) for group in groups for teacher in group.teachers]

    def _specs(self, group: Group) -> tuple[FeatureSpec, FeatureSpec]:
        """The student's map, and the aggregated one: the teacher's channels at the student's size."""
        specs = [self.pair_specs(LayerPair(group.student, teacher)) for teacher in group.teachers]
        source, layers = specs[0][0], [teacher for _, teacher in specs]
        channels = [layer.channels for layer in layers]
        if len(set(channels)) > 1:
            raise InputError(
                f"methods.{self.name}.layers: the teacher's {', '.join(group.teachers)} cannot be aggregated, they "
                f"have {', '.join(map(str, channels))} channels; name layers of one stage"
            )
        nonnegative = all(layer.nonnegative for layer in layers)
        return source, FeatureSpec(channels[0], source.height, source.width, nonnegative)

    def stages(self) -> Sequence[Stage]:
        return [Stage("distill", Needs.STUDENT | Needs.TEACHER_FEATURES, (STUDENT, "aggregation"))]

    def players(self) -> dict[str, Player]:
        lr = self.config.aggregation_lr
        return {
            "aggregation": Player((self.aggregators,), "sgd", lr, weight_decay=1e-5, scheduled=True),
            STUDENT: Player((self.regressors,)),
        }

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        stacks = [self._stack(group, student, teacher) for group in self.groups]
        costs = [
            transport_cost(aggregate(maps), maps, mask)
            for aggregate, (maps, mask) in zip(self.aggregators, stacks, strict=True)
        ]
        yield Update("aggregation", {f"{self.name}_transport": torch.stack(costs).mean()})

        losses, metrics = [], []
        for i, (group, (maps, mask)) in enumerate(zip(self.groups, stacks, strict=True)):
            with torch.no_grad():
                target = self.aggregators[i](maps)
            gap = full_precision(self.regressors[i](student.features[group.student])) - target
            loss, metric = self.penalize(i, gap, mask)
            losses.append(loss)
            metrics.append(metric)
        added = self.config.weight * torch.stack(losses).mean()
        means = {name: torch.stack([values[name] for values in metrics]).mean() for name in metrics[0]}
        yield Update(STUDENT, {self.name: added}, means)

    def views(self, student: Knowledge, teacher: Knowledge) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        for group, aggregate, regress in zip(self.groups, self.aggregators, self.regressors, strict=True):
            ours = student.features[group.student]
            views |= {view_title("teacher", name): teacher.features[name] for name in group.teachers}
            views |= {
                view_title("teacher, aggregated", group.student): aggregate(self._stack(group, student, teacher)[0]),
                view_title("student, regressed", group.student): regress(ours),
                view_title("student", group.student): ours,
            }
        return views

    def penalize(self, group: int, gap: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """What the student minimises of a group's *gap* (N, C, H, W), and what to log of it."""
        return self.config.gain / 2 * mean_square(gap, mask), {}

    def _stack(self, group: Group, student: Knowledge, teacher: Knowledge) -> tuple[list[Tensor], Tensor | None]:
        """The teacher's maps at the student's size, the last of a root mean square of 1, and the cells that count."""
        ours = student.features[group.student]
        mask, maps = student.mask(ours), []
        for name in group.teachers:
            feature = full_precision(teacher.features[name])
            feature, shown = average_pool(feature, teacher.mask(feature), ours.shape[-2:])
            mask = shown if mask is None else mask if shown is None else mask * shown
            maps.append(feature)
        scale = root_mean_square(maps[-1], mask)
        return [feature / scale for feature in maps], mask


class KRL1(KRDense):
    """KR with gamma times the gap's magnitude as its penalty. See the module's docstring. One stage: distill."""

    name = "kr-l1"

    def penalize(self, group: int, gap: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        return self.config.gain * masked_mean(gap.abs(), mask), {}


@dataclass
class KRConfig(KRDenseConfig):
    """``threshold_rate``: share of the way to the gap's mean magnitude that theta goes in an update; 0: none."""

    threshold_rate: float = 0.1


class KR(KRDense):
    """The student learns what neighbouring teacher layers have in common, large gaps first.

    See the module's docstring. One stage: distill.
    """

    name = "kr"
    Config = KRConfig
    config: KRConfig

    def __init__(self, config: KRConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        if not 0 <= config.threshold_rate <= 1:
            raise InputError(f"methods.kr.threshold_rate is {config.threshold_rate}: it must be between 0 and 1")
        self.thresholds = nn.ModuleList(Threshold(config.threshold_rate) for _ in self.groups)

    def penalize(self, group: int, gap: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        learnt = cast(Threshold, self.thresholds[group])
        if torch.is_grad_enabled():  # a loss that is only looked at, on held-out pictures, teaches nothing
            learnt.learn(gap, mask)
        threshold = learnt.value.clone()
        active = masked_mean((gap.detach().abs() > threshold).to(gap.dtype), mask)
        metrics = {"kr_threshold": threshold, "kr_active": active}
        return sparse_recoding_penalty(gap, threshold, self.config.gain, mask), metrics
