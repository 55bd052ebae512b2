"""How long a network takes for a picture, on this machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

WARM_UP = 2
LEAST, MOST = 5, 100
"""How many calls are timed."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of *calls* calls with a picture each: their median and quartiles, with *threads* threads."""

    threads: int
    median: float
    lower: float
    upper: float
    calls: int

    def __str__(self) -> str:
        return f"{self.median:.1f} ({self.lower:.1f}-{self.upper:.1f})"

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def latency(call: Callable[[Tensor], Any], pictures: Sequence[Tensor], threads: int, seconds: float = 2.0) -> Latency:
    """Time *call* on one picture after the other, for about *seconds*; it uses *threads* threads already."""
    for number in range(WARM_UP):
        call(pictures[number % len(pictures)])
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST or (time.perf_counter() < end and len(times) < MOST):
        picture = pictures[len(times) % len(pictures)]
        started = time.perf_counter()
        call(picture)
        times.append(1000 * (time.perf_counter() - started))
    lower, median, upper = np.percentile(times, [25, 50, 75]).tolist()
    return Latency(threads, median, lower, upper, len(times))


def all_threads() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch with *count* threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def processor() -> str:
    """The CPU's name, and whether it has instructions for INT8 (VNNI)."""
    name, flags = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        name, flags = fields.get("model name", name), fields.get("flags", "")
    vnni = "has VNNI" if "vnni" in flags else "has no VNNI, the instructions for INT8" if flags else "VNNI not known"
    return f"{name}, {vnni}"
