"""Pictures decoded to find the damaged ones, and compared to find those that are there twice."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from detkt.base.errors import InputError
from detkt.data.images import Decoding, read_image
from detkt.prepare.findings import Findings

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 8  # more than processors: on a shared disk most of the time goes by waiting for files
_SIDE = 16
# Cosine of the gradients of two pictures reduced to 16 x 16: among 662 photos of VOC the highest of different scenes is
# 0.55; the same field under a microscope, focused anew, has 0.97.
_ALIKE = 0.9
_BLOCK = 2048


@dataclass(frozen=True)
class PictureFacts:
    """size: (width, height) as read; digest: of the file; gradients: float32 (420,) of norm 1, of 0 if it is flat."""

    size: tuple[int, int]
    digest: bytes
    gradients: np.ndarray


@contextlib.contextmanager
def in_threads(function: Callable[[T], R], items: Sequence[T], name: str, quiet: bool) -> Iterator[Iterable[R]]:
    """``map(function, items)`` by several threads, with a progress bar of *name*."""
    pool = ThreadPoolExecutor(_THREADS)
    try:
        yield tqdm(pool.map(function, items), name, len(items), disable=quiet)
    finally:
        pool.shutdown(cancel_futures=True)  # else Ctrl-C would wait for all that is still to do


def examine_pictures(
    paths: Sequence[Path],
    findings: Findings,
    size: Callable[[Path], tuple[int, int] | None],
    decoding: Decoding,
    quiet: bool = False,
) -> dict[Path, PictureFacts]:
    """Decode all of *paths* as training would, and report those that cannot be, or are not what their suffix says.

    size: what the picture's annotation states, which decides on turning it; decoding: where that cannot (see
    `read_image`).
    """
    facts: dict[Path, PictureFacts] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what it tolerates
        with in_threads(lambda path: _examine(path, size(path), decoding), paths, "pictures", quiet) as results:
            for path, found in zip(paths, results, strict=True):
                if isinstance(found, InputError):
                    findings.refused(path, found)
                    continue
                facts[path], content = found
                if Image.registered_extensions().get(path.suffix.lower(), content) != content:
                    findings.note(path, f"is a {content} picture, whatever its suffix says; it is read as that")
    return facts


def identical_pictures(facts: dict[Path, PictureFacts]) -> list[list[Path]]:
    """Groups of files with the same content."""
    groups = defaultdict(list)
    for path, found in facts.items():
        groups[found.digest].append(path)
    return [group for group in groups.values() if len(group) > 1]


def similar_pictures(
    facts: dict[Path, PictureFacts], first: Iterable[Path], second: Iterable[Path]
) -> list[tuple[Path, Path, float]]:
    """Pairs of different files, one of *first* and one of *second*, that show nearly the same, with their likeness."""
    first, second = [path for path in first if path in facts], [path for path in second if path in facts]
    if not first or not second:
        return []
    columns = np.stack([facts[path].gradients for path in second]).T
    pairs = []
    for start in range(0, len(first), _BLOCK):  # of 17,000 pictures all products at once take a gigabyte
        likeness = np.stack([facts[path].gradients for path in first[start : start + _BLOCK]]) @ columns
        for row, column in np.argwhere(likeness >= _ALIKE):
            one, other = first[start + row], second[column]
            if facts[one].digest != facts[other].digest:
                pairs.append((one, other, float(likeness[row, column])))
    return pairs


def _examine(path: Path, size: tuple[int, int] | None, decoding: Decoding) -> tuple[PictureFacts, str] | InputError:
    try:
        pixels = read_image(path, size, decoding)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        with Image.open(path) as picture:
            content = "JPEG" if picture.format == "MPO" else picture.format or ""  # a JPEG with more pictures behind it
    except InputError as error:
        return error
    except OSError as error:
        return InputError(f"{path}: cannot read the picture: {error.strerror or error}")
    small = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float32)
    gradients = np.concatenate([np.diff(values, axis=axis)[:-1, :-1].ravel() for axis in (0, 1)])
    return PictureFacts(pixels.shape[1::-1], digest, gradients / max(float(np.linalg.norm(gradients)), 1e-6)), content
