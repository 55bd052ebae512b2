"""Scenes of textured, overlapping shapes, drawn from a seed and kept on disk as a PASCAL VOC folder.

The data set that works on a machine without downloads. It is meant to need capacity: what tells the classes apart
is the outline alone, while colour, texture, size and rotation say nothing about the class; objects wear the same
textures as the background they lie on, hide each other, and share the picture with strokes and with look-alikes
(ellipses, bars, slivers, open rings, blobs, wire frames) that are not labelled. The labels themselves are exact.
"""

from __future__ import annotations

import colorsys
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from detkt.errors import InputError, suggestion

GENERATOR_VERSION = 1  # raise it whenever the same config would draw other pictures
JPEG_QUALITY = 90
SPLITS = ("trainval", "test")

_SAMPLES = 4  # sub-pixels a side when a shape is drawn, so coverage comes in sixteenths
_COVERED = 0.25  # a pixel belongs to an object from this coverage on
_HIDDEN = 0.15  # no object is placed where it would leave less than this of another one in view
_TEXTURES = ("plain", "gradient", "stripes", "checks", "dots", "rings", "noise")

Contours = list[np.ndarray]  # closed outlines (n, 2) in x, y; a second one inside the first is a hole
Generator = np.random.Generator


# -- outlines: any scale, centred near the origin, y down ------------------------------------------------------------


def _polar(radius: Callable[[np.ndarray], np.ndarray] | float, points: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    length = radius(angle) if callable(radius) else radius
    return np.stack([np.cos(angle) * length, np.sin(angle) * length], axis=1)


def _ring(rng: Generator) -> Contours:
    return [_polar(1.0, 48), _polar(rng.uniform(0.4, 0.6), 48)]


def _star(rng: Generator) -> Contours:
    star = _polar(1.0, 10)
    star[1::2] *= rng.uniform(0.4, 0.52)
    return [star]


def _cross(rng: Generator) -> Contours:
    arm = rng.uniform(0.26, 0.36)
    corner = np.array([[1, -arm], [1, arm], [arm, arm]])
    quarter_turn = np.array([[0, 1], [-1, 0]])
    return [np.concatenate([corner @ np.linalg.matrix_power(quarter_turn, turn) for turn in range(4)])]


def _crescent(rng: Generator) -> Contours:
    """The unit disc less a disc of radius 0.8 whose centre is moved along x."""
    radius, shift = 0.8, rng.uniform(0.4, 0.55)
    x = (1 - radius**2 + shift**2) / (2 * shift)
    y = np.sqrt(1 - x**2)
    outer, inner = np.arctan2(y, x), np.arctan2(y, x - shift)
    far = np.linspace(outer, 2 * np.pi - outer, 36)
    near = np.linspace(2 * np.pi - inner, inner, 30)
    bite = np.stack([shift + radius * np.cos(near), radius * np.sin(near)], axis=1)
    return [np.concatenate([np.stack([np.cos(far), np.sin(far)], axis=1), bite])]


def _heart(rng: Generator) -> Contours:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([16 * np.sin(t) ** 3, -y], axis=1)]


def _flower(rng: Generator) -> Contours:
    depth = rng.uniform(0.15, 0.25)
    return [_polar(lambda angle: 1 + depth * np.cos(6 * angle), 72)]


_OUTLINES: dict[str, Callable[[Generator], Contours]] = {
    "crescent": _crescent,
    "cross": _cross,
    "disc": lambda rng: [_polar(1.0, 48)],
    "flower": _flower,
    "heart": _heart,
    "pentagon": lambda rng: [_polar(1.0, 5)],
    "ring": _ring,
    "square": lambda rng: [_polar(1.0, 4)],
    "star": _star,
    "triangle": lambda rng: [_polar(1.0, 3)],
}

CLASSES: tuple[str, ...] = tuple(_OUTLINES)


def _open_ring(rng: Generator) -> Contours:
    inner, angle = rng.uniform(0.5, 0.7), np.linspace(0, rng.uniform(1.0, 1.5) * np.pi, 32)
    arc = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return [np.concatenate([arc, inner * arc[::-1]])]


def _blob(rng: Generator) -> Contours:
    phase = rng.uniform(0, 2 * np.pi, 2)
    return [_polar(lambda a: 1 + 0.3 * np.cos(2 * a + phase[0]) + 0.25 * np.cos(3 * a + phase[1]), 48)]


def _flat(name: str) -> Callable[[Generator], Contours]:
    turn = np.pi / 4 if name == "square" else 0.0  # squeeze a square along a side: a bar, not a diamond
    return lambda rng: [_turn(_OUTLINES[name](rng)[0], turn) * (1, rng.uniform(0.3, 0.45))]


_LOOKALIKES = (_flat("disc"), _flat("square"), _flat("triangle"), _open_ring, _blob)
_WIRES = tuple(name for name in CLASSES if name not in ("disc", "ring"))  # a disc of wire would be a ring


# -- configuration and results ---------------------------------------------------------------------------------------


@dataclass
class ShapesConfig:
    """What is drawn. Sizes are in pixels, colours and noise in grey levels (0 to 255).

    ``contrast`` is the least distance in RGB between an object's first colour and the mean of what lies under it.
    Look-alikes and strokes are the unlabelled distractors. An object of which less than ``min_visible`` can be seen,
    because others cover it or the border cuts it, is marked ``difficult``.

    Raises:
        InputError: a value is out of range, or a class is not one of `CLASSES`.
    """

    image_size: int = 128
    train: int = 3000
    test: int = 500
    seed: int = 0
    classes: tuple[str, ...] = CLASSES
    min_objects: int = 1
    max_objects: int = 6
    min_size: float = 18.0
    max_size: float = 64.0
    max_lookalikes: int = 3
    max_strokes: int = 8
    contrast: float = 40.0
    max_noise: float = 14.0
    max_blur: float = 0.8
    min_visible: float = 0.3

    def __post_init__(self) -> None:
        self.classes = tuple(self.classes)
        for name in self.classes:
            if name not in CLASSES:
                raise InputError(
                    f"shapes: unknown class {name!r}{suggestion(name, CLASSES)}: use some of {', '.join(CLASSES)}"
                )
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise InputError(f"shapes: classes must name at least one class, each once, not {self.classes}")
        rules = {
            "image_size must be at least 16": self.image_size >= 16,
            "train, test and seed must not be negative": min(self.train, self.test, self.seed) >= 0,
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

    ``box`` is x1, y1, x2, y2 in VOC's 1-based inclusive pixels: the whole shape, hidden parts too, clipped to the
    picture. ``visible`` is the share of the whole shape's pixels that are in the picture and not covered.
    """

    name: str
    box: tuple[int, int, int, int]
    truncated: bool
    difficult: bool
    visible: float


# -- drawing ---------------------------------------------------------------------------------------------------------


@dataclass
class _Sprite:
    """A shape's coverage (h, w) in 0 to 1, ``rim`` its border band, placed with its corner at pixel (x, y)."""

    coverage: np.ndarray
    rim: np.ndarray
    x: int
    y: int

    def window(self, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The part inside a picture of *size*: slices into the picture, slices into the sprite."""
        height, width = self.coverage.shape
        top, left = max(self.y, 0), max(self.x, 0)
        bottom, right = max(min(self.y + height, size), top), max(min(self.x + width, size), left)
        inside = slice(top - self.y, bottom - self.y), slice(left - self.x, right - self.x)
        return (slice(top, bottom), slice(left, right)), inside


def _turn(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _pose(rng: Generator, contours: Contours, size: float) -> Contours:
    """Squeeze a little, rotate, and scale so that the longer side of the bounding box is *size* pixels."""
    squeeze, angle = rng.uniform(0.85, 1.0), rng.uniform(0, 2 * np.pi)
    contours = [_turn(contour * (1, squeeze), angle) for contour in contours]
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    return [(contour - (low + high) / 2) * (size / (high - low).max()) for contour in contours]


def _rasterise(contours: Contours, rim: float, hollow: bool) -> _Sprite:
    """Anti-aliased coverage of contours given in pixels (x right, y down, a pixel is a unit square)."""
    low = np.floor(contours[0].min(axis=0)).astype(int) - 1
    width, height = np.ceil(contours[0].max(axis=0)).astype(int) + 1 - low
    fine = np.zeros((height * _SAMPLES, width * _SAMPLES), np.uint8)
    shift = 4  # fixed-point bits; OpenCV's coordinates name the centres of pixels
    points = [np.rint(((c - low) * _SAMPLES - 0.5) * 2**shift).astype(np.int32) for c in contours]
    cv2.fillPoly(fine, points, 255, shift=shift)
    side = 2 * round(rim * _SAMPLES) + 1
    band = fine - cv2.erode(fine, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    shape, band = (
        cv2.resize(mask, (int(width), int(height)), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        for mask in (band if hollow else fine, band)
    )
    return _Sprite(shape, band, int(low[0]), int(low[1]))


def _smooth_noise(rng: Generator, height: int, width: int, period: float) -> np.ndarray:
    grid = rng.random((int(height / period) + 3, int(width / period) + 3), dtype=np.float32)
    return np.clip(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def _texture(rng: Generator, height: int, width: int) -> np.ndarray:
    """A random texture (height, width), float32 in 0 to 1."""
    kind, period = _TEXTURES[rng.integers(len(_TEXTURES))], rng.uniform(4, 12)
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
    if kind == "plain":
        return np.zeros((height, width), np.float32)
    if kind == "noise":
        return _smooth_noise(rng, height, width, period / 3)
    y, x = np.ogrid[:height, :width]
    y, x = y.astype(np.float32), x.astype(np.float32)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along, across = x * cos + y * sin, y * cos - x * sin
    if kind == "gradient":
        return (along - along.min()) / (np.ptp(along) + 1)
    turns = np.float32(2 * np.pi / period)
    if kind == "rings":
        wave = np.sin(np.hypot(x - width * phase[0] / 6, y - height * phase[1] / 6) * turns)
    elif kind == "stripes":
        wave = np.sin(along * turns + phase[0])
    elif kind == "checks":
        wave = np.sin(along * turns / 2 + phase[0]) * np.sin(across * turns / 2 + phase[1]) * 2
    else:
        wave = np.cos(along * turns) + np.cos(across * turns) - 0.6
    return np.clip(0.5 + 1.5 * wave, 0, 1)


def _colour(rng: Generator) -> np.ndarray:
    """A random RGB colour (3,), float32 in 0 to 255: any hue, neither black nor glaring."""
    hue, saturation, value = rng.uniform((0, 0.1, 0.3), (1, 0.75, 0.95))
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32) * 255


def _mix(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return first + (second - first) * weight[..., None]


def _textured(rng: Generator, height: int, width: int, first: np.ndarray) -> np.ndarray:
    """Colours (height, width, 3): a texture between *first* and a second colour at a random distance from it."""
    second = first + (_colour(rng) - first) * rng.uniform(0.2, 0.9)
    return _mix(first, second, _texture(rng, height, width))


def _background(rng: Generator, size: int) -> np.ndarray:
    """Two textures that share the picture along a smooth, winding border; float32 (size, size, 3)."""
    near, far = (_textured(rng, size, size, _colour(rng)) for _ in range(2))
    border = np.clip((_smooth_noise(rng, size, size, size / 2.5) - rng.uniform(0.3, 0.7)) * 30, 0, 1)
    return _mix(near, far, border)


def _stroke(rng: Generator, image: np.ndarray) -> None:
    """Draw a line, an arc or a scribble on a uint8 picture."""
    steps, size = int(rng.integers(8, 40)), len(image)
    bend, wobble = rng.choice([(0, 0), (0.15, 0), (0.1, 0.35)])
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(bend, wobble, steps))
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0) * size / 50
    path = np.rint((path + rng.uniform(0, size, 2)) * 16).astype(np.int32)
    colour, thickness = _colour(rng).tolist(), int(rng.integers(1, 4))
    cv2.polylines(image, [path], False, colour, thickness, cv2.LINE_AA, shift=4)


def _paint(rng: Generator, image: np.ndarray, sprite: _Sprite, contrast: float) -> None:
    """Fill a sprite with a texture, and most of the time a rim of another colour, on a uint8 picture."""
    place, part = sprite.window(len(image))
    under, weight = image[place].astype(np.float32), sprite.coverage[part]
    ground = (under * weight[..., None]).sum(axis=(0, 1)) / max(float(weight.sum()), 1e-6)
    first = _colour(rng)
    while np.linalg.norm(first - ground) < contrast:
        first = _colour(rng)
    colours = _textured(rng, *weight.shape, first)
    if rng.random() < 0.6:
        colours = _mix(colours, first * rng.uniform(0.3, 0.8), sprite.rim[part] / np.maximum(weight, 1e-6))
    image[place] = np.rint(_mix(under, colours, weight))


def _sprite(rng: Generator, name: str | None, config: ShapesConfig) -> _Sprite:
    """A random object of class *name*, or with None a look-alike, somewhere in the picture or cut by its border."""
    hollow = name is None and rng.random() < 0.3
    if hollow:
        contours = _OUTLINES[_WIRES[rng.integers(len(_WIRES))]](rng)
    elif name is None:
        contours = _LOOKALIKES[rng.integers(len(_LOOKALIKES))](rng)
    else:
        contours = _OUTLINES[name](rng)
    size = float(np.exp(rng.uniform(np.log(config.min_size), np.log(config.max_size))))
    centre = rng.uniform(size / 4, config.image_size - size / 4, 2)
    return _rasterise([c + centre for c in _pose(rng, contours, size)], rng.uniform(0.8, 1.8), hollow)


def draw_scene(rng: Generator, config: ShapesConfig) -> tuple[np.ndarray, list[ShapeObject]]:
    """Draw one scene; the same state of *rng* gives the same scene.

    Returns:
        The picture, uint8 RGB (image_size, image_size, 3), and its labelled objects, those behind first.
    """
    size = config.image_size
    image = np.rint(_background(rng, size)).astype(np.uint8)
    over = int(rng.integers(config.max_strokes // 4 + 1))  # strokes in front; too thin to count as covering
    for _ in range(int(rng.integers(config.max_strokes + 1)) - over):
        _stroke(rng, image)

    count = int(rng.integers(config.min_objects, config.max_objects + 1))
    names: list[str | None] = [config.classes[i] for i in rng.integers(len(config.classes), size=count)]
    names += [None] * int(rng.integers(config.max_lookalikes + 1))
    objects: list[ShapeObject] = []
    areas: list[int] = []
    views: list[np.ndarray] = []  # of each object, the pixels (size, size) that are still in view
    for index in rng.permutation(len(names)):
        name = names[index]
        for _ in range(8):
            sprite = _sprite(rng, name, config)
            place, part = sprite.window(size)
            covered = np.zeros((size, size), bool)
            covered[place] = sprite.coverage[part] >= _COVERED
            least = rng.uniform(_HIDDEN, 1)  # mostly little is hidden, sometimes nearly all
            if all((view & ~covered).sum() >= least * area for view, area in zip(views, areas, strict=True)):
                break
        else:
            continue  # the picture is full
        _paint(rng, image, sprite, config.contrast)
        views = [view & ~covered for view in views]
        if name is not None:
            areas.append(int((sprite.coverage >= _COVERED).sum()))
            views.append(covered)
            objects.append(ShapeObject(name, _bounds(covered), int(covered.sum()) < areas[-1], False, 1.0))
    for found, view, area in zip(objects, views, areas, strict=True):
        found.visible = float(view.sum()) / area
        found.difficult = found.visible < config.min_visible
    for _ in range(over):
        _stroke(rng, image)
    return _develop(rng, image, config), objects


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of a mask's pixels, 1-based inclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)) + 1, np.flatnonzero(mask.any(axis=0)) + 1
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _develop(rng: Generator, image: np.ndarray, config: ShapesConfig) -> np.ndarray:
    """Light from one side, the lens's blur and the sensor's noise."""
    light = rng.uniform(0.7, 1.1, (2, 2)).astype(np.float32)
    picture = image * cv2.resize(light, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)[..., None]
    blur = rng.uniform(0, config.max_blur)
    if blur > 0.2:  # narrower than this a kernel of whole pixels changes nothing
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    noise = rng.uniform(0, config.max_noise)
    picture += rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(noise)
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)


# -- writing ---------------------------------------------------------------------------------------------------------


def scenes(config: ShapesConfig, split: str) -> Iterator[tuple[str, np.ndarray, list[ShapeObject]]]:
    """Yield (image id, picture, objects) of a split. A scene depends on seed, split and number, not on the count."""
    number = SPLITS.index(split)
    for index in range(config.test if split == "test" else config.train):
        rng = np.random.default_rng((config.seed, number, index))
        yield f"{split}_{index:06d}", *draw_scene(rng, config)


