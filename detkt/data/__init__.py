"""Data sets by config: those of detectors in any format, the embedded shapes, and those of the classifiers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from detkt.base.commands import command
from detkt.base.errors import InputError
from detkt.base.paths import resolve
from detkt.base.settings import typed_settings
from detkt.config import DataConfig
from detkt.data.annotated import Reading
from detkt.data.classification import ClassificationSet, classification_set
from detkt.data.detection import DetectionSet
from detkt.data.images import Decoding
from detkt.data.layouts import reader, wrong_format_hint
from detkt.data.picture_cache import PictureCache
from detkt.data.shapes import ShapesConfig, write_shapes

log = logging.getLogger(__name__)

DEFAULT_ROOTS = {
    "voc": "data/VOCdevkit",
    "shapes": "data/shapes",
    "cifar10": "data/cifar10",
    "cifar100": "data/cifar100",
    "tcifar100": "data/cifar100",
    "mnist": "data/mnist",
    "fashion-mnist": "data/fashion-mnist",
    "imagenet": "data/imagenet",
}


def data_root(config: DataConfig, progress: Callable | None = None) -> Path:
    """The data set's folder; the shapes are drawn where they are by default, if they are not there yet.

    Raises InputError: no folder is known, or one that was given holds no shapes: it is somebody's mistake, not a place
    to draw into (``prepare_data.py shapes --data-root DIR`` draws).
    """
    if not config.root and config.format not in DEFAULT_ROOTS:
        raise InputError(f"data.format={config.format} needs to know the folder: give --data-root DIR")
    root = resolve(config.root or DEFAULT_ROOTS[config.format])
    if config.format == "shapes":
        settings = shapes_config(config)
        given = config.root and root.absolute() != resolve(DEFAULT_ROOTS["shapes"]).absolute()
        if given and not (root / "shapes.json").exists():
            raise InputError(
                f"{root}: {'it holds no shapes' if root.is_dir() else 'no such folder'}, but the config asks for them "
                "(data.format=shapes): give the --config for pictures of your own, or draw the shapes into a new "
                f"folder with: {command('prepare')} shapes --data-root DIR"
            )
        if not root.exists():
            log.info("drawing the shapes into %s, which is not there yet", root)
        write_shapes(root, settings, progress)
    return root


def shapes_config(config: DataConfig) -> ShapesConfig:
    """The ``data.shapes`` section as the generator's settings."""
    return typed_settings(ShapesConfig, config.shapes, "data.shapes")


def training_set(
    config: DataConfig, progress: Callable | None = None, input_size: tuple[int, int] | None = None
) -> DetectionSet:
    """The training list, augmented. *input_size*: the detector's min_size and max_size, which ``data.cache`` needs."""
    # Imported here: albumentations takes seconds to load, and scoring needs none of it.
    from detkt.data.transforms import TrainTransforms

    transforms = TrainTransforms(
        flip=config.flip, color=config.color, scale=cast(tuple[float, float], tuple(config.scale))
    )
    root, cache = data_root(config, progress), None
    if config.cache is not None and input_size is not None:
        cache = PictureCache(Path(config.cache).expanduser(), *input_size)
    reading = reading_of(config, config.classes)
    own = {"keep_difficult": config.keep_difficult, "transforms": transforms, "picture_cache": cache}
    return _open(config, root, config.train, reading, **own)


def test_set(config: DataConfig, classes: list[str] | None = None, pictures: bool = True) -> DetectionSet:
    """The test list, as it is; *classes* are those the detector was trained on. *pictures*: see `DetectionSet`."""
    return _open(config, data_root(config), config.test, reading_of(config, classes or config.classes, pictures))


def coco_file(config: DataConfig, dataset: DetectionSet) -> Path | None:
    """The JSON that says what ids mean in COCO result files for *dataset*; None where it is not of one such file."""
    return dataset.annotation_file if config.format == "coco" else None


def reading_of(config: DataConfig, classes: Sequence[str] | None = None, pictures: bool = True) -> Reading:
    """How annotations and pictures are read."""
    return Reading(pictures, config.boxes, Decoding(config.exif, config.max_pixels), config.year, classes)


def _open(config: DataConfig, root: Path, split: str, reading: Reading, **own: Any) -> DetectionSet:
    try:
        dataset = DetectionSet(reader(config.format), root, split, reading, **own)
    except InputError as error:
        raise InputError(f"{error}{wrong_format_hint(config.format, root)}") from None
    for note in dataset.notes:
        log.warning("note: %s", note)
    return dataset


def classification_data(config: DataConfig, train: bool, classes: list[str] | None = None) -> ClassificationSet:
    """Pictures of ``config.train``, augmented, or of ``config.test`` as they are; *classes* are those known already."""
    config = replace(config, root=str(data_root(config)))
    return classification_set(config, config.train if train else config.test, train, classes or config.classes)
