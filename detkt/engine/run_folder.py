"""What a run leaves on disk: its folder, made and cleared, and its ``metrics.json``."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
import torchvision

from detkt.base.errors import InputError
from detkt.base.files import check_folder, write_atomically
from detkt.base.version import __version__
from detkt.engine.checkpoint import LAST, older_checkpoints
from detkt.engine.trackers import ID

PICTURES = "pictures.npz"  # what became of each test picture (detkt.evaluation.outcomes)
RUN_FILES = ("config.yaml", "log.jsonl", "metrics.json", PICTURES, "last.pt", "model.safetensors", "model.json")
BEST = "best"  # the folder of the best model, where there is a list to choose it by


def check_run_folder(folder: Path, *, may_hold_run: bool) -> None:
    """See that a run can be written to *folder*; nothing is made or removed yet.

    Raises:
        InputError: taken by another run, not a folder, or not writable.
    """
    check_folder(folder)
    leftovers = _run_files(folder)
    if leftovers and not may_hold_run:
        raise InputError(
            f"the output folder {folder} holds a run already ({leftovers[0].name}); go on with --resume, "
            "replace it with --overwrite, or choose another --output"
        )


def open_folder(folder: Path, resume: Path | None) -> None:
    """Make the run's folder; a run in it that is not resumed is removed, and no other file.

    A run that is resumed from another folder's checkpoint takes that, its log and its best model along.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if resume is None or resume.parent.resolve() != folder.resolve():
            for path in _run_files(folder):
                path.unlink()
            if resume is not None:
                for path in (resume.parent / "log.jsonl", *resume.parent.glob(f"{BEST}/model.*")):
                    if path.is_file():
                        copied = folder / path.relative_to(resume.parent)
                        copied.parent.mkdir(exist_ok=True)
                        shutil.copyfile(path, copied)
                write_atomically(folder / LAST, lambda temporary: shutil.copyfile(resume, temporary))
    except OSError as error:
        raise InputError(f"cannot make the output folder {folder}: {error.strerror}; choose another --output") from None


def _run_files(folder: Path) -> list[Path]:
    """What a run wrote to *folder*."""
    names = [*RUN_FILES, ID, f"{BEST}/model.safetensors", f"{BEST}/model.json"]
    others = [*older_checkpoints(folder), *folder.glob("events.out.tfevents.*")]
    return [folder / name for name in names if os.path.lexists(folder / name)] + sorted(others)


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """JSON has no NaN: a class without ground truth becomes null."""
    write_atomically(path, lambda temporary: temporary.write_text(strict_json(metrics, 2) + "\n"))


def strict_json(value: Any, indent: int) -> str:
    """*value* as JSON, with null for every number that is not finite."""
    return json.dumps(_jsonable(value), indent=indent, allow_nan=False)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(part) for part in value]
    value = value.item() if hasattr(value, "dtype") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions(device: torch.device) -> dict[str, str]:
    """What the numbers were computed with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "detkt": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": name,
    }
