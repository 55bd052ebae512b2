"""How much memory a piece of work takes at its peak, and how much tensors hold."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_PEAK = "5"


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


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that *tensors* hold; those that share their storage count once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _resident(field: str) -> int:
    """A field of Linux's status file, in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])
