"""Checkpoints that survive being killed while written, and the random state they carry."""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

from detkt.base.errors import InputError
from detkt.base.files import write_atomically

FORMAT = 4
LAST = "last.pt"
# After torch's own bytes stands the checksum of all of them: torch.load passes over it, and over flipped bits as well.
_MARK, _CHECKSUM_BYTES = b"detkt crc32 ", 4
_REMEDY = "resume from another checkpoint of the run, or start it anew"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write *state* (tensors and plain Python values only) atomically."""

    def write(temporary: Path) -> None:
        torch.save({"format": FORMAT, **state}, temporary)
        with temporary.open("rb+") as file:
            file.write(_MARK + _checksum(file, os.path.getsize(temporary)))

    write_atomically(path, write)


def keep_last(folder: Path, step: int) -> None:
    """Give ``last.pt``, which is of *step*, the name ``checkpoint-<step>.pt`` too, before a newer one takes its place.

    Raises:
        InputError: the disk is full or the folder is not writable.
    """

    def write(temporary: Path) -> None:
        # What a killed process left may be another name of a checkpoint: it must not be written through.
        temporary.unlink(missing_ok=True)
        try:
            os.link(folder / LAST, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(folder / LAST, temporary)

    write_atomically(folder / f"checkpoint-{step}.pt", write)


def prune(folder: Path, step: int, keep: int) -> None:
    """Leave ``last.pt``, which is of *step*, and the *keep* - 1 newest older checkpoints.

    Those of *step* or later are of a course that the run has not taken: it was resumed from before.
    """
    steps = sorted(int(found.stem.partition("-")[2]) for found in older_checkpoints(folder))
    older = [number for number in steps if number < step]
    kept = older[max(0, len(older) - keep + 1) :]
    for number in set(steps) - set(kept):
        (folder / f"checkpoint-{number}.pt").unlink(missing_ok=True)


def older_checkpoints(folder: Path) -> list[Path]:
    """The ``checkpoint-<step>.pt`` in *folder*."""
    return [path for path in folder.glob("checkpoint-*.pt") if path.stem.partition("-")[2].isdecimal()]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of :func:`save_checkpoint` onto the CPU; nothing in it is ever executed.

    Raises:
        InputError: missing, truncated, changed since it was written, not a checkpoint, or written by an incompatible
            version.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; nothing to resume")
    if not _is_as_written(path):
        raise InputError(f"checkpoint {path} is damaged: it is not what was written; {_REMEDY}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are refused right after
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"checkpoint {path} is damaged or holds pickled code, which is never run: only detkt's own checkpoints are "
            "resumed"
        ) from None
    except Exception:  # a damaged file raises nearly anything
        raise InputError(f"checkpoint {path} is damaged or not a checkpoint; {_REMEDY}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"checkpoint {path} was not written by this version of detkt (expected format {FORMAT})")
    return state


def _is_as_written(path: Path) -> bool:
    """Whether the checksum at the end of *path* is that of the rest; True where there is none, or it cannot be read."""
    try:
        with path.open("rb") as file:
            size = max(0, os.path.getsize(path) - len(_MARK) - _CHECKSUM_BYTES)
            expected = _checksum(file, size)
            end = file.read()
    except OSError:
        return True
    return not end.startswith(_MARK) or end == _MARK + expected


def _checksum(file: BinaryIO, size: int) -> bytes:
    """CRC-32 of the next *size* bytes of *file*."""
    value = 0
    while size and (part := file.read(min(size, 1 << 20))):
        value, size = zlib.crc32(part, value), size - len(part)
    return value.to_bytes(_CHECKSUM_BYTES)
