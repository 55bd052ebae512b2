"""Decoded pictures on disk, reduced once to the size that the detector trains on."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from detkt.base.errors import InputError
from detkt.base.files import make_folder


class PictureCache:
    """Pictures as .npy files in *folder*, so that later epochs neither decode nor reduce them.

    A picture larger than the detector's input is reduced to it by the detector's own rule (the shorter side becomes
    *min_size*, or the longer *max_size*, whichever is less) and with its own bilinear interpolation, then rounded to 8
    bits; a smaller one is kept as it is, and enlarged by the detector as ever. Random zoom and colour come after: a
    crop is then one of the reduced picture.

    A file is named by the picture's path, size in bytes and time of change, and by its size here: a picture that
    changes is decoded anew (the old file stays until the folder is deleted). A damaged file is written again. Several
    runs can share a folder.

    Raises InputError: the folder cannot be made or is not writable.
    """

    def __init__(self, folder: Path, min_size: int, max_size: int) -> None:
        make_folder(folder, "data.cache")
        self.folder, self.min_size, self.max_size = folder, min_size, max_size

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in which a picture of this size is kept."""
        scale = min(1.0, self.min_size / min(width, height), self.max_size / max(width, height))
        # The shorter side must be min_size itself, not one pixel less by rounding: else it would be resized again.
        return max(1, math.floor(width * scale + 1e-6)), max(1, math.floor(height * scale + 1e-6))

    def read(
        self, path: Path, size: tuple[int, int], decode: Callable[[], np.ndarray], exif: str = "apply"
    ) -> np.ndarray:
        """The picture at *path* of *size* (width, height): a writable uint8 array (height', width', 3).

        decode: called without arguments for the whole picture, where it is not kept yet.
        exif: as *decode* treats it (`detkt.data.images.Decoding`): what is turned is another picture.

        Raises InputError: the folder is not writable, the disk is full; and what *decode* raises.
        """
        width, height = self.size(*size)
        try:
            found = path.stat()
        except OSError:
            return _resized(decode(), width, height)  # which says better what is wrong
        turned = () if exif == "apply" else (exif,)
        key = repr((str(path.resolve()), found.st_size, found.st_mtime_ns, width, height, *turned))
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        file = self.folder / name[:2] / f"{name[2:]}.npy"
        picture = _load(file)
        if picture is None or picture.shape != (height, width, 3) or picture.dtype != np.uint8:
            picture = _resized(decode(), width, height)
            _save(file, picture)
        return picture


def _load(file: Path) -> np.ndarray | None:
    """The array in *file*, read whole in one go (a mapping would be copied just the same); None: missing or damaged."""
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError):
        return None


def _resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    if picture.shape[:2] == (height, width):
        return picture
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    reduced = F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)[0]
    return reduced.round_().byte().permute(1, 2, 0).contiguous().numpy()


def _save(file: Path, picture: np.ndarray) -> None:
    """Write and rename. Another process may be at the same picture: the temporary file is this one's own."""
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            np.save(stream, picture)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise InputError(
            f"cannot write the picture cache {file.parent.parent}: {error.strerror or error}; free space, or choose "
            "another folder as data.cache"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
