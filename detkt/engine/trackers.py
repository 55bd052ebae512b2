"""Where else a run's numbers go: TensorBoard, Weights & Biases or MLflow, through Accelerate's trackers."""

from __future__ import annotations

import importlib.util
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from detkt.base.errors import InputError, first_line
from detkt.base.files import load_json, write_atomically

ID = "tracker.json"  # in the run's folder: which run of the tracker's it is, for a resumed one
PROJECT = "detkt"


def check_tracker(name: str) -> None:
    """Raise InputError where ``train.tracker`` is of a package that is not installed."""
    if name not in ("auto", "none") and importlib.util.find_spec(name) is None:
        raise InputError(f"train.tracker={name} needs the package {name}: pip install {name}, or train.tracker=none")


def open_tracker(name: str, folder: Path, resume_step: int | None) -> GeneralTracker | None:
    """Begin to track the run in *folder*, or go on where it was resumed from *resume_step*.

    ``auto`` is TensorBoard where installed. TensorBoard's files lie in *folder*; the others go where their own
    settings say (``MLFLOW_TRACKING_URI``, ``WANDB_MODE``, ...), project ``detkt``, under the folder's name.

    Returns:
        None: there is nothing to track with.

    Raises:
        InputError: the tracker cannot begin.
    """
    if name == "none" or (name == "auto" and importlib.util.find_spec("tensorboard") is None):
        return None
    try:
        tracker = _tracker(name, folder.resolve(), resume_step)
        tracker.start()
    except Exception as error:  # any of theirs: no server, no account, no disk
        raise InputError(f"train.tracker={name}: {first_line(error)}; mend it, or train.tracker=none") from None
    if isinstance(tracker, MLflowTracker):
        _keep_id(folder, tracker.tracker.info.run_id)
    return tracker


def track(tracker: GeneralTracker, entry: Mapping[str, Any]) -> None:
    """The numbers of a logged line, as STAGE/NAME."""
    numbers = {f"{entry['stage']}/{name}": value for name, value in entry.items() if isinstance(value, float)}
    tracker.log(numbers, step=entry["step"])


def _tracker(name: str, folder: Path, resume_step: int | None) -> GeneralTracker:
    if name == "mlflow":
        return MLflowTracker(PROJECT, run_id=_known_id(folder, resume_step), run_name=folder.name)
    if name == "wandb":
        known = _known_id(folder, resume_step) or secrets.token_hex(8)
        _keep_id(folder, known)
        return WandBTracker(PROJECT, name=folder.name, dir=str(folder), id=known, resume="allow")
    purge = None if resume_step is None else resume_step + 1
    return TensorBoardTracker(folder.name, folder.parent, purge_step=purge)


def _known_id(folder: Path, resume_step: int | None) -> str | None:
    path = folder / ID
    return load_json(path)["id"] if resume_step is not None and path.exists() else None


def _keep_id(folder: Path, name: str) -> None:
    write_atomically(folder / ID, lambda path: path.write_text(json.dumps({"id": name}) + "\n"))
