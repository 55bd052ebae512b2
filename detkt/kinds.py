"""The one place that asks "detector or classifier?": each kind knows its data, its networks, its scores, its export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from detkt.base.commands import command
from detkt.base.errors import InputError
from detkt.base.paths import resolve
from detkt.base.processes import Processes
from detkt.config import Config, DataConfig, NetConfig, TrainConfig, load_data_config
from detkt.data import classification_data, data_root, shapes_config, test_set, training_set
from detkt.data.base import PictureSet
from detkt.data.classification import ClassificationSet, normalisation
from detkt.data.detection import DetectionSet
from detkt.data.images import check_strip, picture_suffixes, read_image
from detkt.data.random_pictures import noise, scenes
from detkt.evaluation.accuracy import classify
from detkt.evaluation.bootstrap import COCO_METRIC, METRICS
from detkt.evaluation.detector import detect, score
from detkt.evaluation.outcomes import DetectionOutcomes, Outcomes
from detkt.evaluation.records import Records
from detkt.models import card_of
from detkt.models.families import CLASSIFIERS, DETECTORS, Family
from detkt.models.saved import read_meta

REAL_PICTURES = 8  # of a data set, to compare an export with its network on

Normalisation = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation, a channel each
Data = TypeVar("Data", bound=PictureSet)
Keep = Callable[[Outcomes], None]


def forget(outcomes: Outcomes) -> None:
    """What :data:`Keep` is where nobody asks for it."""


class Kind(Protocol[Data]):
    """What training, comparing and exporting have to know of a kind of network and of the pictures it learns from.

    ``family``: its networks. ``tool``: the command that trains them. ``formats``: those of ``data.format`` for it.
    ``measures``: key of ``metrics.json`` -> column title, the one that counts first; ``score_format``: of a score in
    percent. ``exports``: the forms that its networks are exported in besides safetensors.
    """

    family: ClassVar[Family]
    tool: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]
    measures: ClassVar[dict[str, str]]
    score_format: ClassVar[str]
    exports: ClassVar[tuple[str, ...]]

    @property
    def task(self) -> str:
        """Its name in ``model.json``."""
        return self.family.task

    def build(self, net: NetConfig, classes: Sequence[str]) -> nn.Module:
        """The network of *net*, without its checkpoint."""
        return self.family.build(net.architecture, len(classes) + self.family.background, net.weights, **net.options)

    def options(self, net: NetConfig) -> dict[str, Any]:
        """Every option of *net*, defaults written out."""
        return self.family.default_options(net.architecture) | net.options

    def summary(self, scores: dict[str, Any]) -> str:
        """The scores that count, in words."""
        found = {title: self.score_format.format(100 * scores[key]) for key, title in self.measures.items()}
        return ", ".join(f"{title} {value}" for title, value in found.items())

    def training_set(self, config: Config, progress: Callable | None = None) -> Data:
        """The pictures to learn from; *progress* goes around what is made first."""
        ...

    def test_set(self, data: DataConfig, classes: list[str] | None = None) -> Data:
        """The pictures of ``data.test``; *classes* are those known already."""
        ...

    def has_trained(self, net: NetConfig) -> bool:
        """Whether *net* comes with weights that make it a teacher."""
        ...

    def resolve_data(self, data: DataConfig) -> None:
        """Write out, in *data*, every setting of the pictures that has a default of its own."""
        ...

    def description(self, data: DataConfig) -> dict[str, Any]:
        """What a model's file has to tell of the pictures it was trained on, where it does not normalise them."""
        return {}

    def check(self, model: nn.Module, role: str, data: DataConfig, description: dict[str, Any] | None) -> None:
        """InputError where *model* cannot see the pictures of *data* as it should; *description*: its own, if known."""
        return

    def image_size(self, dataset: Data) -> tuple[int, int] | None:
        """Height and width of the pictures to probe the networks with; None where a network knows its own."""
        return None

    def random_changes(self, data: DataConfig) -> dict[str, bool]:
        """The settings that may change training pictures at random, but for flips, and whether they do."""
        return {"color": data.color > 0, "scale": tuple(data.scale) != (1, 1)}

    def evaluate(
        self,
        model: nn.Module,
        held_out: Data,
        device: torch.device,
        train: TrainConfig,
        quiet: bool = False,
        processes: Processes | None = None,
        keep: Keep = forget,
    ) -> dict[str, Any]:
        """The scores of ``metrics.json``; all *processes* share the work and get them. *keep* gets what is behind them,
        picture by picture."""
        loading = {"batch_size": train.batch_size, "workers": train.workers}
        return self.scores(model, held_out, device, keep, **loading, quiet=quiet, processes=processes)

    def scores(
        self, model: nn.Module, held_out: Data, device: torch.device, keep: Keep = forget, **options: Any
    ) -> dict[str, Any]:
        """What :meth:`evaluate` returns; *options* are those of :func:`detect` and :func:`classify`."""
        ...

    def export_pictures(
        self, model: nn.Module, meta: dict[str, Any], run: Path, size: tuple[int, int] | None, root: str | None
    ) -> tuple[list[Tensor], Normalisation | None]:
        """Pictures to compare an exported graph with its network on, and their normalisation where it is known.

        Args:
            model, meta: the network and its ``model.json``, of the folder *run*.
            size: height and width of the random ones; None: as real ones have it, else as fits the network.
            root: a folder of real ones.
        """
        ...


class Detection(Kind[DetectionSet]):
    """Detectors.

    ``resampled``: those of ``measures`` whose intervals are told of one or two models, the one that leads first.
    """

    family = DETECTORS
    tool = "train-det"
    formats: ClassVar[tuple[str, ...]] = ("voc", "yolo", "shapes")
    measures = {"map_voc07": "mAP VOC07", "map_area": "mAP area", "map_coco": "mAP COCO"}
    resampled: ClassVar[tuple[str, ...]] = METRICS
    score_format = "{:.1f}"
    exports = ("onnx", "int8", "openvino", "torchscript", "--raw")

    def training_set(self, config: Config, progress: Callable | None = None) -> DetectionSet:
        if config.data.cache is None:
            return training_set(config.data, progress)
        net = config.trained_net
        # A checkpoint keeps the options that it was built with.
        options = self.options(net) if net.checkpoint is None else read_meta(resolve(net.checkpoint))[1]["options"]
        if "min_size" not in options:
            raise InputError(
                f"'data.cache' keeps pictures at a detector's min_size, and {net.architecture} makes all of one size; "
                "leave it out"
            )
        return training_set(config.data, progress, (options["min_size"], options["max_size"]))

    def test_set(self, data: DataConfig, classes: list[str] | None = None) -> DetectionSet:
        return test_set(data, classes)

    def has_trained(self, net: NetConfig) -> bool:
        return net.checkpoint is not None or net.weights not in (None, "imagenet")

    def resolve_data(self, data: DataConfig) -> None:
        if data.format == "shapes":
            settings = asdict(shapes_config(data))
            data.shapes = settings | {"classes": list(settings["classes"])}

    def scores(
        self, model: nn.Module, held_out: DetectionSet, device: torch.device, keep: Keep = forget, **options: Any
    ) -> dict[str, Any]:
        detections, milliseconds = detect(model, held_out, device, **options)
        annotations = held_out.annotations()
        found = self.score(detections, annotations, held_out.classes)
        if keep is not forget:
            keep(DetectionOutcomes.of(detections, annotations, held_out.classes))
        return {**found, "milliseconds_per_picture": milliseconds}

    def score(
        self, detections: Records, annotations: Records, classes: Sequence[str], iou_threshold: float = 0.5
    ) -> dict[str, Any]:
        """Scores of *detections*: ``measures`` in their order, then all else of ``metrics.json``."""
        found = self._scored(detections, annotations, classes, iou_threshold)
        return {**{key: found[key] for key in self.measures}, **found}

    def _scored(self, *arguments: Any) -> dict[str, Any]:
        return score(*arguments)

    def export_pictures(
        self, model: nn.Module, meta: dict[str, Any], run: Path, size: tuple[int, int] | None, root: str | None
    ) -> tuple[list[Tensor], None]:
        real: list[Tensor] = []
        if size is not None:
            check_strip("--image-size", *size[::-1])
        if root is not None:
            folder, suffixes = resolve(root), picture_suffixes()
            paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
            if not paths:
                raise InputError(f"--data-root {folder}: no such folder, or no picture below it")
            for path in _spread(paths):
                real.append(torch.from_numpy(read_image(path)).permute(2, 0, 1).float().div(255))
                check_strip(path, *real[-1].shape[:0:-1])
        if size is None:
            transform: Any = model.transform
            shorter, longer = transform.min_size[-1], transform.max_size
            height, width = real[0].shape[1:] if real else (shorter, min(longer, 4 * shorter // 3))
            size = height, width
        return scenes(size) + real, None


class CocoDetection(Detection):
    """Detectors on data in COCO's format, of which COCO's AP leads, with those of small, medium and large objects."""

    formats = ("coco",)
    measures = {"map_coco": "AP", "ap_small": "AP small", "ap_medium": "AP medium", "ap_large": "AP large"} | {
        key: title for key, title in Detection.measures.items() if key != "map_coco"
    }
    resampled = (COCO_METRIC, *Detection.resampled)

    def _scored(self, *arguments: Any) -> dict[str, Any]:
        found = super()._scored(*arguments)
        return {**found, **{f"ap_{size}": found["coco"][size] for size in ("small", "medium", "large")}}


class Classification(Kind[ClassificationSet]):
    """Classifiers on CIFAR, MNIST, ImageNet and image folders."""

    family = CLASSIFIERS
    tool = "train-cls"
    formats = ("cifar10", "cifar100", "tcifar100", "mnist", "fashion-mnist", "imagenet", "folder")
    measures = {"top1": "top-1", "top5": "top-5"}
    score_format = "{:.2f} %"
    exports = ("onnx", "torchscript")

    def training_set(self, config: Config, progress: Callable | None = None) -> ClassificationSet:
        if config.data.cache is not None:
            raise InputError("'data.cache' is for detectors: small pictures are kept decoded in memory; leave it out")
        return classification_data(config.data, train=True)

    def test_set(self, data: DataConfig, classes: list[str] | None = None) -> ClassificationSet:
        return classification_data(data, train=False, classes=classes)

    def has_trained(self, net: NetConfig) -> bool:
        # Published weights of a classifier are whole; a detector's "imagenet" is but its backbone.
        return net.checkpoint is not None or net.weights is not None

    def resolve_data(self, data: DataConfig) -> None:
        data.mean, data.std = (list(values) for values in normalisation(data))

    def description(self, data: DataConfig) -> dict[str, Any]:
        mean, std = normalisation(data)
        return {"normalisation": {"mean": list(mean), "std": list(std)}}

    def check(self, model: nn.Module, role: str, data: DataConfig, description: dict[str, Any] | None) -> None:
        ours = self.description(data)["normalisation"]
        channels = card_of(model).channels
        if channels != len(ours["mean"]):
            raise InputError(
                f"the {role} takes pictures of {channels} channels and those of {data.format} have "
                f"{len(ours['mean'])}; set {role}.options.in_channels={len(ours['mean'])} where the net has that option"
            )
        theirs = (description or {}).get("normalisation", ours)
        if theirs != ours:
            raise InputError(
                f"the {role}'s checkpoint saw pictures with mean {theirs.get('mean')} and std {theirs.get('std')} "
                f"removed, these have {ours['mean']} and {ours['std']}; set data.mean and data.std to the former"
            )

    def image_size(self, dataset: ClassificationSet) -> tuple[int, int]:
        return dataset.image_size

    def random_changes(self, data: DataConfig) -> dict[str, bool]:
        own = {"crop_padding": not data.image_size and data.crop_padding > 0, "image_size": data.image_size > 0}
        return super().random_changes(data) | own

    def scores(
        self, model: nn.Module, held_out: ClassificationSet, device: torch.device, keep: Keep = forget, **options: Any
    ) -> dict[str, Any]:
        return classify(model, held_out, device, keep, **options)

    def export_pictures(
        self, model: nn.Module, meta: dict[str, Any], run: Path, size: tuple[int, int] | None, root: str | None
    ) -> tuple[list[Tensor], Normalisation | None]:
        found: Normalisation | None = None
        real: list[Tensor] = []
        config = run / "config.yaml"
        if root is not None and not config.is_file():
            raise InputError(f"--data-root: there is no {config} of the run, which says how its pictures are read")
        if config.is_file():
            data = load_data_config(config)
            data.root = root or data.root
            if root is not None or data_root(data).is_dir():
                dataset = self.test_set(data, meta["classes"])
                if size is not None and size != tuple(dataset.image_size):
                    raise InputError(f"--image-size is {size[0]} {size[1]}, the pictures in {data_root(data)} are not")
                size = dataset.image_size
                real = [dataset[index][0] for index in _spread(range(len(dataset)))]
                mean, std = ([round(value, 6) for value in values.tolist()] for values in (dataset.mean, dataset.std))
                found = mean, std
            elif data.image_size:
                size = size or (data.image_size, data.image_size)
        if size is None:
            raise InputError(
                "the size of the classifier's pictures is not known: give --image-size H W, such as 32 32 for CIFAR"
            )
        return noise(size, card_of(model).channels) + real, found


KINDS: dict[str, Kind[Any]] = {kind.task: kind for kind in (Detection(), Classification())}
"""All kinds by the task that ``model.json`` names."""

_BY_FORMAT: dict[str, Kind[Any]] = {name: kind for kind in (*KINDS.values(), CocoDetection()) for name in kind.formats}


def kind_of(config: Config) -> Kind[Any]:
    """The kind whose data *config* has."""
    return _BY_FORMAT[config.data.format]


def detection_kind(data: DataConfig) -> Detection:
    """The detectors' kind for *data*; InputError where they are a classifier's."""
    kind = _BY_FORMAT[data.format]
    if not isinstance(kind, Detection):
        raise InputError(f"data.format={data.format} is for {kind.task}; give a detector's data set")
    return kind


def kind_of_scores(scores: Iterable[str]) -> Kind[Any] | None:
    """The kind whose ``metrics.json`` has these keys: of several the one that measures most."""
    known = set(scores)
    fitting = [kind for kind in _BY_FORMAT.values() if known.issuperset(kind.measures)]
    return max(fitting, key=lambda kind: len(kind.measures), default=None)


def require_kind(config: Config, task: str) -> None:
    """InputError where *config* is of another tool than that of *task*."""
    kind = kind_of(config)
    if kind.task != task:
        raise InputError(
            f"data.format={config.data.format} is for {kind.task}: use {command(kind.tool)}, or another --config"
        )


def _spread(items: Sequence[Any]) -> Iterable[Any]:
    """A few of *items*, from all parts of them."""
    return items[:: max(1, len(items) // REAL_PICTURES)][:REAL_PICTURES]
