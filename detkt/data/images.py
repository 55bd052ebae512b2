"""Decoding of pictures: whatever the file holds, the result is 8-bit RGB, the right way up."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from detkt.base.errors import InputError

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
_SIDEWAYS = (5, 6, 7, 8)
# What Pillow's decoders raise for damaged files: they were written by many hands.
_DAMAGED = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, struct.error)


def read_image(path: str | PathLike[str], size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode a picture file to RGB, a writable uint8 array (height, width, 3).

    Grey, palette, CMYK, YCbCr and 1-bit pictures are converted; transparent ones are laid over white; 16-bit values
    are scaled to 8 bits; of several frames the first is taken. The EXIF orientation is applied, unless *size* =
    (width, height), the size that the annotation states, fits the picture only as it is stored: then its boxes
    were drawn on the picture as stored (TIFF pictures are always turned).

    Raises InputError: no such file, not a picture, truncated or damaged, pixels of 32-bit floating point.
    """
    with _opened(path) as picture:
        picture.load()
        orientation = _orientation(picture, size)
        rgb = _to_rgb(picture, path)
        if orientation in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[orientation])
        return np.array(rgb)


def read_image_size(path: str | PathLike[str], size: tuple[int, int] | None = None) -> tuple[int, int]:
    """(width, height) of what `read_image` would give, as the header says; raises InputError for one it cannot read."""
    with _opened(path) as picture:
        # Pillow turns TIFF pictures by itself, in their size too. To look for EXIF it may decode the whole picture,
        # so it is not asked where the answer would not matter.
        if picture.format == "TIFF" or picture.size == size or _orientation(picture, size) not in _SIDEWAYS:
            return picture.size
        return picture.size[::-1]


@contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            yield picture
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a picture, or damaged at its start") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: the picture is too large to be decoded safely: {error}") from error
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path}: cannot read the picture: {error.strerror}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: the picture is truncated or damaged: {reason}") from error


def _orientation(picture: Image.Image, size: tuple[int, int] | None) -> int:
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGED:  # the pixels may be fine all the same
        return 1
    if orientation in _SIDEWAYS and size is not None and picture.size == size != picture.size[::-1]:
        return 1
    return orientation


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
