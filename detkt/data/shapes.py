"""Scenes of textured, overlapping shapes, drawn from a seed and kept on disk as a PASCAL VOC folder.

The data set that works on a machine without downloads. It is meant to need capacity: what tells the classes
apart is the outline alone, while colour, texture, size and rotation say nothing about the class; objects
wear the same textures as the background they lie on, hide each other, and share the picture with strokes
and with look-alikes (ellipses, bars, slivers, open rings, blobs, wire frames) that are not labelled. The
labels are exact.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from detkt.base.errors import InputError, suggestion
from detkt.data import shapes_drawing as drawing

GENERATOR_VERSION = 1  # raise it whenever the same config would draw other pictures
JPEG_QUALITY = 90
SPLITS = ("trainval", "test", "val")  # append only: a split's number is part of its scenes' seed
CLASSES = tuple(drawing.OUTLINES)

_COVERED = 0.25  # a pixel belongs to an object from this coverage on
_HIDDEN = 0.1  # no object is placed where it would leave less than this of another one in view


@dataclass
class ShapesConfig:
    """What is drawn. Sizes and blur are in pixels, colours and noise in grey levels (0 to 255).

    A size is the longer side of an object's box, before the border cuts it. ``contrast`` is the least
    distance in RGB between an object's first colour and the mean of what lies under it. Look-alikes and
    strokes are the unlabelled distractors. An object of which less than ``min_visible`` can be seen,
    because others cover it or the border cuts it, is marked ``difficult``.

    Raises:
        InputError: a value is out of range, or a class is not one of `CLASSES`.
    """

    image_size: int = 128
    train: int = 3000
    test: int = 500
    val: int = 500
    seed: int = 0
    classes: tuple[str, ...] = CLASSES
    min_objects: int = 1
    max_objects: int = 5
    min_size: float = 20.0
    max_size: float = 64.0
    max_lookalikes: int = 2
    max_strokes: int = 5
    contrast: float = 60.0
    max_noise: float = 10.0
    max_blur: float = 0.7
    min_visible: float = 0.3

    def __post_init__(self) -> None:
        self.classes = tuple(self.classes)
        for name in self.classes:
            if name not in CLASSES:
                choices = ", ".join(CLASSES)
                raise InputError(f"shapes: unknown class {name!r}{suggestion(name, CLASSES)}: choose from {choices}")
        rules = {
            "classes must name at least one class, and each once": 0 < len(self.classes) == len(set(self.classes)),
            "image_size must be at least 16": self.image_size >= 16,
            "train, test, val and seed must not be negative": min(self.train, self.test, self.val, self.seed) >= 0,
            "objects must satisfy 1 <= min_objects <= max_objects": 1 <= self.min_objects <= self.max_objects,
            "sizes must satisfy 8 <= min_size <= max_size <= image_size": (
                8 <= self.min_size <= self.max_size <= self.image_size
            ),
            "max_lookalikes and max_strokes must not be negative": min(self.max_lookalikes, self.max_strokes) >= 0,
            "contrast must lie in 0 to 100": 0 <= self.contrast <= 100,
            "max_noise and max_blur must not be negative": min(self.max_noise, self.max_blur) >= 0,
            "min_visible must lie in 0 to 1": 0 <= self.min_visible <= 1,
        }
        for rule, holds in rules.items():
            if not holds:
                raise InputError(f"shapes: {rule}: {self}")


@dataclass
class ShapeObject:
    """A labelled object of a scene.

    ``box`` is x1, y1, x2, y2 in VOC's 1-based inclusive pixels: the whole shape, hidden parts too, clipped to
    the picture. ``visible`` is the share of the whole shape's pixels that are in the picture and not covered.
    """

    name: str
    box: tuple[int, int, int, int]
    truncated: bool
    difficult: bool
    visible: float


def draw_scene(rng: np.random.Generator, config: ShapesConfig) -> tuple[np.ndarray, list[ShapeObject]]:
    """Draw one scene; the same state of *rng* gives the same scene.

    Returns:
        The picture, uint8 RGB (image_size, image_size, 3), and its labelled objects, one or more, those
        behind first.
    """
    size = config.image_size
    image = drawing.background(rng, size)
    strokes = int(rng.integers(config.max_strokes + 1))
    over = strokes // 4  # in front of everything; too thin to count as covering
    for _ in range(strokes - over):
        drawing.stroke(rng, image)

    count = int(rng.integers(config.min_objects, config.max_objects + 1))
    names: list[str | None] = [config.classes[i] for i in rng.integers(len(config.classes), size=count)]
    names += [None] * int(rng.integers(config.max_lookalikes + 1))
    objects: list[ShapeObject] = []
    areas: list[int] = []
    views: list[np.ndarray] = []  # of each object, the pixels (size, size) that are still in view
    for index in rng.permutation(len(names)):
        least = rng.uniform(_HIDDEN, 1)  # to be left of each; mostly little gets hidden, now and then nearly all
        for _ in range(8):
            sprite = _sprite(rng, names[index], config)
            covered = np.zeros((size, size), bool)
            place, part = sprite.window(size)
            covered[place] = sprite.coverage[part] >= _COVERED
            if all((view & ~covered).sum() >= least * area for view, area in zip(views, areas, strict=True)):
                break
        else:
            continue  # the picture is full
        drawing.paint(rng, image, sprite, config.contrast)
        views = [view & ~covered for view in views]
        if names[index] is not None:
            areas.append(int((sprite.coverage >= _COVERED).sum()))
            views.append(covered)
            truncated = int(covered.sum()) < areas[-1]
            objects.append(ShapeObject(names[index], _bounds(covered), truncated, difficult=False, visible=1.0))
    for found, view, area in zip(objects, views, areas, strict=True):
        found.visible = float(view.sum()) / area
        found.difficult = found.visible < config.min_visible
    for _ in range(over):
        drawing.stroke(rng, image)
    return drawing.develop(rng, image, config.max_blur, config.max_noise), objects


def _sprite(rng: np.random.Generator, name: str | None, config: ShapesConfig) -> drawing.Sprite:
    """An object of class *name*, or with None a look-alike, somewhere in the picture or cut by its border."""
    hollow = name is None and rng.random() < 0.3
    if hollow:
        contours = drawing.OUTLINES[drawing.WIRES[rng.integers(len(drawing.WIRES))]](rng)
    elif name is None:
        contours = drawing.LOOKALIKES[rng.integers(len(drawing.LOOKALIKES))](rng)
    else:
        contours = drawing.OUTLINES[name](rng)
    size = float(np.exp(rng.uniform(np.log(config.min_size), np.log(config.max_size))))
    centre = rng.uniform(size / 4, config.image_size - size / 4, 2)
    contours = [contour + centre for contour in drawing.pose(rng, contours, size)]
    return drawing.rasterise(contours, rim=rng.uniform(0.8, 1.8), hollow=hollow)


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of a mask's pixels, 1-based inclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)) + 1, np.flatnonzero(mask.any(axis=0)) + 1
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def scenes(config: ShapesConfig, split: str) -> Iterator[tuple[str, np.ndarray, list[ShapeObject]]]:
    """Yield (picture id, picture, objects) of a split, one of `SPLITS`; see `draw_scene`.

    A scene depends on the seed, the split and its own number, not on how many there are.
    """
    number = SPLITS.index(split)
    for index in range({"trainval": config.train, "test": config.test, "val": config.val}[split]):
        rng = np.random.default_rng((config.seed, number, index))
        yield f"{split}_{index:06d}", *draw_scene(rng, config)


def write_shapes(
    root: str | PathLike[str], config: ShapesConfig, progress: Callable[..., Iterable] | None = None
) -> Path:
    """Draw the data set into the VOC folder *root*, unless it is there already; returns *root*.

    The same config gives the same bytes, on the same versions of NumPy and OpenCV. The folder appears
    complete or not at all: it is written under a hidden name beside *root* and renamed in the end. Several
    processes may ask for the same folder at once. ``shapes.json`` in it keeps the config and the
    generator's version.

    Args:
        progress: wraps the loop over all pictures, called as ``progress(iterable, total=…)``, like ``tqdm``.

    Raises:
        InputError: *root* holds something else, or cannot be written.
    """
    root = Path(root)
    home = root.resolve()  # a link to an empty folder elsewhere is fine
    record = {"generator": GENERATOR_VERSION, "config": json.loads(json.dumps(asdict(config)))}
    if _is_complete(home, record):
        return root
    staging = home.parent / f".{home.name}.{uuid.uuid4().hex[:12]}.partial"
    try:
        staging.mkdir(parents=True)
        _write(staging, config, progress)
        (staging / "shapes.json").write_text(json.dumps(record, indent=2) + "\n")
        staging.rename(home)
    except OSError as error:
        if not _is_complete(home, record):  # else another process was faster
            reason = error.strerror or error
            raise InputError(f"cannot write the shapes to {root}: {reason}: choose another folder") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return root


def _is_complete(root: Path, record: dict) -> bool:
    """Whether *root* holds the data set of *record*; InputError where it holds anything else."""
    try:
        if not root.exists() or root.is_dir() and not any(root.iterdir()):
            return False
        found = json.loads((root / "shapes.json").read_text())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise InputError(f"{root} is in use and holds no complete set of shapes: remove it, or choose another folder")
    if found != record:
        old, new = ({"generator": each.get("generator"), **each["config"]} for each in (found, record))
        changes = (f"{k} {old.get(k)} (asked for: {new.get(k)})" for k in {**new, **old} if old.get(k) != new.get(k))
        changed = ", ".join(changes)
        raise InputError(f"{root} holds other shapes, {changed}: remove it, or choose another folder")
    return True


def _write(root: Path, config: ShapesConfig, progress: Callable[..., Iterable] | None) -> None:
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    drawn: Iterable = (scene for split in SPLITS for scene in scenes(config, split))
    if progress is not None:
        drawn = progress(drawn, total=config.train + config.test + config.val)
    ids = []
    for name, image, objects in drawn:
        _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(encoded.tobytes())
        (root / "Annotations" / f"{name}.xml").write_bytes(_annotation(name, image.shape, objects))
        ids.append(name)
    for split in SPLITS:
        lines = "".join(f"{name}\n" for name in ids if name.startswith(f"{split}_"))
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(lines)


def _annotation(name: str, shape: tuple[int, ...], objects: list[ShapeObject]) -> bytes:
    """The VOC annotation file of a picture (height, width, 3)."""
    top = ElementTree.Element("annotation")
    _fill(top, {"folder": "shapes", "filename": f"{name}.jpg"})
    _fill(ElementTree.SubElement(top, "source"), {"database": "detkt shapes", "annotation": "drawn"})
    _fill(ElementTree.SubElement(top, "size"), {"width": shape[1], "height": shape[0], "depth": shape[2]})
    _fill(top, {"segmented": 0})
    for found in objects:
        node = ElementTree.SubElement(top, "object")
        flags = {"truncated": int(found.truncated), "difficult": int(found.difficult)}
        _fill(node, {"name": found.name, "pose": "Unspecified", **flags})
        sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), found.box, strict=True))
        _fill(ElementTree.SubElement(node, "bndbox"), sides)
    ElementTree.indent(top, "\t")
    return ElementTree.tostring(top) + b"\n"


def _fill(node: ElementTree.Element, values: Mapping[str, object]) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(node, tag).text = str(value)
