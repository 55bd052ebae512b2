"""KTAN: Knowledge Transfer Adversarial Network, and DLN, the same without its adversary.

Liu, Liu, Ma, Jiang, Seok: "KTAN: Knowledge Transfer Adversarial Network", arXiv:1810.08126 (2018), IJCNN (2020).

A frozen teacher map t passes through a teacher-to-student layer R, trained beforehand with the task loss that a
frozen head reads from R(t) (Algorithm 1). The student's backbone S then minimises (Algorithm 2)

    L_task + alpha * (-log D(s)) + beta * MSE(s, R(t))

while the discriminator D minimises -log D(R(t)) - log(1 - D(s)). The papers leave open, and we decided:

* The head that reads R(t) is the teacher's own where maps (channels and size) and classes agree, the student's
  pretrained head otherwise.
* R is one convolution with a kernel that satisfies Algorithm 1's rule (M_t + 2P - K) / S + 1 = M_s: 1x1 between equal
  sizes.
* Where the teacher has no map of the stride of some of the student's (a pyramid that learns from a single map), these
  levels have no R: the head reads the student's own beside R(t), and nothing is distilled there.
* R ends as the student's layer ends (ReLU), else the sign of a value alone tells the two maps apart.
* The papers' beta assumes their feature scale. By default both maps are divided by the root mean square of R(t)
  before D and the MSE see them; ``preset=paper`` takes them as they are.
* Detection maps differ in size from batch to batch, so D scores every location (patch output) and the padding is
  masked; ``adversary=map`` pools and scores the whole map, as the paper's figure does.
* ``adversary=objectness``, ``roi`` and ``score`` are ours: D sees what the head of stage 1 makes of the student's map
  and of R(t), not the maps, so that it judges what the task reads (`detkt.methods.adversary`).
* The adversary plays in every fourth step only, with four times its weight: its forward and backward passes are many
  small operations, which would cost more than the teacher of a small pair. So StyleGAN2 regularises "lazily" (Karras et
  al., CVPR 2020, section 3.1). ``adversary_every=1`` plays always, as the papers do.
* D's learning rate follows the student's schedule, D sees noisy maps through spectrally normalised layers, and its
  labels are smoothed: otherwise it soon tells every pair apart, and its gradient is noise.
* D's activations are leaky ReLUs, a 1x1 convolution before its 3x3 ones narrows the map, and the gradients of R and D
  are clipped.

``preset=paper`` takes all of these back that a setting can: no common scale, R and D by SGD at 0.01 with a weight decay
of 1e-4 and no clipping, D in every step at a constant rate, with ReLUs and without narrowing, noise, smoothing and
spectral norm, on the pooled map. What stays ours under it: which head reads R, R's kernel and its ReLU, the width of
D's convolutions (half of the map's channels, 64 at most), the mean as its pooling, and the masks of padding. The
student's schedule and clipping are the training configuration's (``train.clip_norm``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.knowledge import Knowledge, Spec, known
from detkt.methods.adapters import Regressor
from detkt.methods.adversary import (
    KINDS,
    LOSSES,
    PENALTY,
    Discriminator,
    RowDiscriminator,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    right_shares,
    zero_penalty,
)
from detkt.methods.base import (
    OPTIMIZERS,
    STUDENT,
    Heads,
    LayerPair,
    Method,
    MethodConfig,
    Needs,
    Player,
    Stage,
    Update,
    Watch,
    choose,
    frozen,
    outputs,
    view_title,
)
from detkt.methods.reductions import full_precision, mean_square, root_mean_square

Maps = dict[LayerPair, Tensor]
Masks = dict[LayerPair, Tensor | None]

EXPLOSION = 10
WIDEST = 64


def feature_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Eq. 2: mean over all elements (N, C, H, W) of (student - teacher)^2; with *mask* over its cells. Scalar."""
    if student.shape != teacher.shape:
        raise ValueError(f"maps of unequal shape: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}")
    return mean_square(full_precision(student) - full_precision(teacher), mask)


@dataclass(frozen=True)
class Shown:
    """What a discriminator is shown of both nets.

    Attributes:
        judge: the discriminator.
        teacher, student: maps (N, C, H, W), or rows (M, D); the student's with its graph.
        context: what the judge is told besides: the maps' mask, or the rows' classes.
        mask: (N, 1, H, W) of 0 and 1, for logits per location.
    """

    judge: nn.Module
    teacher: Tensor
    student: Tensor
    context: Tensor | None = None
    mask: Tensor | None = None


@dataclass
class KTANConfig(MethodConfig):
    """alpha, beta: weights of the adversary and the MSE. ``regressor_*``: stage 1, the teacher-to-student layer.

    ``balance``: the MSE's share of the task's gradient, in place of beta; ``adversary_balance``: the adversary's, in
    place of alpha, in the steps in which it plays. ``adversary``: what D sees, "patch", "map" (the papers'),
    "objectness", "roi" or "score"; ``loss``: "gan" (the papers'), "hinge", "relativistic" or "wgan-gp"; see
    `detkt.methods.adversary`. ``r1``: weight of the penalty on D's gradient, with its half; 0: none.
    ``label_smoothing``: of "gan". ``warmup_steps``: k, student updates with the MSE alone. ``normalize``: bring both
    maps, and what D sees, to one scale. ``instance_noise``: standard deviation of the noise on D's inputs, as these are
    (in root mean squares of what it sees of R(t) with ``normalize``). ``discriminator_width``: channels of D's
    convolutions; 0 takes half of the map's, or of the vectors of "roi", at most 64, so that D stays cheap beside the
    student, and 64 for "score" and "objectness". ``adversary_every``: D and the student's term from it have their turn
    once in so many steps (1 to 100), that term with so many times ``alpha``. ``discriminator_lr``: for a turn in four
    steps; with a turn in every step take a quarter. ``discriminator_scheduled``: it follows the student's schedule.
    ``discriminator_narrow``, ``discriminator_slope``: see `Discriminator`. ``clip_norm``: largest norm of R's and of
    D's gradient; 0: any.
    """

    section: ClassVar[str] = "ktan"

    alpha: float = 0.6
    adversary_balance: float = 0.0
    beta: float = 20.0
    normalize: bool = True
    regressor_steps: int = 600
    regressor_optimizer: str = "adam"
    regressor_lr: float = 1e-3
    warmup_steps: int = 300
    adversary_every: int = 4
    adversary: str = "patch"
    loss: str = "gan"
    r1: float = 0.0
    num_convs: int = 2
    discriminator_width: int = 0
    discriminator_optimizer: str = "adam"
    discriminator_lr: float = 4e-4
    discriminator_scheduled: bool = True
    discriminator_narrow: bool = True
    discriminator_slope: float = 0.2
    clip_norm: float = 10.0
    spectral_norm: bool = True
    label_smoothing: float = 0.1
    instance_noise: float = 0.5

    def __post_init__(self) -> None:
        section = f"methods.{self.section}"
        for key in (
            *("alpha", "beta", "regressor_steps", "warmup_steps", "regressor_lr", "discriminator_lr"),
            *("discriminator_width", "discriminator_slope", "clip_norm", "instance_noise", "r1"),
        ):
            if not 0 <= getattr(self, key) < math.inf:
                raise InputError(f"{section}.{key} is {getattr(self, key)}: it must be a number of at least 0")
        if not 1 <= self.adversary_every <= 100:
            raise InputError(
                f"{section}.adversary_every is {self.adversary_every}: it must be a whole number from 1 to 100"
            )
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"{section}.label_smoothing is {self.label_smoothing}: it must be in [0, 1)")
        for key in ("regressor_optimizer", "discriminator_optimizer"):
            choose(getattr(self, key), OPTIMIZERS, f"{section}.{key}")
        choose(self.adversary, KINDS, f"{section}.adversary")
        choose(self.loss, LOSSES, f"{section}.loss")


class KTAN(Method):
    """The student's map imitates the teacher's, brought to its shape, and is to deceive a discriminator.

    See the module's docstring. Stages: regressor, warmup, adversarial.
    """

    name = "ktan"
    citation = "Liu et al., KTAN: Knowledge Transfer Adversarial Network, IJCNN 2020 (arXiv:1810.08126)"
    Config = KTANConfig
    config: KTANConfig
    presets = {
        "default": {},
        "paper": {
            "beta": 0.5,
            "normalize": False,
            "discriminator_optimizer": "sgd",
            "discriminator_lr": 0.01,
            "discriminator_scheduled": False,
            "discriminator_narrow": False,
            "discriminator_slope": 0.0,
            "clip_norm": 0.0,
            "regressor_optimizer": "sgd",
            "regressor_lr": 0.01,
            "adversary_every": 1,
            "adversary": "map",
            "spectral_norm": False,
            "label_smoothing": 0.0,
            "instance_noise": 0.0,
        },
    }
    adversarial = True

    def __init__(self, config: KTANConfig, student: Spec, teacher: Spec) -> None:
        super().__init__(config, student, teacher)
        if config.num_convs not in (1, 2):
            raise InputError(
                f"methods.{self.name}.num_convs is {config.num_convs}: the papers have 1 (2018) or 2 (2020)"
            )
        matched, read = {pair.student for pair in self.pairs()}, outputs(student.features)
        if not matched <= set(read):
            raise InputError(
                f"methods.{self.name}.layers must be backbone outputs, since the head that trains the regressor reads "
                "them; leave it empty"
            )
        self._unmatched = [name for name in read if name not in matched]
        # The teacher's head reads R's output only where nothing tells it from the teacher's own maps and classes.
        alike = not self._unmatched and _interface(student) == _interface(teacher)
        self.head = "teacher" if alike else STUDENT
        self.reads_student_head = self.head == STUDENT
        self.regressors, self.discriminators = nn.ModuleDict(), nn.ModuleDict()
        for pair in self.pairs():
            student_map, teacher_map = self.pair_specs(pair)
            self.regressors[pair.key] = Regressor(teacher_map, student_map)
            if self.adversarial and not self._sees_rows:
                self.discriminators[pair.key] = self._map_discriminator(student_map.channels)
        if self.adversarial and self._sees_rows:
            self.discriminators["rows"] = self._row_discriminator()

    @property
    def _sees_rows(self) -> bool:
        """Whether D sees what a head makes of regions, anchors or pictures, not of cells."""
        return self.config.adversary in ("roi", "score")

    def _map_discriminator(self, channels: int) -> Discriminator:
        """D of a student's map of so many *channels*, or of its objectness."""
        config, width, scores = self.config, self._width(channels), self._read_spec.scores
        if config.adversary == "objectness":
            if scores is None or not scores.rpn_anchors:
                raise self._lacking("no stage that scores as many anchors in every cell")
            channels, width = scores.rpn_anchors, config.discriminator_width or WIDEST
        return Discriminator(
            channels,
            width,
            config.num_convs,
            config.adversary != "map",
            config.spectral_norm,
            config.discriminator_narrow,
            config.discriminator_slope,
        )

    @property
    def _read_spec(self) -> Spec:
        """Of the net whose head reads R."""
        return self.student_spec if self.head == STUDENT else known(self.teacher_spec)

    def _lacking(self, what: str) -> InputError:
        return InputError(
            f"methods.{self.name}.adversary is '{self.config.adversary}', and the {self.head}, whose head would be "
            f"read, has {what}; take 'patch'"
        )

    def _width(self, size: int) -> int:
        return self.config.discriminator_width or min(WIDEST, max(1, size // 2))

    def _row_discriminator(self) -> RowDiscriminator:
        kind, scores = self.config.adversary, self._read_spec.scores
        if scores is None or (kind == "roi" and not scores.width):
            raise self._lacking("no such scores" if kind == "score" else "no head that looks at regions")
        self._centred = kind == "score" and not scores.sigmoid
        background = scores.of != "pictures" and scores.sigmoid  # a column that such heads do not score
        size = scores.width if kind == "roi" else self._read_spec.num_classes - background
        config = self.config
        width = config.discriminator_width or (self._width(size) if kind == "roi" else WIDEST)
        return RowDiscriminator(
            size, self.student_spec.num_classes, width, config.spectral_norm, config.discriminator_slope
        )

    def stages(self) -> Sequence[Stage]:
        both = Needs.STUDENT | Needs.TEACHER_FEATURES
        reads = Needs.TEACHER_FEATURES | (Needs.STUDENT_FEATURES if self._unmatched else Needs.NOTHING)
        stages = [Stage("regressor", reads, ("regressor",), self.config.regressor_steps)]
        if not self.adversarial:
            return [*stages, Stage("distill", both)]
        if self.config.warmup_steps:
            stages.append(Stage("warmup", both, steps=self.config.warmup_steps))
        every = self.config.adversary_every
        between = Stage("between", both) if every > 1 else None
        return [*stages, Stage("adversarial", both, (STUDENT, "discriminator"), every=every, between=between)]

    def players(self) -> dict[str, Player]:
        config = self.config
        clip_norm = config.clip_norm or None
        players = {
            "regressor": Player(
                (self.regressors,),
                config.regressor_optimizer,
                config.regressor_lr,
                weight_decay=1e-4,
                clip_norm=clip_norm,
            )
        }
        if self.adversarial:
            players["discriminator"] = Player(
                (self.discriminators,),
                config.discriminator_optimizer,
                config.discriminator_lr,
                weight_decay=1e-4 if config.discriminator_optimizer == "sgd" else 0.0,
                clip_norm=clip_norm,
                # At a constant rate D wins as soon as the student's rate decays, and drives the maps apart again.
                scheduled=config.discriminator_scheduled,
            )
        return players

    def share_settings(self) -> dict[str, str]:
        adversary = {f"{self.name}_generator": "adversary_balance"} if self.adversarial else {}
        return {f"{self.name}_mse": "balance", **adversary}

    def watches(self) -> Sequence[Watch]:
        # A critic is to be sure, and its values have no floor.
        if not self.adversarial or self.config.loss == "wgan-gp":
            return []
        accuracies = ("discriminator_accuracy_teacher", "discriminator_accuracy_student")
        smooth, gan = self.config.label_smoothing, self.config.loss == "gan"
        # What is left of D's loss where it is sure: the entropy of the smoothed label.
        least = -(1 - smooth) * math.log(1 - smooth) - (smooth * math.log(smooth) if smooth else 0.0)

        def certain(mean: Mapping[str, float], first: Mapping[str, float]) -> bool:
            return min(mean[name] for name in accuracies) > 0.999 or (gan and mean["discriminator"] < least + 0.01)

        def exploded(mean: Mapping[str, float], first: Mapping[str, float]) -> bool:
            return any(mean[name] > EXPLOSION * first[name] for name in mean)

        section = f"methods.{self.name}"
        return [
            Watch(
                "the discriminator tells all maps apart, and teaches the student nothing",
                f"lower {section}.discriminator_lr, or raise {section}.instance_noise or {section}.label_smoothing",
                (*accuracies, "discriminator"),
                certain,
            ),
            Watch(
                f"a loss of the adversary is more than {EXPLOSION} times what it was at first",
                f"lower {section}.alpha, {section}.discriminator_lr or train.lr_per_image",
                # With "hinge" the student's goes below 0.
                ("discriminator",) if self.config.loss == "hinge" else ("discriminator", "generator_loss"),
                exploded,
                updates=50,
            ),
        ]

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        if stage.name == "regressor":
            yield self._regressor_update(student, teacher, heads)
            return
        pairs = self.pairs()
        with torch.no_grad():
            targets = {pair: self._regressed(pair, student, teacher) for pair in pairs}
        maps = {pair: student.features[pair.student] for pair in pairs}
        masks = {pair: student.mask(maps[pair]) for pair in pairs}
        scales = {pair: self._scale(targets[pair], masks[pair]) for pair in pairs}
        as_heads_read = maps, targets
        targets = {pair: targets[pair] / scales[pair] for pair in pairs}
        maps = {pair: maps[pair] / scales[pair] for pair in pairs}

        if stage.name == "adversarial":
            if self.config.adversary == "objectness":
                shown = self._objectness(*as_heads_read, masks, heads)
            elif self._sees_rows:
                shown = [self._rows(*as_heads_read, student, heads)]
            else:
                shown = [self._map(pair, maps[pair], targets[pair], masks[pair]) for pair in pairs]
            yield self._discriminator_update(shown)

        losses: dict[str, Tensor] = {}
        mse = [feature_mse(maps[pair], targets[pair], masks[pair]) for pair in pairs]
        metrics = {"feature_mse": torch.stack(mse).mean()}
        losses[f"{self.name}_mse"] = self.config.beta * metrics["feature_mse"]
        if stage.name == "adversarial":
            with frozen(self.discriminators):
                fooled = [self._fooled(seen) for seen in shown]
            metrics["generator_loss"] = torch.stack(fooled).mean()
            weight = self.config.alpha * self.config.adversary_every
            losses[f"{self.name}_generator"] = weight * metrics["generator_loss"]
        elif stage.name == "between":
            # So that its mean over steps is what it adds to the mean loss.
            losses[f"{self.name}_generator"] = torch.zeros_like(metrics["feature_mse"])
        yield Update(STUDENT, losses, metrics)

    def views(self, student: Knowledge, teacher: Knowledge) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        for pair in self.pairs():
            views |= {
                view_title("teacher", pair.teacher): teacher.features[pair.teacher],
                view_title("teacher, regressed", pair.teacher): self._regressed(pair, student, teacher),
                view_title("student", pair.student): student.features[pair.student],
            }
        return views

    def _regressed(self, pair: LayerPair, student: Knowledge, teacher: Knowledge) -> Tensor:
        """R(t), in the shape of the student's map."""
        return self.regressors[pair.key](teacher.features[pair.teacher], student.features[pair.student].shape[-2:])

    def _regressor_update(self, student: Knowledge, teacher: Knowledge, heads: Heads) -> Update:
        """Algorithm 1: the task loss of a frozen head on R(t) trains R alone."""
        regressed = {
            pair: self.regressors[pair.key](teacher.features[pair.teacher], self._size(pair, teacher))
            for pair in self.pairs()
        }
        losses = heads.task_losses(self._whole(regressed, student), self.head)
        return Update("regressor", {f"regressor_{name}": loss for name, loss in losses.items()})

    def _size(self, pair: LayerPair, teacher: Knowledge) -> tuple[int, int] | None:
        """The student's map size on this batch where R has to resize to it; the student does not run in stage 1."""
        student_map, teacher_map = self.pair_specs(pair)
        if not self.regressors[pair.key].resize_first:
            return None
        height, width = teacher.features[pair.teacher].shape[-2:]
        return (
            max(1, round(height * student_map.height / teacher_map.height)),
            max(1, round(width * student_map.width / teacher_map.width)),
        )

    def _scale(self, target: Tensor, mask: Tensor | None) -> Tensor | float:
        """Root mean square of R(t) over the batch; 1 where the maps are taken as they are."""
        if not self.config.normalize:
            return 1.0
        return root_mean_square(target, mask).to(target.dtype)

    def _map(self, pair: LayerPair, student: Tensor, target: Tensor, mask: Tensor | None) -> Shown:
        by_location = self.config.adversary == "patch"
        return Shown(self.discriminators[pair.key], target, student, mask, mask if by_location else None)

    def _rows(self, maps: Maps, targets: Maps, student: Knowledge, heads: Heads) -> Shown:
        """What the head of stage 1 makes of the student's maps and of R(t)."""
        with torch.no_grad():
            judged = heads.rows(self._whole(targets, student), self.head)
        learning = heads.rows(self._whole(maps, student), self.head)
        values = []
        for rows in (judged, learning):
            value = full_precision(rows.logits if self.config.adversary == "score" else known(rows.vectors))
            # A softmax reads differences alone.
            values.append(value - value.mean(dim=1, keepdim=True) if self._centred else value)
        scale = root_mean_square(values[0]) if self.config.normalize else 1.0
        return Shown(self.discriminators["rows"], values[0] / scale, values[1] / scale, judged.classes)

    def _objectness(self, maps: Maps, targets: Maps, masks: Masks, heads: Heads) -> list[Shown]:
        """What the first stage of that head gives every cell of both."""
        # Its convolution reaches into the padding, which nothing is to be told of.
        same = {pair: _in_the_same_frame(maps[pair], targets[pair], masks[pair]) for pair in self.pairs()}
        with torch.no_grad():
            judged = heads.objectness({pair.student: target for pair, (_, target) in same.items()}, self.head)
        learning = heads.objectness({pair.student: ours for pair, (ours, _) in same.items()}, self.head)
        shown = []
        for pair in self.pairs():
            mask = masks[pair]
            scale = self._scale(judged[pair.student], mask)
            theirs, ours = judged[pair.student] / scale, learning[pair.student] / scale
            shown.append(Shown(self.discriminators[pair.key], theirs, ours, mask, mask))
        return shown

    def _whole(self, maps: Maps, student: Knowledge) -> dict[str, Tensor]:
        """*maps* as a head reads them, in its order, with the student's own where nothing is distilled."""
        own = {name: student.features[name].detach() for name in self._unmatched}
        found = own | {pair.student: maps[pair] for pair in self.pairs()}
        return {name: found[name] for name in outputs(self.student_spec.features)}

    def _judge(self, seen: Shown, values: Tensor, context: Tensor | None) -> Tensor:
        if self.config.instance_noise:
            # Not randn_like: for a map in channels-last order it draws value by value.
            noise = torch.randn(values.shape, dtype=values.dtype, device=values.device)
            values = noise.mul_(self.config.instance_noise).add_(values)
        return seen.judge(values, context).float()

    def _fooled(self, seen: Shown) -> Tensor:
        logit, kind = self._judge(seen, seen.student, seen.context), self.config.loss
        other = self._judge(seen, seen.teacher, seen.context) if kind == "relativistic" else None
        return generator_loss(logit, seen.mask, other, kind)

    def _discriminator_update(self, shown: Sequence[Shown]) -> Update:
        losses, right_teacher, right_student = [], [], []
        smooth, kind = self.config.label_smoothing, self.config.loss
        # The logit of a D that cannot tell the maps apart: 0 but for the smoothed label.
        undecided = math.log((1 - smooth) / (1 + smooth)) if kind == "gan" else 0.0
        for seen in shown:
            both = torch.cat([seen.teacher, seen.student.detach()])
            twice = None if seen.context is None else torch.cat([seen.context, seen.context])
            teacher_logit, student_logit = self._judge(seen, both, twice).chunk(2)
            loss = discriminator_loss(teacher_logit, student_logit, seen.mask, smooth, kind)
            judge = cast("Discriminator | RowDiscriminator", seen.judge)
            if kind == "wgan-gp":
                loss = loss + PENALTY * gradient_penalty(judge, seen.teacher, seen.student, seen.context)
            if self.config.r1:
                at = (seen.teacher, seen.student) if kind == "relativistic" else (seen.teacher,)
                sizes = torch.stack([zero_penalty(judge, values, seen.context) for values in at])
                loss = loss + self.config.r1 / 2 * sizes.sum()
            losses.append(loss)
            with torch.no_grad():
                right = right_shares(teacher_logit, student_logit, seen.mask, undecided, kind)
            right_teacher.append(right[0])
            right_student.append(right[1])
        metrics = {
            "discriminator_accuracy_teacher": torch.stack(right_teacher).mean(),
            "discriminator_accuracy_student": torch.stack(right_student).mean(),
        }
        return Update("discriminator", {"discriminator": torch.stack(losses).mean()}, metrics)


def _in_the_same_frame(student: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both maps, where *mask* is 0 with the student's values, of which nothing is learnt there."""
    if mask is None:
        return student, target
    inside, own = mask.bool(), student.detach()
    return torch.where(inside, student, own), torch.where(inside, target, own)


def _interface(spec: Spec) -> tuple:
    """What a head is made for: channels and size of every backbone output, and the classes."""
    read = {name: spec.features[name] for name in outputs(spec.features)}
    maps = {name: (feature.channels, feature.height, feature.width) for name, feature in read.items()}
    return maps, spec.num_classes, spec.classes


@dataclass
class DLNConfig(KTANConfig):
    """KTAN's settings, of which those of the adversary are not read."""

    section: ClassVar[str] = "dln"


class DLN(KTAN):
    """Directly learning network: KTAN without its adversary (same papers). Stages: regressor, distill."""

    name = "dln"
    Config = DLNConfig
    config: DLNConfig
    adversarial = False
