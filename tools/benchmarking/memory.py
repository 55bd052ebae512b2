"""How much memory a piece of work takes at its peak, and how much tensors hold."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_PEAK = "5"
_MARK = "the work that is measured"


def peak_rise(work: Callable[[], None], device: torch.device) -> int | None:
    """Bytes in use at the peak of *work* above those in use before it; None: this system does not tell.

    On a GPU: those of tensors. On the CPU: resident memory of this process (Linux alone), after the allocator has given
    back what it holds in reserve, so that *work* cannot draw on it unseen.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text(_RESET_PEAK)
        before = _resident("VmRSS")
    except OSError:
        return None
    work()
    return max(0, _resident("VmHWM") - before)


def tensor_peak_rise(work: Callable[[], None], device: torch.device) -> int:
    """Bytes that tensors hold at the peak of *work* above those that they held before it.

    Less than :func:`peak_rise` on the CPU, which has what libraries work in, too, and what lies between tensors that
    are no more. *work* is done twice: of what it frees, the profiler knows only what it saw allocated.
    """
    if device.type == "cuda":
        return peak_rise(work, device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
        with record_function(_MARK):
            work()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    level = peak = 0
    for event in events:
        if event.name() == _MARK:
            level = peak = 0
        elif event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that *tensors* hold; those that share their storage count once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _resident(field: str) -> int:
    """A field of Linux's status file, in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])
