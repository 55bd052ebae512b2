"""Weights of detectors: taken from classifiers or other detectors, saved to a folder, and rebuilt from it.

Files are read by :mod:`detkt.models.reading`, which cannot run code that is in them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from detkt.base.errors import InputError, first_line
from detkt.base.files import write_atomically
from detkt.models.options import parse_name, resolve_options
from detkt.models.reading import imagenet_tensors, read_tensors

WEIGHTS_FILE = "model.safetensors"
META_FILE = "model.json"
FORMAT = 1


@dataclass(frozen=True)
class LoadReport:
    """What a file gave to a model. Names are the model's, but for *unexpected*, which are the file's.

    *mismatched* entries are ``(name, shape in the file, shape in the model)``.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    source: str = ""

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        source = self.source or "weights"
        parts = [f"{source}: loaded {len(self.loaded)} of {total} tensors ({_summary(self.loaded)})"]
        if self.missing:
            parts.append(f"not in the file and left as they were: {_summary(self.missing)}")
        if self.mismatched:
            shapes = ", ".join(f"{name} {_shape(theirs)} for {_shape(ours)}" for name, theirs, ours in self.mismatched)
            parts.append(f"of another shape and left as they were: {shapes}")
        if self.unexpected:
            parts.append(f"in the file but not used: {_summary(self.unexpected)}")
        return "; ".join(parts)


def load_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Load what fits from a file: a torchvision classifier, or a detector of torchvision or detkt.

    Args:
        model: any torchvision Faster R-CNN; changed in place, and not at all when this raises.
        path: a ``.pth``, ``.pt`` or ``.safetensors`` file, or a folder that :func:`save_model` wrote. The
            state dict may be nested under "model", "state_dict" or "model_state_dict", its names prefixed
            with ``module.``.

    Heads may differ in shape (another number of classes, a narrower fc6): they are reported and left alone.

    Raises:
        InputError: the file is missing, damaged, not weights, of another backbone, or nothing in it fits.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS_FILE
    return _load_fitting(model, read_tensors(path), str(path))


def load_imagenet(model: nn.Module, classifier: str | None) -> LoadReport:
    """Load torchvision's ImageNet weights of *classifier*: layers before the cut, and after it into the head.

    Raises:
        InputError: there are none for this net (*classifier* is None), or they could not be had.
    """
    if classifier is None:
        raise InputError("weights 'imagenet': there are none for this net; leave them out or give a file")
    return _load_fitting(model, imagenet_tensors(classifier), f"ImageNet weights of {classifier}")


def save_model(
    model: nn.Module, folder: str | Path, classes: Sequence[str], extra: dict[str, Any] | None = None
) -> None:
    """Write ``model.safetensors`` and ``model.json`` to *folder*, each under a temporary name first.

    Args:
        model: built by :func:`detkt.models.build_detector` or :func:`detkt.models.build_classifier`.
        folder: created where it is not there; a model in it is replaced.
        classes: names; a detector's without the background.
        extra: anything for JSON, kept under "extra".

    Raises:
        InputError: *classes* does not fit the model, or the folder cannot be written.
    """
    described = model.detkt
    task = described["task"]
    meta = {
        "format": FORMAT,
        "task": task,
        "architecture": described["architecture"],
        "options": described["options"],
        "classes": list(classes),
    }
    if extra is not None:
        meta["extra"] = extra
    known, what = described["num_classes"], "classes"
    if task == "detection":
        known, what = known - 1, "classes besides the background"
    if len(set(classes)) != known or len(set(classes)) != len(classes):
        raise InputError(
            f"cannot save the model: it has {known} {what}, the class list has {len(classes)} names, "
            f"{len(set(classes))} of them different"
        )
    description = json.dumps(meta, indent=2) + "\n"
    # Cloned, because safetensors refuses tensors that share memory; names without wrappers' prefixes.
    state = {_unwrapped(k): v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
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
        path: a folder that :func:`save_model` wrote, or the ``model.safetensors`` in it.
        device: where the model goes.
        task: ``detection`` or ``classification``, what the network is needed for; None takes either.

    Returns:
        The model, in evaluation mode, and what ``model.json`` says: "task", "architecture", "options", "classes" and,
        where :func:`save_model` was given it, "extra".

    Raises:
        InputError: a file is missing or damaged, the two files do not belong together, or it is for another task.
    """
    path = Path(path)
    if path.is_file() and path.name not in (WEIGHTS_FILE, META_FILE):
        where = f", perhaps {path.parent}" if (path.parent / WEIGHTS_FILE).exists() else ""
        raise InputError(
            f"{path} is not a saved model: give the folder that holds {WEIGHTS_FILE}{where}"
            + ("" if where else " (bare weights are set with student.weights or teacher.weights)")
        )
    folder = path.parent if path.name in (WEIGHTS_FILE, META_FILE) else path
    meta = _read_meta(folder)
    if task not in (None, meta["task"]):
        raise InputError(f"{folder / META_FILE}: 'task' is {meta['task']!r}, needed is a model for {task!r}")
    state = read_tensors(folder / WEIGHTS_FILE)
    name = meta["architecture"]
    try:
        model = _build(meta)
    except InputError as error:
        raise InputError(f"{folder / META_FILE}: {error}") from error
    _check_belongs(state, model, name, folder)
    model.load_state_dict(state)
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device '{device}': this machine has no CUDA device that torch can use; use 'cpu'")
    return model.to(device).eval(), meta


def _build(meta: dict[str, Any]) -> nn.Module:
    """The network that ``model.json`` describes, with random weights."""
    # These two load weights themselves.
    from detkt.models.classifier import build_classifier, parse_classifier, resolve_classifier_options
    from detkt.models.faster_rcnn import build_detector

    name, num_classes = meta["architecture"], len(meta["classes"])
    # Resolved here, so that only options of the net reach the builders, not their other arguments.
    if meta["task"] == "classification":
        options = resolve_classifier_options(parse_classifier(name), meta["options"])
        return build_classifier(name, num_classes, **options)
    return build_detector(name, num_classes + 1, **resolve_options(parse_name(name), meta["options"]))


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META_FILE
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; a saved model is a folder with {META_FILE} and {WEIGHTS_FILE}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({first_line(error, 160)})") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"{path}: not a model description of format {FORMAT}")
    if meta.get("task") not in ("detection", "classification"):
        raise InputError(f"{path}: 'task' is {meta.get('task')!r}, it must be 'detection' or 'classification'")
    for key, kind in (("architecture", str), ("options", dict), ("classes", list)):
        if not isinstance(meta.get(key), kind):
            raise InputError(f"{path}: '{key}' is missing or not a {kind.__name__}")
    classes = meta["classes"]
    if not classes or not all(isinstance(c, str) for c in classes) or len(set(classes)) != len(classes):
        raise InputError(f"{path}: 'classes' must be a list of different names")
    return meta


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
        f"'{name}' is {_shape(state[name].shape)} and not {_shape(own[name].shape)}"
        for name in own.keys() & state.keys()
        if own[name].shape != state[name].shape
    ]
    if wrong:
        raise InputError(
            f"{folder / WEIGHTS_FILE}: not the weights of {architecture}, which {META_FILE} names: "
            f"{min(wrong)}, and {len(wrong) - 1} more"
        )


def _load_fitting(model: nn.Module, state: dict[str, Tensor], source: str) -> LoadReport:
    own = model.state_dict()
    loaded: dict[str, Tensor] = {}
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    unexpected: list[str] = []
    for name, tensor in state.items():
        target = next((c for c in _candidates(_unwrapped(name)) if c in own), None)
        if target is None:
            unexpected.append(name)
        elif own[target].shape == tensor.shape:
            loaded[target] = tensor
        else:
            mismatched.append((target, tuple(tensor.shape), tuple(own[target].shape)))
    wrong = [entry for entry in mismatched if entry[0].startswith("backbone.")]
    if wrong:
        name, theirs, ours = wrong[0]
        raise InputError(
            f"{source}: these are weights of another backbone: {name} is {_shape(theirs)}, needed is {_shape(ours)}"
        )
    counted = _without_counters(loaded)
    if not counted:
        found = ", ".join(list(state)[:3])
        raise InputError(f"{source}: nothing in it fits this detector; it holds {len(state)} tensors such as {found}")
    model.load_state_dict(loaded, strict=False)
    reached = {*loaded, *(name for name, _, _ in mismatched)}
    missing = _without_counters(name for name in own if name not in reached)
    return LoadReport(counted, missing, _without_counters(unexpected), tuple(mismatched), source)


def _without_counters(names: Iterable[str]) -> tuple[str, ...]:
    """Names but for batch norm's step counters: frozen ones have none, and live ones do well without."""
    return tuple(name for name in names if not name.endswith("num_batches_tracked"))


_CLASSIFIER_LAYERS = {
    "classifier.0": "fc6",
    "classifier.3": "fc7",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
}
"""torchvision's VGG-16 has fc6 and fc7 at 0 and 3, its AlexNet at 1 and 4."""


def _candidates(name: str) -> list[str]:
    """Names that a tensor of a file may have in a detector, the likeliest first."""
    # torchvision's detectors of before version 0.13 had one module fewer around these convolutions.
    name = re.sub(r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", name)
    name = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", name)
    candidates = [name]
    bare = re.sub(r"^(backbone\.(body\.)?|roi_heads\.box_head\.(?=layer4)|features\.(?=\d))", "", name)
    candidates += [f"backbone.{bare}", f"backbone.body.{bare}", f"roi_heads.box_head.{bare}"]
    candidates += [f"backbone.{name}", f"backbone.body.{name}"]  # timm's VGG, whose layers stay in ``features``
    layer, _, kind = name.rpartition(".")
    if layer in _CLASSIFIER_LAYERS:
        candidates.append(f"roi_heads.box_head.{_CLASSIFIER_LAYERS[layer]}.{kind}")
    return candidates


def _unwrapped(name: str) -> str:
    """Without the prefixes of DataParallel, DistributedDataParallel and torch.compile."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def _summary(names: Iterable[str]) -> str:
    """Counts by part of the net: ``backbone.layer1 12, rpn.head 6``."""
    # VGG-16 and AlexNet name their layers by number: those are counted together.
    parts = re.compile(r"roi_heads\.\w+\.\w+|backbone\.body\.\w+|\w+\.(?!\d)\w+|\w+")
    counts = Counter(match[0] if (match := parts.match(name)) else name for name in names)
    return ", ".join(f"{part} {count}" for part, count in counts.items()) or "none"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
