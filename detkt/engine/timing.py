"""Wall-clock time that waits for the device."""

from __future__ import annotations

import time

import torch


def clock(device: torch.device) -> float:
    """Seconds, read once everything queued on *device* is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
