"""Data sets by config: VOC-format folders, the embedded shapes, and those of the classifiers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from detkt.base.errors import InputError
from detkt.base.paths import resolve
from detkt.base.settings import typed_settings
from detkt.config import DataConfig
from detkt.data.classification import ClassificationSet, classification_set
from detkt.data.picture_cache import PictureCache
from detkt.data.shapes import ShapesConfig, write_shapes
from detkt.data.voc import VOCDetection

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
    """The data set's folder; the shapes are drawn into theirs where it does not exist yet."""
    if not config.root and config.format not in DEFAULT_ROOTS:
        raise InputError(f"data.format={config.format} needs to know the folder: give --data-root DIR")
    root = resolve(config.root or DEFAULT_ROOTS[config.format])
    if config.format == "shapes":
        if any((root / name).is_dir() for name in ("VOCdevkit", "Annotations")) and not (root / "shapes.json").exists():
            raise InputError(
                f"{root} is a VOC-format folder, but the config says data.format=shapes; give a --config for it, or "
                "data.format=voc and a pair that fits"
            )
        if not root.exists():
            if root != resolve(DEFAULT_ROOTS["shapes"]) and not root.absolute().parent.is_dir():
                raise InputError(
                    f"{root}: no such folder, nor the one it would be in: the config draws its shapes there; give "
                    "another --data-root, or a --config for pictures of your own"
                )
            log.info("drawing the shapes into %s, which is not there yet", root)
        write_shapes(root, shapes_config(config), progress)
    return root


def shapes_config(config: DataConfig) -> ShapesConfig:
    """The ``data.shapes`` section as the generator's settings."""
    return typed_settings(ShapesConfig, config.shapes, "data.shapes")


def training_set(
    config: DataConfig, progress: Callable | None = None, input_size: tuple[int, int] | None = None
) -> VOCDetection:
    """The training list, augmented. *input_size*: the detector's min_size and max_size, which ``data.cache`` needs."""
    # Imported here: albumentations takes seconds to load, and scoring needs none of it.
    from detkt.data.transforms import TrainTransforms

    transforms = TrainTransforms(flip=config.flip, color=config.color, scale=tuple(config.scale))
    root, cache = data_root(config, progress), None
    if config.cache is not None and input_size is not None:
        cache = PictureCache(Path(config.cache).expanduser(), *input_size)
    return VOCDetection(
        root,
        config.train,
        config.year,
        keep_difficult=config.keep_difficult,
        classes=config.classes,
        transforms=transforms,
        picture_cache=cache,
    )


def test_set(config: DataConfig, classes: list[str] | None = None, pictures: bool = True) -> VOCDetection:
    """The test list, as it is; *classes* are those the detector was trained on. *pictures*: see `VOCDetection`."""
    return VOCDetection(
        data_root(config), config.test, config.year, classes=classes if classes else config.classes, pictures=pictures
    )


def classification_data(config: DataConfig, train: bool, classes: list[str] | None = None) -> ClassificationSet:
    """Pictures of ``config.train``, augmented, or of ``config.test`` as they are; *classes* are those known already."""
    config = replace(config, root=str(data_root(config)))
    return classification_set(config, config.train if train else config.test, train, classes or config.classes)
