"""Parts of a split, to choose settings on pictures that are not the test's: ``train[:-5000]``, ``train[-5000:]``."""

from __future__ import annotations

import re

import numpy as np

from detkt.base.errors import InputError

_SLICED = re.compile(r"([^\[\]]+)\[(-?\d+)?:(-?\d+)?\]")


def parse_part(split: str) -> tuple[str, slice]:
    """The name of a split and the slice of it that *split* asks for. Raises InputError: it is neither name nor part."""
    found = _SLICED.fullmatch(split.strip())
    if found:
        return found[1].strip(), slice(*(None if bound is None else int(bound) for bound in found.groups()[1:]))
    if not split.strip() or "[" in split or "]" in split:
        raise InputError(f"'{split}' is no split; write its name, or a part as train[:-5000] or train[-5000:]")
    return split.strip(), slice(None)


def part_of(count: int, split: str, part: slice) -> np.ndarray:
    """Numbers, ascending, of the pictures in *part* of one fixed random order of the *count* that *split* has."""
    kept = np.sort(np.random.RandomState(0).permutation(count)[part])  # a stream that NumPy keeps as it is
    if len(kept) == 0:
        bounds = ":".join("" if bound is None else str(bound) for bound in (part.start, part.stop))
        raise InputError(f"{split}[{bounds}] holds no picture: '{split}' has {count}; give other bounds")
    return kept
