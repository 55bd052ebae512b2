"""The device to compute on, and wall-clock time that waits for it."""

from __future__ import annotations

import time

import torch

from detkt.base.errors import InputError


def clock(device: torch.device) -> float:
    """Seconds, read once everything queued on *device* is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def resolve_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one. InputError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device '{name}'; use cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device '{name}' is not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device '{name}' was asked for but torch sees no CUDA; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device '{name}' was asked for but there are {torch.cuda.device_count()} CUDA devices")
    return device
