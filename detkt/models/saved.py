"""Networks saved to a folder, ``model.safetensors`` and ``model.json``, and rebuilt from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from detkt.base.errors import InputError, first_line
from detkt.base.files import write_atomically
from detkt.models.card import card_of
from detkt.models.families import FAMILIES
from detkt.models.reading import read_tensors
from detkt.models.weights import WEIGHTS_FILE, shape_text, unwrapped

META_FILE = "model.json"
FORMAT = 1


def save_model(
    model: nn.Module, folder: str | Path, classes: Sequence[str], extra: dict[str, Any] | None = None
) -> None:
    """Write ``model.safetensors`` and ``model.json`` to *folder*, each under a temporary name first.

    Args:
        model: built by `detkt.models.build_detector` or `detkt.models.build_classifier`.
        folder: created where it is not there; a model in it is replaced.
        classes: names; a detector's without the background.
        extra: anything for JSON, kept under "extra".

    Raises:
        InputError: detkt did not build the model, *classes* does not fit it, or the folder cannot be written.
    """
    card = card_of(model)
    meta = {
        "format": FORMAT,
        "task": card.task,
        "architecture": card.architecture,
        "options": card.options,
        "classes": list(classes),
    }
    if extra is not None:
        meta["extra"] = extra
    background = FAMILIES[card.task].background
    known, what = card.num_classes - background, "classes besides the background" if background else "classes"
    if len(set(classes)) != known or len(set(classes)) != len(classes):
        raise InputError(
            f"cannot save the model: it has {known} {what}, the class list has {len(classes)} names, "
            f"{len(set(classes))} of them different"
        )
    description = json.dumps(meta, indent=2) + "\n"
    # Cloned, because safetensors refuses tensors that share memory; names without wrappers' prefixes.
    state = {unwrapped(k): v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error
    write_atomically(folder / WEIGHTS_FILE, lambda path: path.write_bytes(safetensors.torch.save(state)))
    write_atomically(folder / META_FILE, lambda path: path.write_text(description, encoding="utf-8"))


def load_model(
    path: str | Path, device: str | torch.device = "cpu", task: str | None = "detection"
) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild a saved network. Nothing is downloaded.

    Args:
        path: a folder that `save_model` wrote, or the ``model.safetensors`` in it.
        device: where the model goes.
        task: ``detection`` or ``classification``, what the network is needed for; None takes either.

    Returns:
        The model, in evaluation mode, and what ``model.json`` says: "task", "architecture", "options", "classes" and,
        where `save_model` was given it, "extra".

    Raises:
        InputError: a file is missing or damaged, the two files do not belong together, or it is for another task.
    """
    folder, meta = read_meta(path)
    if task not in (None, meta["task"]):
        raise InputError(f"{folder / META_FILE}: 'task' is {meta['task']!r}, needed is a model for {task!r}")
    state = read_tensors(folder / WEIGHTS_FILE)
    name = meta["architecture"]
    family = FAMILIES[meta["task"]]
    try:
        # Resolved here, so that only options of the net reach the builder, not its other arguments.
        options = family.resolve_options(name, meta["options"])
        model = family.build(name, len(meta["classes"]) + family.background, **options)
    except InputError as error:
        raise InputError(f"{folder / META_FILE}: {error}") from error
    _check_belongs(state, model, name, folder)
    model.load_state_dict(state)
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device '{device}': this machine has no CUDA device that torch can use; use 'cpu'")
    return model.to(device).eval(), meta


def read_meta(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a saved network, and what its ``model.json`` says; arguments and errors as `load_model`'s."""
    path = Path(path)
    if path.is_file() and path.name not in (WEIGHTS_FILE, META_FILE):
        where = f", perhaps {path.parent}" if (path.parent / WEIGHTS_FILE).exists() else ""
        raise InputError(
            f"{path} is not a saved model: give the folder that holds {WEIGHTS_FILE}{where}"
            + ("" if where else " (bare weights are set with student.weights or teacher.weights)")
        )
    folder = path.parent if path.name in (WEIGHTS_FILE, META_FILE) else path
    path = folder / META_FILE
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        if not path.exists() and (folder / "last.pt").exists():
            raise InputError(
                f"{folder} is a run that is not finished and has no model yet; go on with --resume {folder}"
            ) from error
        raise InputError(
            f"cannot read {path}: {error.strerror}; a saved model is a folder with {META_FILE} and {WEIGHTS_FILE}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({first_line(error, 160)})") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"{path}: not a model description of format {FORMAT}")
    if meta.get("task") not in tuple(FAMILIES):
        raise InputError(f"{path}: 'task' is {meta.get('task')!r}, it must be {' or '.join(map(repr, FAMILIES))}")
    for key, kind in (("architecture", str), ("options", dict), ("classes", list)):
        if not isinstance(meta.get(key), kind):
            raise InputError(f"{path}: '{key}' is missing or not a {kind.__name__}")
    classes = meta["classes"]
    if not classes or not all(isinstance(c, str) for c in classes) or len(set(classes)) != len(classes):
        raise InputError(f"{path}: 'classes' must be a list of different names")
    return folder, meta


def _check_belongs(state: dict[str, Tensor], model: nn.Module, architecture: str, folder: Path) -> None:
    own = model.state_dict()
    last = "roi_heads.box_predictor.cls_score.weight"
    if last in state and last in own and state[last].shape[0] != own[last].shape[0]:
        raise InputError(
            f"{folder}: {META_FILE} names {own[last].shape[0] - 1} classes, {WEIGHTS_FILE} has "
            f"{state[last].shape[0] - 1}; the two files do not belong together"
        )
    wrong = [f"'{name}' is missing" for name in own.keys() - state.keys()]
    wrong += [f"'{name}' is unknown" for name in state.keys() - own.keys()]
    wrong += [
        f"'{name}' is {shape_text(state[name].shape)} and not {shape_text(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    if wrong:
        raise InputError(
            f"{folder / WEIGHTS_FILE}: not the weights of {architecture}, which {META_FILE} names: "
            f"{min(wrong)}, and {len(wrong) - 1} more"
        )
