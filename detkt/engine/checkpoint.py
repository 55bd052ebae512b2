"""Checkpoints that survive being killed while written, and the random state they carry."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detkt.errors import InputError

FORMAT = 2


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let *write* fill a temporary file beside *path*, flush it to disk, then rename it.

    Whatever happens while writing, *path* is the old file or the new one, whole. What a killed process leaves of a
    temporary file is overwritten by the next write.

    Raises:
        InputError: the disk is full or the folder is not writable; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError of its zip writer
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot write {path}: {reason}; free space or choose another folder") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write *state* (tensors and plain Python values only) atomically."""
    write_atomically(path, lambda temporary: torch.save({"format": FORMAT, **state}, temporary))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of :func:`save_checkpoint` onto the CPU; nothing in it is ever executed.

    Raises:
        InputError: missing, truncated, not a checkpoint, or written by an incompatible version.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; nothing to resume")
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
        raise InputError(f"checkpoint {path} is damaged or not a checkpoint; delete it and start again") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"checkpoint {path} was not written by this version of detkt (expected format {FORMAT})")
    return state


def random_state() -> dict[str, Any]:
    """The state of every global generator training draws from, as tensors and plain values."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """The reverse of :func:`random_state`."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
