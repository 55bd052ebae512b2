"""Typed configuration: dataclasses, filled from a YAML file, then from dotted overrides (OmegaConf)."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detkt import methods
from detkt.base.errors import InputError, first_line, suggestion, suggestion_or_all
from detkt.base.paths import SHIPPED, resolve
from detkt.base.settings import wrong_value

_OF_DETECTORS = ("voc", "coco", "yolo", "shapes")
FORMATS = (*_OF_DETECTORS, "cifar10", "cifar100", "tcifar100", "mnist", "fashion-mnist", "imagenet", "folder")


@dataclass
class DataConfig:
    """Where pictures come from.

    ``format``: for detectors ``voc`` (any VOC-format folder), ``coco`` (JSON files), ``yolo`` (``data.yaml`` and text
    files) or ``shapes`` (scenes drawn once into ``root``, see ``shapes``); for classifiers one of the other
    :data:`FORMATS`. ``root``: the data set's folder; None: the usual one below ``data/``. ``year``: which ``VOC<year>``
    below it, for names of lists without a year.
    ``train``, ``test``: names of splits, several joined by ``+``: lists in ImageSets/Main, each optionally
    ``YEAR:LIST``, JSON files, keys of ``data.yaml``. A part can be held out: ``train[:-5000]``, ``train[-5000:]``.
    ``val``: another split, by which the best model of a run is chosen; None: its last model is its only one.
    ``classes``: None takes those that the data set names; in VOC's format VOC's or, in a folder with names of its own,
    those found. ``keep_difficult``: learn VOC's difficult objects, too.
    ``flip``: probability; ``color``: strength of colour jitter in [0, 1]; ``scale``: range of random zoom.
    ``boxes``: ``clip`` cuts boxes that reach beyond their picture, ``refuse`` stops at them. ``exif``: ``apply`` turns
    pictures as their EXIF orientation says where the annotation's size does not tell, ``ignore`` does not.
    ``max_pixels``: larger pictures are refused.
    ``cache``: a folder for training pictures decoded and reduced to the detector's size, once; for detectors.
    ``shapes``: how many scenes are drawn and of what (:class:`~detkt.data.shapes.ShapesConfig`).


    ``image_size``: side of the square crop in pixels, 0: pictures as they are, kept decoded in memory and cropped after
    zero padding. ``crop_padding``: of so many pixels. ``mean``, ``std``: a channel, of pictures in
    [0, 1]; empty: the data set's own.
    """

    format: str = "voc"
    root: str | None = None
    year: str = "2007"
    train: str = "trainval"
    test: str = "test"
    val: str | None = None
    classes: list[str] | None = None
    keep_difficult: bool = False
    flip: float = 0.5
    color: float = 0.0
    scale: list[float] = field(default_factory=lambda: [1.0, 1.0])
    boxes: str = "clip"
    exif: str = "apply"
    max_pixels: float = 178_956_970
    cache: str | None = None
    shapes: dict[str, Any] = field(default_factory=dict)
    image_size: int = 0
    crop_padding: int = 4
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)


@dataclass
class NetConfig:
    """A detector or a classifier.

    ``architecture``: its name. ``weights``: ``imagenet``; of a detector ``torchvision`` or ``torchvision:COCO_V1``,
    torchvision's own of the same name with a new predictor; a file of (partial) weights; or None. ``checkpoint``: a
    trained detkt model (folder or .safetensors), whose architecture and classes must agree; ``options``: those of
    ``build_detector`` or ``build_classifier``.
    """

    architecture: str = "fasterrcnn_resnet50_c4"
    weights: str | None = None
    checkpoint: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class StudentConfig(NetConfig):
    """``inherit``: parts of the teacher that the student starts from, ``neck`` and ``head``, where shapes agree."""

    inherit: list[str] = field(default_factory=list)


@dataclass
class TeacherConfig(NetConfig):
    """A teacher may come from elsewhere, and know other classes.

    ``checkpoint``: besides, ``torchvision:NAME`` or ``torchvision:NAME@COCO_V1``, a detector that torchvision has
    trained; or a file of plain weights of a whole detector ``architecture``. ``classes``: the names of those that such
    a file scores, in their order; None: the run's or COCO's, where they are as many. ``class_map``: a class of the
    student -> the teacher's class that it is, null for none; others are found by name. ``own_size``: of detectors, the
    teacher sees the pictures at its own ``min_size`` and ``max_size``, not at the student's.
    """

    classes: list[str] | None = None
    class_map: dict[str, Any] = field(default_factory=dict)
    own_size: bool = False


@dataclass
class TrainConfig:
    """The budget and the student's optimizer (SGD).

    ``epochs``: passes over the training pictures. ``lr_per_image``: times the batch size it is the learning rate.
    ``momentum``, ``weight_decay``: of SGD. ``milestones``: shares of the student's updates after which the rate is
    multiplied. ``gamma``: by so much. ``poly_power``: besides, it falls as (1 - share of the updates done) to this
    power; 0: not. ``warmup_steps``: linear, from a tenth of the rate, over a tenth of the run at most.
    ``clip_norm``: largest norm of the gradient; 0: any.
    ``batch_size``: pictures of an update, those of all processes of ``torchrun`` and of all parts together.
    ``accumulate``: in so many parts it is computed. ``seed``: of all random numbers. ``device``: ``auto``, ``cpu``,
    ``cuda``, ``cuda:N``. ``precision``: ``fp32``, ``bf16``, ``fp16``. ``workers``: processes that load pictures.
    ``group_by_aspect``: batches of wide or of tall pictures, to waste less padding.
    ``log_every``: steps of a line in ``log.jsonl``. ``checkpoint_every``: steps from one ``last.pt`` to the next.
    ``keep``: how many checkpoints, ``last.pt`` and those before it as ``checkpoint-<step>.pt``.
    ``compile``: translate the backbones with ``torch.compile`` at the first step of each stage; this takes a while, and
    numbers agree with uncompiled ones to rounding.
    ``cache_teacher``: a folder for the teacher's maps of the training pictures, so that no step runs the teacher's
    backbone; with no augmentation but flips (:mod:`detkt.engine.teacher_cache`); unused where there is no teacher.
    ``tracker``: where the logged numbers go besides: ``tensorboard``, ``wandb``, ``mlflow``, ``none``; ``auto`` is
    TensorBoard where installed. ``stage_limit``: most steps of a stage, for a trial; 0: all.
    """

    epochs: int = 14
    batch_size: int = 2
    lr_per_image: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 1e-4
    milestones: list[float] = field(default_factory=lambda: [0.7])
    gamma: float = 0.1
    poly_power: float = 0.0
    warmup_steps: int = 500
    clip_norm: float = 10.0
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    workers: int = 2
    accumulate: int = 1
    group_by_aspect: bool = True
    compile: bool = False
    cache_teacher: str | None = None
    log_every: int = 20
    checkpoint_every: int = 500
    keep: int = 1
    tracker: str = "auto"
    stage_limit: int = 0


@dataclass
class Config:
    """A data set, a teacher/student pair, the budget, and the methods' settings for them (a section a method).

    ``name``: of the pair, by default the file's. ``method``: the student's, or a sum such as ``ktan+kd``. ``role``:
    which of the two is trained, ``student`` or ``teacher``.
    ``paper``: published scores of the pair by method, in percent, shown beside ours.
    """

    name: str = "custom"
    method: str = "ktan"
    role: str = "student"
    data: DataConfig = field(default_factory=DataConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    paper: dict[str, float] = field(default_factory=dict)

    @property
    def trained_net(self) -> NetConfig:
        """The network that is trained, as ``role`` has it."""
        return self.teacher if self.role == "teacher" else self.student

    @property
    def needs_teacher(self) -> bool:
        """Whether ``method``, or a part of the sum that it is, has a teacher."""
        return any(cls.needs_teacher for cls in methods.classes(self.method))

    @property
    def method_name(self) -> str:
        """What the method is called: ``sp+kd`` where ``method`` is ``path/to/file.py:Similarity+kd``."""
        return "+".join(cls.name for cls in methods.classes(self.method))

    @property
    def label(self) -> str:
        """The method, and what a student that did not start alone has from its teacher: ``ktan, inherits neck``."""
        inherited = "+".join(self.student.inherit)
        return f"{self.method_name}, inherits {inherited}" if inherited else self.method_name

    @property
    def run_name(self) -> str:
        """What a run's folder is called by default."""
        role = "teacher-" if self.role == "teacher" else ""
        return f"{self.name}-{role}{self.label.replace(', ', '-').replace(' ', '-')}-s{self.train.seed}"

    def method_settings(self) -> dict[str, Any] | None:
        """The settings of ``method`` as :class:`detkt.Distiller` takes them: a section a method only for a sum."""
        name = self.method_name
        return self.methods if "+" in name else self.methods.get(name)


def find_config(name: str | Path) -> Path:
    """The config file *name*: a path, or the name of one of detkt's own configs, with or without ``.yaml``.

    Raises:
        InputError: a bare name that neither a file nor a config of detkt has.
    """
    path, bare = resolve(name), len(Path(name).parts) == 1
    if path.is_file() or not bare:
        return path
    own = {file.stem: file for file in (SHIPPED / "configs").glob("*.yaml")}
    stem = path.name.removesuffix(".yaml")
    if stem not in own:
        raise InputError(
            f"config '{name}' is neither a file nor one of detkt's own{suggestion(stem, own)}; those are in "
            f"{SHIPPED / 'configs'}"
        )
    return own[stem]


def load_config(path: str | Path, overrides: Sequence[str] = (), others: Iterable[str] = ()) -> Config:
    """Read a YAML file, apply ``section.key=value`` overrides, and check every key, type and range.

    *others*: methods beside the config's own that may have settings in it, where they are named by their file.

    Raises:
        InputError: no such file, YAML that does not parse, an unknown key (with a suggestion), a value of the wrong
            type or out of range.
    """
    path = Path(path)
    content = _read(path)
    config = OmegaConf.structured(Config(name=path.stem))
    where = f"config file {path}: "
    _merge(config, content, where)
    _apply(config, overrides)
    result = _filled(config, where)
    result.method = methods.absolute(result.method)
    _check(result, others)
    _take_published_architecture(result.teacher)
    return result


def load_data_config(path: str | Path) -> DataConfig:
    """The section ``data`` of a run's config, alone: of a method that is a file of somebody's, nothing is run.

    Raises InputError as `load_config` does.
    """
    config, where = OmegaConf.structured(Config()), f"config file {path}: "
    _merge(config, {"data": _read(Path(path)).get("data", {})}, where)
    return _checked_data(config, where)


def data_config(overrides: Sequence[str] = (), **given: Any) -> DataConfig:
    """The section ``data`` with the keys *given*, then overrides of it, ``data.key=value``, for tools without a config.

    Raises InputError as `load_config` does, and for an override of anything else.
    """
    for override in overrides:
        if not override.startswith("data."):
            raise InputError(f"'{override}': only settings of the data can be given here, as data.key=value")
    config = OmegaConf.structured(Config(data=DataConfig(**given)))
    _apply(config, overrides)
    return _checked_data(config, "override: ")


def _checked_data(config: DictConfig, where: str) -> DataConfig:
    result = _filled(config, where)
    _check(result, ())
    return result.data


def _filled(config: DictConfig, where: str) -> Config:
    try:
        return cast(Config, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:  # an interpolation ${...} that leads nowhere, a mandatory ???
        raise InputError(f"{where}{first_line(error)}") from None


def _read(path: Path) -> dict[str, Any]:
    """The content of a YAML file of keys and values."""
    try:
        content = _parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"config file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"config file {path}: not a text file") from None
    except RecursionError:
        raise InputError(f"config file {path}: nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"config file {path}{line}: {getattr(error, 'problem', None) or 'not YAML'}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"config file {path}: expected 'key: value' lines, found a {type(content).__name__}")
    return content


def _apply(config: DictConfig, overrides: Sequence[str]) -> None:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise InputError(f"'{override}' is not an override; write section.key=value")
        try:
            parsed = _parse_yaml(value)
        except yaml.YAMLError:
            raise InputError(f"override '{override}': the value is not YAML") from None
        nested: Any = parsed
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        _merge(config, nested, "override: ")


def shorten(config: Config) -> None:
    """Make *config* a trial's: two steps of every stage, and scores on eight pictures that say nothing."""
    data = config.data
    first = data.test.split("+")[0]
    config.train.stage_limit, data.val = 2, None
    data.test = first if "[" in first else f"{first}[:8]"


def save_config(config: Config, path: str | Path) -> None:
    """Write *config* as YAML that :func:`load_config` reads back unchanged."""
    Path(path).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


class _Loader(yaml.SafeLoader):
    """YAML as people write it: PyYAML takes 1e-3, which has no point, for a word."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse_yaml(text: str) -> Any:
    """The value of a YAML document; raises yaml.YAMLError, also for a key that is given twice."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _refuse_repeated_keys(node)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_repeated_keys(node: yaml.Node | None) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' is given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
            _refuse_repeated_keys(value)


def _merge(config: DictConfig, values: dict[str, Any], where: str, prefix: str = "") -> None:
    """Merge key by key, so that an error names its key."""
    schema = OmegaConf.get_type(config)
    for key, value in values.items():
        full = f"{prefix}{key}"
        if is_dataclass(schema) and key not in (names := [f.name for f in fields(schema)]):
            raise InputError(f"{where}unknown key '{full}'{suggestion_or_all(key, names)}")
        if isinstance(value, dict) and OmegaConf.is_dict(config.get(key)):
            _merge(config[key], value, where, f"{full}.")
            continue
        try:
            if is_dataclass(schema):
                OmegaConf.update(config, key, value, merge=False)
            else:
                config[key] = value
        except OmegaConfBaseException as error:
            raise InputError(f"{where}'{full}'{wrong_value(schema, key, value, error)}") from None


def published_name(checkpoint: str) -> tuple[str, str] | None:
    """NAME and WEIGHTS ("": the default ones) of ``torchvision:NAME@WEIGHTS``; None: *checkpoint* is a path."""
    prefix, colon, rest = checkpoint.partition(":")
    if prefix != "torchvision" or not colon:
        return None
    name, _, weights = rest.partition("@")
    return name, weights


def _take_published_architecture(teacher: TeacherConfig) -> None:
    """torchvision's trained detectors say themselves what they are."""
    found = None if teacher.checkpoint is None else published_name(teacher.checkpoint)
    if found is None or found[0] == teacher.architecture:
        return
    if teacher.options:
        logging.getLogger(__name__).info(
            "teacher.options are of a %s and not used: the teacher is torchvision's %s", teacher.architecture, found[0]
        )
    teacher.architecture, teacher.options, teacher.weights = found[0], {}, None


def _check(config: Config, others: Iterable[str]) -> None:
    train, data = config.train, config.data
    positive = ("epochs", "batch_size", "lr_per_image", "gamma", "log_every", "checkpoint_every", "keep", "accumulate")
    for key in positive:
        if not 0 < (value := getattr(train, key)) < math.inf:
            raise InputError(f"'train.{key}' is {value}: it must be greater than 0")
    for key in (
        "workers",
        "warmup_steps",
        "stage_limit",
        "seed",
        "momentum",
        "weight_decay",
        "clip_norm",
        "poly_power",
    ):
        if not 0 <= (value := getattr(train, key)) < math.inf:
            raise InputError(f"'train.{key}' is {value}: it must be 0 or more")
    if not all(0 < share <= 1 for share in train.milestones):
        raise InputError(f"'train.milestones' is {train.milestones}: each must be a share of the budget in (0, 1]")
    methods.choose(train.precision, ("fp32", "bf16", "fp16"), "precision")
    methods.choose(train.tracker, ("auto", "none", "tensorboard", "wandb", "mlflow"), "train.tracker")
    methods.choose(config.role, ("student", "teacher"), "role")
    methods.choose(data.format, FORMATS, "data.format")
    for part in config.student.inherit:
        methods.choose(part, ("neck", "head"), "student.inherit")
    if len(set(config.student.inherit)) != len(config.student.inherit):
        raise InputError(f"'student.inherit' is {config.student.inherit}: name each part once")
    for name, other in config.teacher.class_map.items():
        if not isinstance(other, str | None):
            raise InputError(f"'teacher.class_map.{name}' is {other}: it must be a class of the teacher's, or null")
    if config.teacher.own_size and data.format not in _OF_DETECTORS:
        raise InputError(
            "'teacher.own_size' is for detectors; pictures of classifiers have the size of data.image_size"
        )
    methods.choose(data.boxes, ("clip", "refuse"), "data.boxes")
    methods.choose(data.exif, ("apply", "ignore"), "data.exif")
    if not data.max_pixels >= 1:
        raise InputError(f"'data.max_pixels' is {data.max_pixels}: it must be 1 or more")
    for key in ("flip", "color"):
        if not 0 <= (value := getattr(data, key)) <= 1:
            raise InputError(f"'data.{key}' is {value}: it must be in [0, 1]")
    if data.image_size < 0 or data.crop_padding < 0:
        raise InputError("'data.image_size' and 'data.crop_padding' must be 0 or more")
    if len(data.mean) != len(data.std) or not all(value > 0 for value in data.std):
        raise InputError("'data.mean' and 'data.std' must hold one number a channel each, those of std greater than 0")
    if len(data.scale) != 2 or not 0 < data.scale[0] <= data.scale[1]:
        raise InputError(f"'data.scale' is {data.scale}: it must be [smallest, largest], both greater than 0")
    named = {cls.name: cls for method in (config.method, *others) for cls in methods.classes(method)}
    for name, settings in config.methods.items():
        methods.method_config(named.get(name, name), settings)
