"""Random changes of training pictures, drawn from a seed that comes with each sample."""

from __future__ import annotations

import math
import os
import random
from typing import Any

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # on import it would ask the network for a newer version

import albumentations as A  # noqa: E402
import cv2  # noqa: E402
from albumentations.core.transforms_interface import BaseTransformInitSchema  # noqa: E402
from albumentations.core.type_definitions import Targets  # noqa: E402

from detkt.base.errors import InputError  # noqa: E402

IMAGENET_MEAN = (124, 116, 104)  # becomes about zero when the detector normalises the picture
ZOOM_LIMITS = (0.25, 4.0)


class TrainTransforms:
    """Horizontal flip, random zoom and colour jitter.

    flip: probability of a horizontal flip.
    color: strength of the jitter, in [0, 1]: brightness, contrast and saturation are scaled by factors from 1 - color
        to 1 + color, and the hue is turned by up to color / 4 of the circle (the proportions of SimCLR, Chen et al.
        2020, appendix A).
    scale: range of the zoom, drawn uniformly on the logarithmic scale: see `RandomZoom`.
    min_visibility: an object of whose area a smaller part than this is left in the picture loses its box.

    Calling ``transforms(image, boxes, labels, rng_seed)`` with image uint8 (H, W, 3), boxes (n, 4) 0-based corners,
    labels (n,) and a seed >= 0 gives the same three, where boxes are float64, inside the new picture and at least a
    pixel wide and high, and whether the picture was flipped. The result depends on the arguments alone, not on earlier
    calls nor on the process.

    Raises InputError for settings out of range.
    """

    def __init__(
        self,
        flip: float = 0.5,
        color: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        min_visibility: float = 0.3,
    ) -> None:
        for name, value in (("flip", flip), ("color", color), ("min_visibility", min_visibility)):
            if not 0 <= value <= 1:
                raise InputError(f"'{name}' of the training transforms is {value}; it must lie in [0, 1]")
        if len(scale) != 2 or not ZOOM_LIMITS[0] <= scale[0] <= scale[1] <= ZOOM_LIMITS[1]:
            raise InputError(
                f"'scale' of the training transforms is {list(scale)}; it must be [smallest, largest] with both in "
                f"[{ZOOM_LIMITS[0]:g}, {ZOOM_LIMITS[1]:g}]"
            )
        # Boxes are carried as float32 parts of the picture: what is seen in full may count as a little less, and a
        # pixel may come out a little narrower than 1.
        visible = min(max(min_visibility, 0.001), 0.999)
        boxes = A.BboxParams(
            "pascal_voc", ["labels"], min_visibility=visible, min_width=0.99, min_height=0.99, clip=True
        )
        steps: list[A.BasicTransform] = [A.HorizontalFlip(p=flip)]
        if tuple(scale) != (1, 1):
            steps.append(RandomZoom(scale=(scale[0], scale[1]), min_visibility=visible))
        if color > 0:
            steps.append(A.ColorJitter(brightness=color, contrast=color, saturation=color, hue=color / 4, p=1))
        self._pipeline = A.Compose(steps, bbox_params=boxes, save_applied_params=True)

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng_seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        boxes, labels = np.asarray(boxes, dtype=np.float64).reshape(-1, 4), np.asarray(labels)
        # Compose.set_random_seed would give every step a generator of the same seed, and so the same draws.
        self._pipeline.set_random_state(np.random.default_rng(rng_seed), random.Random(rng_seed))
        # The row numbers stand for the labels, whatever those are.
        result = self._pipeline(image=image, bboxes=boxes, labels=np.arange(len(boxes)))
        height, width = result["image"].shape[:2]
        kept = np.asarray(result["labels"], dtype=np.int64)
        moved = np.asarray(result["bboxes"], dtype=np.float64).reshape(-1, 4)
        flipped = any(name == "HorizontalFlip" for name, _ in result["applied_transforms"])
        # A thousandth of a pixel is well above the noise of float32 and well below what matters.
        return result["image"], np.clip(moved.round(3), 0, (width, height) * 2), labels[kept], flipped


class RandomZoom(A.DualTransform):
    """Looks at the picture through a window of its aspect ratio, 1 / scale times as large, at a random place.

    With a scale above 1 the window is a crop; below 1 it is larger than the picture, and filled up with ImageNet's
    mean colour. Nothing is resampled: the detector, which resizes every picture to the same size, does that once.
    A crop that would leave none of the objects that were there is drawn anew, ten times at most, then given up.
    """

    _targets = (Targets.IMAGE, Targets.BBOXES)

    class InitSchema(BaseTransformInitSchema):
        scale: tuple[float, float]
        min_visibility: float

    def __init__(self, scale: tuple[float, float], min_visibility: float, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.scale, self.min_visibility = scale, min_visibility

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        boxes = data["bboxes"][:, :4] * np.array((width, height) * 2)
        for _ in range(10):
            window = self._draw_window(height, width)
            if len(boxes) == 0 or _visible_parts(boxes, window).max() >= self.min_visibility:
                return {"window": window}
        return {"window": (0, 0, width, height)}

    def _draw_window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 in pixels of the picture; a window that is larger than the picture holds all of it."""
        zoom = math.exp(self.py_random.uniform(*map(math.log, self.scale)))
        window_width, window_height = (max(1, round(side / zoom)) for side in (width, height))
        x1, y1 = (
            self.py_random.randint(min(0, room), max(0, room))
            for room in (width - window_width, height - window_height)
        )
        return x1, y1, x1 + window_width, y1 + window_height

    def apply(self, img: np.ndarray, window: tuple[int, int, int, int], **params: Any) -> np.ndarray:
        height, width = img.shape[:2]
        x1, y1, x2, y2 = window
        seen = img[max(y1, 0) : min(y2, height), max(x1, 0) : min(x2, width)]
        top, bottom, left, right = max(-y1, 0), max(y2 - height, 0), max(-x1, 0), max(x2 - width, 0)
        if not top + bottom + left + right:
            return seen
        return cv2.copyMakeBorder(seen, top, bottom, left, right, cv2.BORDER_CONSTANT, value=IMAGENET_MEAN)

    def apply_to_bboxes(self, bboxes: np.ndarray, window: tuple[int, int, int, int], **params: Any) -> np.ndarray:
        # Columns after the fourth are labels; coordinates are parts of the picture's width and height.
        height, width = params["shape"][:2]
        x1, y1, x2, y2 = window
        moved = bboxes.copy()
        pixels = bboxes[:, :4] * np.array((width, height) * 2)
        moved[:, :4] = (pixels - np.array((x1, y1) * 2)) / np.array((x2 - x1, y2 - y1) * 2)
        return moved


def _visible_parts(boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """The part in [0, 1] of each box's area (n, 4) -> (n,) that lies in the window."""
    x1, y1, x2, y2 = window
    seen = np.clip(boxes, (x1, y1) * 2, (x2, y2) * 2)
    return np.prod(seen[:, 2:] - seen[:, :2], axis=1) / np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
