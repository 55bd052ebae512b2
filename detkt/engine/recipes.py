"""The papers' tables: which runs make each, on top of its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from detkt.base.errors import InputError, suggestion
from detkt.config import Config, find_config, load_config
from detkt.engine.comparison import run_config
from detkt.engine.jobs import Job
from detkt.kinds import kind_of

TEACHER = "teacher"


@dataclass(frozen=True)
class Recipe:
    """A table of a paper.

    Attributes:
        title: what it is.
        config: the pair's config, whose ``paper`` has the rows and their numbers.
        data: what ``detkt prepare`` calls the data set; None: nobody can download it, it has to be there.
        from_plain: the rows whose students begin where the plain student of their seed ended.
        teacher: settings of the teacher's own training.
        rows: settings of single rows.
    """

    title: str
    config: str
    data: str | None
    from_plain: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def load(self, overrides: Sequence[str] = (), row: str | None = None) -> Config:
        """The config, with the settings of *row* (a method, or ``teacher``) and then *overrides*."""
        own = self.teacher if row == TEACHER else self.rows.get(row or "", ())
        return load_config(find_config(self.config), [*own, *overrides])

    def methods(self) -> list[str]:
        """The rows of the paper's table, the plain student first."""
        return sorted((name for name in self.load().paper if name != TEACHER), key=lambda name: name != "none")


_DISTILLED = ("kd", "fitnet", "at", "dln", "ktan", "ktan+kd")
# A rate of 0.01 a batch of 32 in place of 0.2.
_SLOWER = {name: ("train.lr_per_image=0.0003125",) for name in _DISTILLED}


def _ktan(data: str) -> Recipe:
    """KTAN's pair of both CIFARs; its students begin where the plain one ended."""
    title = f"KTAN, Table 1: {data.upper().replace('CIFAR', 'CIFAR-')}, ResNet-1001 / Inception-BN"
    return Recipe(title, f"{data}_resnet1001_inception", data, from_plain=_DISTILLED, rows=_SLOWER)


def _representing(data: str, config: str, student: str) -> Recipe:
    """KR's own students are smaller, and learn with a tenth of the rate."""
    own = (f"student.architecture={student}", "train.lr_per_image=0.000078125")
    rows = {name: own for name in ("kr", "kr-dense", "kr+kdgan")}
    title = f"Knowledge Representing, {data.upper()}: {config.partition('_')[2]}"
    return Recipe(title, config, "cifar10" if data == "cifar10" else "cifar100", rows=rows)


def _factor_transfer(config: str) -> Recipe:
    data, _, pair = config.partition("_")
    return Recipe(f"Factor Transfer, {data.upper()}: {pair}", config, data)


_FT_PAIRS = (
    "cifar10_resnet56_resnet20",
    "cifar10_wrn40_resnet20",
    "cifar10_wrn46_vgg13",
    "cifar10_wrn16_wrn16",
    "cifar10_wrn40_1_wrn16_1",
    "cifar10_wrn40_2_wrn16_2",
    "cifar10_wrn40_2_wrn40_1",
    "cifar100_wrn40_2_wrn40_1",
    "cifar100_resnet110_resnet56",
    "cifar100_resnet110_resnet20",
)

RECIPES: dict[str, Recipe] = {
    "voc2007-table2": Recipe(
        "KTAN, Table 2: Faster R-CNN on VOC 2007, ResNet-152 / ResNet-50",
        "voc2007_resnet152_resnet50",
        "voc2007",
        from_plain=("dln", "ktan", "ktan+kd"),
    ),
    "voc2007-ft": Recipe(
        "Factor Transfer, Table 6: Faster R-CNN on VOC 2007, ResNet-101 / VGG-16",
        "voc2007_resnet101_vgg16",
        "voc2007",
        teacher=("train.weight_decay=0.0001", "train.clip_norm=0"),
    ),
    "cifar10-ktan": _ktan("cifar10"),
    "cifar100-ktan": _ktan("cifar100"),
    "cifar10-kr": _representing("cifar10", "cifar10_resnet26_resnet8", "cifar_resnet8x1.1"),
    "cifar100-kr": _representing("cifar100", "cifar100_resnet32_resnet14", "cifar_resnet14x0.98"),
    "tcifar100-kr": _representing("tcifar100", "tcifar100_resnet32_resnet14", "cifar_resnet14x0.98"),
    **{name.replace("_", "-").replace("-", "-ft-", 1): _factor_transfer(name) for name in _FT_PAIRS},
    "imagenet-ft": Recipe("Factor Transfer, ImageNet: ResNet-34 / ResNet-18", "imagenet_resnet34_resnet18", None),
    "imagenet-kr": Recipe(
        "Knowledge Representing, Table 3: ImageNet, ResNet-101 / Inception-BN (here GoogLeNet)",
        "imagenet_resnet101_inception",
        None,
        rows=dict.fromkeys(
            ("kr", "kr-dense", "kr+kdgan"), ("train.lr_per_image=0.00001953125", "train.weight_decay=0.00001")
        ),
    ),
}


def find_recipe(name: str) -> Recipe:
    """The recipe *name*; InputError, with the nearest, where there is none."""
    if name not in RECIPES:
        raise InputError(f"unknown table '{name}'{suggestion(name, RECIPES)}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]


@dataclass(frozen=True)
class Plan:
    """The runs of a table: those of *first* need nothing, those of *then* read the models of the former."""

    first: list[Job]
    then: list[Job]

    @property
    def jobs(self) -> list[Job]:
        """All of them."""
        return [*self.first, *self.then]

    def students(self) -> list[Job]:
        """All but the teacher's."""
        return [job for job in self.jobs if job.config.role == "student"]


def plan(
    recipe: Recipe,
    methods: Sequence[str],
    seeds: Sequence[int],
    root: Path,
    overrides: Sequence[str] = (),
    call: Sequence[str] = (),
) -> Plan:
    """What is to be trained for the rows *methods*.

    Args:
        recipe: the table.
        methods: some of its rows.
        seeds: of the students; the teacher is one, with the seed 0.
        root: where the runs go: ``teacher`` and ``NAME-sSEED``.
        overrides: settings of all runs, after the recipe's own.
        call: the command that makes all, to which ``--only RUN`` is added.

    Raises:
        InputError: a row is not of the table, or a setting is wrong.
    """
    known = recipe.methods()
    for method in methods:
        if method not in known:
            raise InputError(f"--rows: no row '{method}'{suggestion(method, known)}; there are: {', '.join(known)}")
    first: list[Job] = []
    then: list[Job] = []

    def job(name: str, config: Config) -> Job:
        return Job(name, config, root / name, (*call, "--only", name))

    base = recipe.load(overrides)
    trains_teacher = not kind_of(base).has_trained(base.teacher)
    if trains_teacher:
        config = run_config(recipe.load(overrides, TEACHER), "none", 0)
        config.role = "teacher"
        first.append(job(TEACHER, config))
    started = any(method in recipe.from_plain for method in methods)
    for seed in seeds:
        for method in dict.fromkeys(["none"] * started + list(methods)):
            config = run_config(recipe.load(overrides, method), method, seed)
            if config.needs_teacher and trains_teacher:
                config.teacher = replace(config.teacher, weights=None, checkpoint=str(root / TEACHER))
            if method in recipe.from_plain:
                config.student = replace(config.student, weights=None, checkpoint=str(root / f"none-s{seed}"))
            (then if config.needs_teacher else first).append(job(f"{method}-s{seed}", config))
    return Plan(first, then)
