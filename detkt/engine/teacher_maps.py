"""The files of a teacher cache: what they were made of, where each picture's maps lie, reading and appending them."""

from __future__ import annotations

import json
import logging
import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from detkt.base.errors import InputError
from detkt.base.files import write_atomically

try:
    import fcntl
except ImportError:  # Windows: there, two runs must not write one cache at the same time
    fcntl = None

FORMAT = 1
HEADER, MAPS = "teacher-cache.json", "teacher-maps.bin"
BYTES = 2  # of a bfloat16

log = logging.getLogger(__name__)

Shapes = dict[str, dict[str, list[int]]]  # input size -> name of the map -> C, H, W


class Layout:
    """Where each picture's maps lie: pictures of one input size together, each in all its states, each in all its maps.

    inputs: the input size of every picture; states: False as it is, True mirrored. Positions count values.
    """

    def __init__(self, inputs: list[str], shapes: Shapes, states: list[bool]) -> None:
        self.inputs, self.shapes, self.states = inputs, shapes, states
        self.names = list(next(iter(shapes.values())))
        self.order = sorted(range(len(inputs)), key=lambda picture: (inputs[picture], picture))
        self._state_length = {size: sum(map(math.prod, maps.values())) for size, maps in shapes.items()}
        self.ends = list(accumulate(len(states) * self._state_length[inputs[picture]] for picture in self.order))
        self._starts = dict(zip(self.order, [0, *self.ends], strict=False))

    def start(self, picture: int, flipped: bool) -> int:
        return self._starts[picture] + self.states.index(flipped) * self._state_length[self.inputs[picture]]

    def batches(self, first: int, size: int) -> list[list[int]]:
        """The pictures from place *first* of the order on, in lists of at most *size* of one input size."""
        groups = [list(group) for _, group in groupby(self.order[first:], key=self.inputs.__getitem__)]
        return [group[begin : begin + size] for group in groups for begin in range(0, len(group), size)]


class StoredMaps:
    """A complete cache, open for reading."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._layout = layout
        # NumPy knows no bfloat16; values are only copied, so that any type of two bytes does.
        with open(path, "rb") as file:
            self._values = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.int16)

    def read(self, pictures: Sequence[int], flipped: Sequence[bool], device: torch.device) -> dict[str, Tensor]:
        """See :meth:`detkt.engine.teacher_cache.TeacherCache.read`."""
        layout = self._layout
        starts = [layout.start(picture, state) for picture, state in zip(pictures, flipped, strict=True)]
        inputs = [layout.inputs[picture] for picture in pictures]
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else torch.float32
        result = {}
        for name in layout.names:
            shapes = [layout.shapes[size][name] for size in inputs]
            height, width = (max(shape[axis] for shape in shapes) for axis in (1, 2))
            make = torch.empty if len(set(inputs)) == 1 else torch.zeros
            size = (len(shapes), shapes[0][0], height, width)
            batch = make(size, dtype=torch.int16, pin_memory=device.type == "cuda")
            for place, shape in enumerate(shapes):
                end = starts[place] + math.prod(shape)
                batch.numpy()[place, :, : shape[1], : shape[2]] = self._values[starts[place] : end].reshape(shape)
                starts[place] = end
            # In the order of the student's maps, or every comparison with them would go through memory crosswise.
            maps = batch.view(torch.bfloat16).to(device, non_blocking=True)
            result[name] = maps.to(dtype, memory_format=torch.channels_last)
        return result


@dataclass
class Header:
    """What the JSON file holds.

    ``key``: what the maps were made of, by name; ``written``: how many pictures, in the layout's order, are on disk.
    """

    format: int
    key: dict[str, Any]
    shapes: Shapes
    written: int = 0


def read_header(folder: Path, key: dict[str, Any]) -> Header | None:
    """The header of the cache in *folder*; None: there is none.

    Raises:
        InputError: it is damaged, of another version, or of anything else than *key*.
    """
    path = folder / HEADER
    advice = "give another --cache-teacher, or delete the folder to have it made anew"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise InputError(
                f"the teacher cache {folder} was written by another version of detkt (format {content['format']}, not "
                f"{FORMAT}); {advice}"
            )
        header = Header(**content)
        if not (isinstance(header.key, dict) and isinstance(header.shapes, dict) and isinstance(header.written, int)):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        return None
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"the teacher cache {folder} is damaged: {HEADER} cannot be read; {advice}") from None
    for what in [*key, *header.key]:
        theirs, ours = header.key.get(what), key.get(what)
        if theirs != ours:
            raise InputError(
                f"the teacher cache {folder} does not fit: {what} is {_short(theirs)} there, {_short(ours)} here; "
                f"{advice}"
            )
    return header


def is_complete(folder: Path, header: Header, layout: Layout) -> bool:
    """Whether the file of maps is there, with all of them."""
    maps = folder / MAPS
    return header.written == len(layout.order) and maps.is_file() and maps.stat().st_size == BYTES * layout.ends[-1]


def lock(file: BinaryIO, folder: Path) -> None:
    """Nobody else writes this cache until *file* is closed, as it is when a process ends, however it does."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("another run writes the teacher cache %s: waiting for it", folder)
        fcntl.flock(file, fcntl.LOCK_EX)


def append(file: BinaryIO, content: memoryview, folder: Path) -> None:
    """Write all of *content*; InputError where the disk is full."""
    try:
        while content:
            content = content[file.write(content) :]
    except OSError as error:
        raise _unwritable(folder, error) from None


def save(file: BinaryIO, folder: Path, header: Header) -> None:
    """See that the maps are on disk, then that the header says so."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(folder, error) from None
    text = json.dumps(asdict(header), indent=2) + "\n"
    write_atomically(folder / HEADER, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write the teacher cache {folder}: {error.strerror}; free space and start again (what is written is "
        "kept), or choose another --cache-teacher"
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}…"
