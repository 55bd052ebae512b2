"""Decoding of pictures: whatever the file holds, the result is 8-bit RGB, the right way up."""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from os import PathLike

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from detkt.base.errors import InputError

FLATTEST = 50
"""Longer side over shorter beyond which detectors refuse a picture: resized to their input nothing would be left."""
MAX_PIXELS = 178_956_970
"""What Pillow itself decodes at most, unless told otherwise."""

# EXIF 2.32, section 4.6.4, tag 274: what must be done to the stored picture so that it stands upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = _UPRIGHT | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
_SIDEWAYS = (5, 6, 7, 8)
# What Pillow's decoders raise for damaged files: they were written by many hands.
_DAMAGED = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, struct.error)
# Recognised but not decoded by Pillow alone; Ghostscript, which would run a program that is in the file, among them.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_FIRST = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")

# A picture's size is judged below, by a limit that can be set.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Decoding:
    """How pictures are read.

    exif: whether an EXIF orientation is applied ("apply") or not ("ignore"), where the annotation's size does not tell
        which of the two its boxes were drawn on.
    max_pixels: larger pictures are refused.
    """

    exif: str = "apply"
    max_pixels: float = MAX_PIXELS


AS_USUAL = Decoding()


@cache
def picture_suffixes() -> tuple[str, ...]:
    """Suffixes, in lower case, of all files that Pillow decodes; the usual ones first."""
    known = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN.keys() - _NOT_DECODED
    }
    return (*_FIRST, *sorted(known.difference(_FIRST)))


def read_image(
    path: str | PathLike[str], size: tuple[int, int] | None = None, decoding: Decoding = AS_USUAL
) -> np.ndarray:
    """Decode a picture file to RGB, a writable uint8 array (height, width, 3).

    Grey, palette, CMYK, YCbCr and 1-bit pictures are converted; transparent ones are laid over white; 16-bit values
    are scaled to 8 bits; of several frames the first is taken.

    The EXIF orientation is applied where that gives *size* = (width, height), which the annotation states, and not
    applied where *size* is that of the picture as stored: then its boxes were drawn on that. Where it cannot be told,
    for squares and orientations that keep the sides, *decoding* decides.

    Raises InputError: no such file, not a picture, truncated or damaged, too large, 32-bit floating point.
    """
    with _opened(path, decoding) as picture:
        orientation, turned, _ = _orientation(picture, size, decoding)
        is_tiff = picture.format == "TIFF"
        picture.load()
        rgb = _to_rgb(picture, path)
        if turned and not is_tiff:
            rgb = rgb.transpose(_UPRIGHT[orientation])
        elif is_tiff and not turned and orientation in _BACK:  # Pillow turns these by itself
            rgb = rgb.transpose(_BACK[orientation])
        return np.array(rgb)


def read_image_size(
    path: str | PathLike[str], size: tuple[int, int] | None = None, decoding: Decoding = AS_USUAL
) -> tuple[int, int]:
    """(width, height) of what `read_image` would give, as the header says; raises InputError for one it cannot read."""
    return inspect_image(path, size, decoding)[0]


def inspect_image(
    path: str | PathLike[str], size: tuple[int, int] | None = None, decoding: Decoding = AS_USUAL
) -> tuple[tuple[int, int], bool]:
    """`read_image_size`, and whether *decoding* had to decide on turning the picture."""
    with _opened(path, decoding) as picture:
        # To look for EXIF in a PNG Pillow may decode the whole picture: not where the answer would not matter.
        if picture.format == "PNG" and "exif" not in picture.info and picture.size == size:
            return picture.size, False
        orientation, turned, undecided = _orientation(picture, size, decoding)
        stored = _stored_size(picture, orientation)
        return (stored[::-1] if turned and orientation in _SIDEWAYS else stored), undecided


def check_strip(path: str | PathLike[str], width: int, height: int) -> None:
    """Raises InputError for a picture so flat that a detector, which reduces it, would be left with no pixel."""
    if max(width, height) > FLATTEST * min(width, height):
        raise InputError(
            f"{path}: the picture is {width} x {height} pixels, a strip flatter than {FLATTEST} to 1, of which a "
            "detector sees nothing; cut it into pieces, or leave it out"
        )


@contextmanager
def _opened(path: str | PathLike[str], decoding: Decoding) -> Iterator[Image.Image]:
    if decoding.max_pixels > (Image.MAX_IMAGE_PIXELS or decoding.max_pixels):
        Image.MAX_IMAGE_PIXELS = int(decoding.max_pixels)  # raised for good: threads may be at it
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > decoding.max_pixels:
                raise Image.DecompressionBombError(f"({picture.width * picture.height} pixels)")
            yield picture
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a picture, or damaged at its start") from None
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        has = f"has {int(pixels[1]):,} pixels" if pixels else "is too large"
        raise InputError(
            f"{path}: the picture {has}, and {int(decoding.max_pixels):,} are the most that is decoded: cut it into "
            "tiles, or raise that limit (data.max_pixels, predict.py: --max-pixels)"
        ) from None
    except MemoryError:
        raise InputError(f"{path}: the picture does not fit into memory; cut it into tiles") from None
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path}: cannot read the picture: {error.strerror}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: the picture is truncated or damaged: {reason}") from error


def _orientation(picture: Image.Image, size: tuple[int, int] | None, decoding: Decoding) -> tuple[int, bool, bool]:
    """(EXIF orientation, whether it is applied, whether *decoding* had to decide that)."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGED:  # the pixels may be fine all the same
        return 1, False, False
    if orientation not in _UPRIGHT:
        return 1, False, False
    stored = _stored_size(picture, orientation)
    if orientation in _SIDEWAYS and stored != stored[::-1] and size in (stored, stored[::-1]):
        return orientation, size != stored, False
    return orientation, decoding.exif == "apply", True


def _stored_size(picture: Image.Image, orientation: int) -> tuple[int, int]:
    """(width, height) before any turning; a TIFF picture says that after it."""
    return picture.size[::-1] if picture.format == "TIFF" and orientation in _SIDEWAYS else picture.size


def _to_rgb(picture: Image.Image, path: str | PathLike[str]) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode == "F":
        raise InputError(f"{path}: pixels of 32-bit floating point have no known range; save the picture as 8-bit RGB")
    if picture.mode.startswith("I"):  # 16 bits, which Pillow also keeps in 32-bit "I"
        values = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")
