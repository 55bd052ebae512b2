"""Detections of one model on any pictures: which files, what is drawn, what is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from detkt.base.errors import InputError, first_line
from detkt.data.boxes import corners_to_voc
from detkt.data.images import Decoding, check_strip, picture_suffixes, read_image
from detkt.visualization.video import DRAWN, is_video

CONVENTION = (
    "bbox: x, y, width, height in pixels of the upright picture (EXIF orientation applied), continuous, counted from 0 "
    "at its left upper edge. VOC's 1-based inclusive pixels are x + 1, y + 1, x + width, y + height."
)

_LONGEST = 200  # bytes of a drawn picture's name: the system's limit is 255, of what is put around it as well


def find_pictures(paths: Iterable[Path]) -> list[Path]:
    """The files among *paths* and the pictures (by suffix, sorted by name) in the folders, but not in theirs.

    A file is taken whatever its suffix, and each only once. Raises InputError: no such path, or not a single picture.
    """
    suffixes = picture_suffixes()
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(
                p for p in path.iterdir() if p.suffix.lower() in suffixes and p.name[0] != "." and p.is_file()
            )
            if not inside:
                raise InputError(f"{path}: the folder holds no picture, by the suffix")
            found |= dict.fromkeys(inside)
        elif path.is_file():
            found[path] = None
        else:
            raise InputError(f"{path}: no such picture or folder")
    return list(found)


def detect_file(
    path: Path,
    model: nn.Module,
    classes: Sequence[str],
    device: torch.device,
    score_threshold: float,
    decoding: Decoding,
) -> tuple[np.ndarray, dict[str, Any]]:
    """The picture at *path* as `read_image` gives it, and what `detect_picture` finds in it.

    Raises InputError for all that can be wrong with one picture, so that others need not suffer: it cannot be read, is
    a strip (`check_strip`), or too large for the memory.
    """
    image = read_image(path, None, decoding)
    check_strip(path, *image.shape[1::-1])
    try:
        return image, detect_picture(model, image, classes, device, score_threshold)
    except (MemoryError, RuntimeError) as error:  # torch has no error of its own for a CPU's full memory
        raise InputError(f"{path}: the detector fails on it: {first_line(error, 160)}") from error


@torch.inference_mode()
def detect_picture(
    model: nn.Module, image: np.ndarray, classes: Sequence[str], device: torch.device, score_threshold: float
) -> dict[str, Any]:
    """Detections in *image* (H, W, 3) uint8 by descending score, a record as in `detkt.evaluation.records`."""
    tensor = torch.from_numpy(image).permute(2, 0, 1).to(device).float().div(255)
    output = {key: values.cpu().numpy() for key, values in model([tensor])[0].items()}
    order = np.argsort(-output["scores"], kind="stable")
    order = order[output["scores"][order] >= score_threshold]
    return {
        "boxes": corners_to_voc(output["boxes"][order].astype(np.float64)),
        "scores": output["scores"][order].astype(np.float64),
        "labels": [classes[label - 1] for label in output["labels"][order]],
    }


def drawn_paths(pictures: Sequence[Path], folder: Path) -> list[Path]:
    """Where each picture is drawn: in *folder*, a JPEG for a JPEG, an MP4 for a video, else a PNG; numbered where two
    share a name.

    Raises InputError where one of the *pictures* themselves would be overwritten.
    """
    drawn: dict[str, Path] = {}
    for picture in pictures:
        suffix = ".jpg" if picture.suffix.lower() in (".jpg", ".jpeg") else DRAWN if is_video(picture) else ".png"
        stem = picture.stem.encode(errors="backslashreplace")[:_LONGEST].decode(errors="ignore")
        name, number = f"{stem}{suffix}", 1
        while name.lower() in drawn:
            number += 1
            name = f"{stem}-{number}{suffix}"
        drawn[name.lower()] = folder / name
    originals = {picture.resolve() for picture in pictures}
    for path in drawn.values():
        if path.resolve() in originals:
            raise InputError(f"{path} is one of the pictures and would be overwritten; choose another --output")
    return list(drawn.values())
