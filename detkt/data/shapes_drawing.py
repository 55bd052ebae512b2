"""What scenes of shapes are drawn with: outlines, textures, colours, strokes and anti-aliased painting."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

_SAMPLES = 4  # sub-pixels a side when a shape is drawn, so coverage comes in sixteenths
_TEXTURES = ("plain", "gradient", "stripes", "checks", "dots", "rings", "noise")

Contours = list[np.ndarray]  # closed outlines (n, 2) in x, y; a second one inside the first is a hole
Generator = np.random.Generator


# Outlines: any scale, centred near the origin, y down.


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
    depth = rng.uniform(0.35, 0.55)
    return [_polar(lambda angle: 1 + depth * np.abs(np.cos(3 * angle)), 72)]


OUTLINES: dict[str, Callable[[Generator], Contours]] = {
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


def _open_ring(rng: Generator) -> Contours:
    inner, angle = rng.uniform(0.5, 0.7), np.linspace(0, rng.uniform(1.0, 1.5) * np.pi, 32)
    arc = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return [np.concatenate([arc, inner * arc[::-1]])]


def _blob(rng: Generator) -> Contours:
    phase = rng.uniform(0, 2 * np.pi, 2)
    return [_polar(lambda a: 1 + 0.3 * np.cos(2 * a + phase[0]) + 0.12 * np.cos(3 * a + phase[1]), 48)]


def _flat(name: str) -> Callable[[Generator], Contours]:
    turn = np.pi / 4 if name == "square" else 0.0  # squeeze a square along a side: a bar, not a diamond
    return lambda rng: [_turn(OUTLINES[name](rng)[0], turn) * (1, rng.uniform(0.3, 0.45))]


LOOKALIKES = (_flat("disc"), _flat("square"), _flat("triangle"), _open_ring, _blob)
WIRES = tuple(name for name in OUTLINES if name not in ("disc", "ring"))  # a disc of wire would be a ring


@dataclass
class Sprite:
    """Coverage (h, w) of a shape and of its border band, in 0 to 1, and the pixel (x, y) of the corner."""

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


def pose(rng: Generator, contours: Contours, size: float) -> Contours:
    """Squeeze a little, rotate, and scale so that the longer side of the bounding box is *size* pixels."""
    squeeze, angle = rng.uniform(0.85, 1.0), rng.uniform(0, 2 * np.pi)
    contours = [_turn(contour * (1, squeeze), angle) for contour in contours]
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    return [(contour - (low + high) / 2) * (size / (high - low).max()) for contour in contours]


def rasterise(contours: Contours, rim: float, hollow: bool) -> Sprite:
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
    return Sprite(shape, band, int(low[0]), int(low[1]))


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
    """Colours (height, width, 3): a texture between *first* and a second colour more or less far from it."""
    second = first + (_colour(rng) - first) * rng.uniform(0.2, 0.9)
    return _mix(first, second, _texture(rng, height, width))


def background(rng: Generator, size: int) -> np.ndarray:
    """Two textures that share the picture along a smooth, winding border; uint8 RGB (size, size, 3)."""
    near, far = (_textured(rng, size, size, _colour(rng)) for _ in range(2))
    border = np.clip((_smooth_noise(rng, size, size, size / 2.5) - rng.uniform(0.3, 0.7)) * 30, 0, 1)
    return np.rint(_mix(near, far, border)).astype(np.uint8)


def stroke(rng: Generator, image: np.ndarray) -> None:
    """Draw a line, an arc or a scribble on a uint8 picture."""
    steps, size = int(rng.integers(8, 40)), len(image)
    bend, wobble = rng.choice([(0, 0), (0.15, 0), (0.1, 0.35)])
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(bend, wobble, steps))
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0) * size / 50
    path = np.rint((path + rng.uniform(0, size, 2)) * 16).astype(np.int32)
    colour, thickness = _colour(rng).tolist(), int(rng.integers(1, 4))
    cv2.polylines(image, [path], False, colour, thickness, cv2.LINE_AA, shift=4)


def paint(rng: Generator, image: np.ndarray, sprite: Sprite, contrast: float) -> None:
    """Fill a sprite with a texture, and most of the time a rim of another colour, on a uint8 picture."""
    place, part = sprite.window(len(image))
    under, weight = image[place].astype(np.float32), sprite.coverage[part]
    ground = (under * weight[..., None]).sum(axis=(0, 1)) / max(float(weight.sum()), 1e-6)
    first = _colour(rng)
    while np.linalg.norm(first - ground) < contrast:
        first = _colour(rng)
    height, width = weight.shape
    colours = _textured(rng, height, width, first)
    if rng.random() < 0.6:
        colours = _mix(colours, first * rng.uniform(0.3, 0.8), sprite.rim[part] / np.maximum(weight, 1e-6))
    image[place] = np.rint(_mix(under, colours, weight))


def develop(rng: Generator, image: np.ndarray, max_blur: float, max_noise: float) -> np.ndarray:
    """Light from one side, the lens's blur and the sensor's noise."""
    light = rng.uniform(0.7, 1.1, (2, 2)).astype(np.float32)
    picture = image * cv2.resize(light, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)[..., None]
    blur = rng.uniform(0, max_blur)
    if blur > 0.2:  # narrower than this a kernel of whole pixels changes nothing
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    noise = rng.uniform(0, max_noise)
    picture = picture + rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(noise)
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)
