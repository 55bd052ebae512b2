"""The one place where boxes of PASCAL VOC, COCO and YOLO become the corners that torchvision works with, and back.

A VOC box (x1, y1, x2, y2) names the first and the last pixel that it holds, counted from 1, so its width is
x2 - x1 + 1. Corners are continuous coordinates with 0 at the left edge of the first pixel, so the width is x2 - x1:
the box of the very first pixel is (1, 1, 1, 1) in VOC files and (0, 0, 1, 1) as corners. A COCO box is the corner
(x, y) with width and height, a YOLO box the centre with width and height in parts of the picture's.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Boxes = TypeVar("Boxes", np.ndarray, Tensor)


def voc_to_corners(boxes: Boxes) -> Boxes:
    """Corners (..., 4) of VOC *boxes* (..., 4), a new array or tensor; whole numbers become floating point."""
    return _shift_first_pixel(boxes, -1)


def corners_to_voc(boxes: Boxes) -> Boxes:
    """VOC boxes (..., 4) of corner *boxes* (..., 4), a new array or tensor; whole numbers become floating point."""
    return _shift_first_pixel(boxes, 1)


def xywh_to_corners(boxes: np.ndarray) -> np.ndarray:
    """Corners (..., 4) of COCO *boxes* (..., 4)."""
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def corners_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """COCO boxes (..., 4) of corner *boxes* (..., 4)."""
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def centres_to_corners(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Corners (n, 4) of YOLO *boxes* (n, 4) in a picture of *size*, width and height."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1) * np.tile(np.array(size), 2)


def corners_to_centres(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """YOLO boxes (n, 4) of corner *boxes* (n, 4) in a picture of *size*, width and height."""
    sides = np.array(size)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.concatenate([centres / sides, (boxes[:, 2:] - boxes[:, :2]) / sides], axis=1)


def _shift_first_pixel(boxes: Boxes, amount: int) -> Boxes:
    # Unsigned whole numbers would wrap round below 0, hence floating point whatever comes.
    if isinstance(boxes, Tensor):
        shifted = boxes.clone() if boxes.is_floating_point() else boxes.to(torch.get_default_dtype())
    else:
        shifted = np.array(boxes, dtype=None if np.issubdtype(boxes.dtype, np.floating) else np.float64)
    if shifted.shape[-1:] != (4,):
        raise ValueError(f"boxes must have shape (..., 4), not {tuple(shifted.shape)}")
    shifted[..., :2] += amount
    return shifted
