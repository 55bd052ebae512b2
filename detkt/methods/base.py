"""The interface of a distillation method: stages, players, updates.

A method turns the teacher's and the student's `detkt.knowledge.Knowledge` into losses. It knows
neither detectors nor classifiers, neither optimizers nor schedules. A new method is one file in this
folder that defines a subclass of `Method` with a ``name``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Flag, auto
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from detkt.base.errors import InputError, suggestion
from detkt.knowledge import FeatureSpec, Knowledge, Rows, Scores, Spec, known

STUDENT = "student"
OPTIMIZERS = ("sgd", "adam")


class Needs(Flag):
    """The passes that a stage reads, combined with ``|``.

    ``STUDENT``: forward of the student with its task losses; the stage then counts towards the student's budget of
    updates. ``STUDENT_FEATURES``: its maps alone, of a net that does not learn. ``STUDENT_LOGITS``: its class scores.
    ``TEACHER_FEATURES``, ``TEACHER_LOGITS``: the frozen teacher's maps and class scores. ``BOXES``: where objects are;
    ``ANCHORS``: the student's own, of each of its outputs. ``TEACHER_CONFIDENCE``: how sure the teacher is of an object
    in each cell of its outputs. ``HEADS``: the towers of both nets' dense heads (RetinaNet, FCOS). Classifiers have
    none of these four.
    """

    NOTHING = 0
    STUDENT = auto()
    STUDENT_FEATURES = auto()
    STUDENT_LOGITS = auto()
    TEACHER_FEATURES = auto()
    TEACHER_LOGITS = auto()
    BOXES = auto()
    ANCHORS = auto()
    TEACHER_CONFIDENCE = auto()
    HEADS = auto()


@dataclass(frozen=True)
class Stage:
    """A part of the training in which the same players learn from the same passes.

    Attributes:
        name: as shown in the progress bar and the log.
        needs: the passes to run.
        players: who learns.
        steps: how many batches; None: until the student's budget is used up (the last stage).
        every: how often the stage is what it says: its first batch of so many; the others are run as ``between``.
        between: a stage of no more passes and players than this one, which trains the student if this one does.

    Raises:
        ValueError: ``every`` or ``between`` without the other, or a stage between that does more.
    """

    name: str
    needs: Needs
    players: tuple[str, ...] = (STUDENT,)
    steps: int | None = None
    every: int = 1
    between: Stage | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or (self.between is None) != (self.every == 1):
            raise ValueError(
                f"stage '{self.name}' has every={self.every}: with 2 or more, and only then, it needs a stage between"
            )
        if (other := self.between) and not (
            other.needs in self.needs
            and set(other.players) <= set(self.players)
            and other.trains_student == self.trains_student
            and other.between is None
        ):
            raise ValueError(
                f"stage '{self.name}': the stage '{other.name}' between needs passes or players that '{self.name}' has "
                "not, or trains the student where that does not"
            )

    @property
    def trains_student(self) -> bool:
        return Needs.STUDENT in self.needs

    def turn(self, step: int) -> Stage:
        """What batch number *step* of this stage is run as: this stage, or the one between."""
        return self if self.between is None or step % self.every == 0 else self.between


@dataclass
class Update:
    """What a method adds for one player: minimise the sum of *losses* over its parameters.

    The student's task losses are not among them: the engine adds these (`with_task`).

    Attributes:
        player: whose parameters.
        losses: scalars by name.
        metrics: scalars by name that are only logged.
        task_weights: by name, factors on task losses, for a method that puts its own term in the place of a share of
            one (KD). A task loss that is not named keeps its weight of 1. Only for the player ``student``.
    """

    player: str
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    task_weights: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: Update) -> Update:
        """Both updates of one player as one: terms of one name are added, and so is what is taken from a task loss."""
        losses, weights = dict(self.losses), dict(self.task_weights)
        for name, loss in other.losses.items():
            losses[name] = losses[name] + loss if name in losses else loss
        for name, weight in other.task_weights.items():
            weights[name] = weights.get(name, 1.0) + weight - 1.0
        return Update(self.player, losses, self.metrics | other.metrics, weights)

    def with_task(self, losses: Mapping[str, Tensor]) -> Update:
        """This update of the student's with its task *losses* before its own terms, each times its weight."""
        weighted = {name: self.task_weights.get(name, 1.0) * loss for name, loss in losses.items()}
        return replace(self, losses=weighted | self.losses, task_weights={})

    @property
    def total(self) -> Tensor:
        return torch.stack([loss.float() for loss in self.losses.values()]).sum()


@dataclass(frozen=True)
class Player:
    """Modules that learn together and how: an SGD or Adam of their own.

    The player ``student`` names only the method's nets that learn *with* the student, in its optimizer. ``scheduled``:
    the trainer scales ``lr`` by the factor of the student's schedule, for players that must not outpace it.
    """

    modules: tuple[nn.Module, ...]
    optimizer: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0
    clip_norm: float | None = 10.0
    scheduled: bool = False


@dataclass(frozen=True)
class Watch:
    """A sign of trouble in what is logged, of which the run warns once and goes on.

    Attributes:
        sign: what is seen, in words; advice: what to change.
        names: the logged losses and metrics that it is read from; a log line that lacks one (of another stage) is
            passed over.
        seen: whether a line's values, by name, show it; the second argument holds those of the first line.
        updates: how long every line has to show it before it is told.
    """

    sign: str
    advice: str
    names: tuple[str, ...]
    seen: Callable[[Mapping[str, float], Mapping[str, float]], bool]
    updates: int = 200


class Heads(Protocol):
    """The task heads of both nets on the current batch, for methods that ask what a map is worth."""

    def task_losses(self, features: dict[str, Tensor], role: str) -> dict[str, Tensor]:
        """Task losses of the frozen head of *role* (``student`` | ``teacher``) read from *features*.

        Gradients reach *features* but the head's batch norm statistics stay as they are.
        """
        ...

    def rows(self, features: dict[str, Tensor], role: str) -> Rows:
        """What the frozen head of *role* makes of *features*, in the student's rows of this batch.

        These are its sampled regions, the anchors of objects and those that it scores highest, or the pictures. Only
        where the stage's ``needs`` name ``STUDENT``. Gradients reach *features* alone.
        """
        ...

    def objectness(self, features: dict[str, Tensor], role: str) -> dict[str, Tensor]:
        """How the frozen head of *role* scores each anchor of every cell of *features*, before any is chosen.

        Before the sigmoid, (N, A, H, W) by output; of two stages alone. Gradients reach *features* alone.
        """
        ...

    def remaining(self, classification: list[Tensor], regression: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What is left of the teacher's dense head, behind `detkt.knowledge.Dense`'s maps, on maps like these.

        Class scores before the sigmoid (N, R, K) and boxes (N, R, 4) in pixels; gradients reach the maps.
        """
        ...


@dataclass(frozen=True)
class LayerPair:
    """A student's layer and the teacher's layer it learns from."""

    student: str
    teacher: str

    @property
    def key(self) -> str:
        """A name usable in an ``nn.ModuleDict``."""
        return self.student.replace(".", "_")

    @classmethod
    def parse(cls, text: str) -> LayerPair:
        """``layer3`` (same name in both nets) or ``STUDENT=TEACHER``, e.g. ``features.28=layer3``."""
        student, _, teacher = text.partition("=")
        return cls(student.strip(), (teacher or student).strip())


@dataclass
class MethodConfig:
    """Settings every method has.

    ``preset``: ``default`` (what works here), ``paper`` (the paper's own numbers, where they differ), or what else the
    method has, as ``official`` (those of the authors' code, where they differ from the text).
    ``layers``: names of the layers to transfer, each ``NAME`` or ``STUDENT=TEACHER``; empty: the backbone's
    outputs.
    ``balance``: the share of the task's gradient that the method's term is held to (each of two, as of classes and
    boxes), measured at the student's maps (`detkt.methods.balance`); 0: the weight as it is.
    """

    preset: str = "default"
    layers: list[str] = field(default_factory=list)
    balance: float = field(default=0.0, kw_only=True)


class Method(nn.Module):
    """Base class of all methods. Subclasses set ``name`` and implement ``step``; ``stages``, if they have several."""

    name: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {}, "paper": {}}
    needs_teacher: ClassVar[bool] = True
    needs: ClassVar[Needs] = Needs.STUDENT | Needs.TEACHER_FEATURES
    reads_student_head: bool = False  # before the student learns: then it has to be trained already

    def __init__(self, config: MethodConfig, student: Spec, teacher: Spec | None) -> None:
        super().__init__()
        self.config = config
        self.student_spec = student
        self.teacher_spec = teacher

    @classmethod
    def layer_pairs(cls, config: MethodConfig) -> list[LayerPair]:
        """The layers both nets must reveal beside their outputs."""
        return [LayerPair.parse(text) for text in config.layers]

    def pairs(self) -> list[LayerPair]:
        """The configured layer pairs, or the backbone outputs of both nets that have one stride.

        Raises:
            InputError: no output of the student's has a counterpart, or a student's layer is named twice.
        """
        if self.config.layers:
            pairs = self.layer_pairs(self.config)
            if len({pair.key for pair in pairs}) < len(pairs):
                raise InputError(
                    f"methods.{self.name}.layers names a student's layer twice: {', '.join(self.config.layers)}"
                )
            return pairs
        student, teacher = self.student_spec.features, known(self.teacher_spec).features
        heights = self.student_spec.height, known(self.teacher_spec).height
        larger = heights[1] / heights[0] if all(heights) else 1.0
        pairs = [LayerPair(*names) for names in match_by_stride(student, teacher, larger)]
        if not pairs:
            raise InputError(
                f"method '{self.name}': no backbone output of the student ({_told(self.student_spec)}) has a "
                f"counterpart of its stride among the teacher's ({_told(known(self.teacher_spec))}); name layers with "
                f"methods.{self.name}.layers=[STUDENT=TEACHER]"
            )
        return pairs

    def pair_specs(self, pair: LayerPair) -> tuple[FeatureSpec, FeatureSpec]:
        """Student's and teacher's map of *pair*.

        Raises:
            InputError: a net has no such map.
        """
        student, teacher = self.student_spec, known(self.teacher_spec)
        for role, name, spec in (("student", pair.student, student), ("teacher", pair.teacher, teacher)):
            if name not in spec.features:
                raise InputError(
                    f"methods.{self.name}.layers: the {role} has no map '{name}'{suggestion(name, spec.features)}; "
                    f"it has: {', '.join(spec.features)}"
                )
        return student.features[pair.student], teacher.features[pair.teacher]

    def stages(self) -> Sequence[Stage]:
        """The parts of the training, in order. Here: one that trains the student, with the passes of ``needs``."""
        return [Stage("distill", self.needs)]

    def players(self) -> dict[str, Player]:
        """The method's own nets by player; see `Player`."""
        return {}

    def share_settings(self) -> Mapping[str, str]:
        """The student's terms that can be held to a share of the task's gradient, and the setting that holds each."""
        return {self.name: "balance"}

    def shares(self) -> dict[str, float]:
        """The student's terms, by name, that are held to a share of the task's gradient, and to which.

        Raises:
            InputError: a share is no number of at least 0.
        """
        keys = self.share_settings()
        for key in keys.values():
            self.require(key, 0 <= getattr(self.config, key) < math.inf, "a number of at least 0")
        return {term: share for term, key in keys.items() if (share := getattr(self.config, key))}

    def weights_without_use(self) -> list[str]:
        """What to tell of a preset whose weights a share replaces, as a config may hold one: a line a method."""
        section = f"methods.{self.name}"
        keys = [key for key in dict.fromkeys(self.share_settings().values()) if getattr(self.config, key)]
        if self.config.preset == "default" or not keys:
            return []
        told = " and ".join(f"{section}.{key}={getattr(self.config, key):g}" for key in keys)
        return [
            f"{section}.preset={self.config.preset}: {told} holds the term to a share of the task's gradient, whatever "
            "the preset's weight; set it to 0 for that weight"
        ]

    def watches(self) -> Sequence[Watch]:
        """Signs of trouble in the method's logged losses and metrics; see `Watch`."""
        return []

    def step(self, stage: Stage, student: Knowledge, teacher: Knowledge, heads: Heads) -> Iterator[Update]:
        """Yield what the method adds on one batch, player by player, the student's last.

        *student* and *teacher* have what the stage's ``needs`` name; a net of which they name nothing is None.

        Each update is applied before the generator goes on. (A user's own loop applies the student's after the call: a
        later one would change weights in its graph.) Nothing need be yielded for the student: its task losses are
        minimised in any case.
        """
        raise NotImplementedError

    def views(self, student: Knowledge, teacher: Knowledge) -> dict[str, Tensor]:
        """Maps (N, C, H, W) to look at, by title: from the teacher's to the student's, what is compared in between.

        Here: those of the configured layers, or all backbone outputs. A method that makes other maps of them to
        compare shows these, too. *teacher* is None for a method that needs none.
        """
        pairs = self.layer_pairs(self.config)
        networks = {"teacher": teacher, "student": student} if teacher is not None else {"student": student}
        views: dict[str, Tensor] = {}
        for role, knowledge in networks.items():
            names = [getattr(pair, role) for pair in pairs] or outputs(knowledge.features)
            views |= {view_title(role, name): knowledge.features[name] for name in names}
        return views

    def require(self, key: str, holds: bool, rule: str) -> None:
        """Raise InputError unless the setting *key* is as the *rule* says: it must be ..."""
        if not holds:
            raise InputError(f"methods.{self.name}.{key} is {getattr(self.config, key)}: it must be {rule}")

    def require_not_negative(self, *keys: str) -> None:
        """Raise InputError for the first of the settings *keys* that is set below 0."""
        for key in keys:
            self.require(key, (getattr(self.config, key) or 0) >= 0, "0 or more")

    def require_no_layers(self) -> None:
        """Raise InputError if layers are set for a method that compares scores."""
        if self.config.layers:
            raise InputError(
                f"methods.{self.name}.layers: {self.name} reads class scores and no layers; leave it empty"
            )

    def require_same_classes(self) -> None:
        """Raise InputError unless the scores of both nets can be compared, row by row and class by class.

        Each class is scored by itself or all by one softmax, the rows are pictures, regions, or the same anchors; and
        both nets score the same classes in the same order, or some classes are known to both.
        """
        student, teacher = self.student_spec, known(self.teacher_spec)
        for role, spec in (("student", student), ("teacher", teacher)):
            if spec.scores is None:
                raise InputError(
                    f"method '{self.name}' compares the class scores of regions or anchors, and the {role} is a "
                    "detector whose head has none that can be read; use a feature method"
                )
        ours, theirs = known(student.scores), known(teacher.scores)
        if ours.of != theirs.of:
            stages = {"regions": "two stages, which scores regions", "anchors": "one stage, which scores anchors"}
            raise InputError(
                f"method '{self.name}' compares the class scores of regions or of anchors, but the student is a "
                f"detector of {stages[ours.of]}, and the teacher of {stages[theirs.of]}; use a feature method"
            )
        if ours.sigmoid != theirs.sigmoid:
            ends = ("softmax over all classes", "sigmoid for each class")
            raise InputError(
                f"method '{self.name}' compares class scores, but the student's head ends in a {ends[ours.sigmoid]}, "
                f"and the teacher's in a {ends[theirs.sigmoid]}; use a feature method"
            )
        self._require_same_anchors(ours, theirs)
        if not ours.shared:
            self._require_one_class_list(student, teacher)

    def _require_same_anchors(self, ours: Scores, theirs: Scores) -> None:
        require_one_size(self.name, theirs)
        if ours.anchors is None or theirs.anchors is None:
            return
        counts = len(ours.anchors), len(theirs.anchors)
        if counts[0] != counts[1] or not torch.allclose(ours.anchors, theirs.anchors, atol=0.5):
            how = f"{counts[0]} and {counts[1]} on one picture" if counts[0] != counts[1] else "other shapes"
            raise InputError(
                f"method '{self.name}' compares the class scores of anchors, but student and teacher have other "
                f"anchors ({how}); give both one anchor generator and levels of the same strides, or use a feature "
                "method"
            )

    def _require_one_class_list(self, student: Spec, teacher: Spec) -> None:
        if not known(student.scores).every:
            raise InputError(
                f"method '{self.name}' compares class scores, but student and teacher have no class in common; map the "
                "student's classes to the teacher's, or use a feature method"
            )
        if student.num_classes != teacher.num_classes:
            raise InputError(
                f"method '{self.name}' compares class scores, but the student has {student.num_classes} classes and "
                f"the teacher {teacher.num_classes}; train both on the same class list or use a feature method"
            )
        if student.classes and teacher.classes and student.classes != teacher.classes:
            odd = next(pair for pair in zip(student.classes, teacher.classes, strict=True) if pair[0] != pair[1])
            raise InputError(
                f"method '{self.name}' compares class scores, but the class lists differ: student '{odd[0]}' where the "
                f"teacher has '{odd[1]}'; use the teacher's class order"
            )


def require_one_size(name: str, theirs: Scores | None) -> None:
    """Raise InputError where the anchors of a teacher's are those of a picture of another size."""
    if theirs is not None and theirs.resized:
        raise InputError(
            f"method '{name}' compares what two heads make of the same anchors, and with teacher.own_size the "
            "teacher's pictures have another size and other anchors; leave own_size out, or use a feature method"
        )


def require_offered(method: Method, offered: Needs) -> None:
    """Raise InputError if a stage of *method* reads what the networks do not have: boxes, anchors, heads."""
    other = "choose a method that compares maps or class scores"
    for need, what, who, instead in (
        (Needs.BOXES, "the boxes of objects", "this student does", other),
        (Needs.ANCHORS, "the student's anchors", "this student does", other),
        (Needs.TEACHER_CONFIDENCE, "scores of every cell", "this teacher does", "weigh all cells alike"),
        (Needs.HEADS, "the towers of two RetinaNets or FCOSs", "this student and teacher do", other),
    ):
        if need not in offered and any(need in stage.needs for stage in method.stages()):
            raise InputError(f"method '{method.name}' needs {what}, which {who} not have; {instead}")


def outputs(features: Iterable[str]) -> list[str]:
    """The backbone's outputs among the names of *features*: ``output``, or a pyramid's ``output.<level>``."""
    return [name for name in features if name.split(".")[0] == "output"]


def match_by_stride(
    student: Mapping[str, FeatureSpec], teacher: Mapping[str, FeatureSpec], larger: float = 1.0
) -> list[tuple[str, str]]:
    """Names of the outputs of two nets that were probed on one picture, paired where their strides are nearest.

    The teacher saw it *larger* times as high.

    A pair's heights differ by less than the square root of 2, half of what one stride differs from the next; each map
    is in one pair at most. Names say nothing: level 0 has stride 4 in one pyramid and 32 in another. Two nets of one
    output each are a pair whatever their sizes.
    """
    pairs, taken = [], set[str]()
    if len(only := outputs(student)) == len(others := outputs(teacher)) == 1:
        return [(only[0], others[0])]
    for name in outputs(student):
        ours = student[name]
        near = [
            (abs(math.log2(teacher[other].height / ours.height / larger)), other)
            for other in outputs(teacher)
            if other not in taken
        ]
        distance, other = min(near, default=(math.inf, ""), key=lambda pair: pair[0])
        if distance < 0.5:
            pairs.append((name, other))
            taken.add(other)
    return pairs


def _told(spec: Spec) -> str:
    """A network's outputs with their strides, or their sizes where the probed picture's is not known."""
    told = []
    for name in outputs(spec.features):
        feature = spec.features[name]
        size = f"stride {spec.height / feature.height:.3g}" if spec.height else f"{feature.height} x {feature.width}"
        told.append(f"{name} {size}")
    return ", ".join(told) or "no map"


def view_title(what: str, layer: str) -> str:
    """What `Method.views` calls a map: ``teacher``, or ``teacher, layer2`` of another layer than the output."""
    return what if layer == "output" else f"{what}, {layer}"


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Gradients pass through *modules* but none is computed for their parameters."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def choose(name: str, choices: Iterable[str], what: str) -> str:
    """*name* if it is among *choices*, else an InputError that suggests the nearest."""
    choices = list(choices)
    if name not in choices:
        raise InputError(f"unknown {what} '{name}'{suggestion(name, choices)}; there are: {', '.join(choices)}")
    return name
