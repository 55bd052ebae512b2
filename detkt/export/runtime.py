"""Exported files as checkpoints: called like the networks that they were, without building one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.export import openvino
from detkt.export.agreement import Runner, in_batches
from detkt.export.onnx_file import DETECTIONS, ONNX_FILE, one_by_one, open_session, runner
from detkt.export.raw import HEAD_FILE, RAW_FILE, SETTINGS_FILE, open_raw, raw_runner
from detkt.models.saved import META_FILE, load_model
from detkt.models.weights import WEIGHTS_FILE

SUFFIXES = (".onnx", ".xml")
Size = tuple[int, int]


class ExportedDetector(nn.Module):
    """An exported detector that takes and gives what torchvision's do: pictures (3, H, W) in a list, detections.

    run: the exported graph. facts: what its file says of itself. size: the one height and width that it takes, if it
    is a static one; other pictures are made to fit, with their shape kept.
    """

    def __init__(self, run: Runner, facts: Mapping[str, str], size: Size | None = None) -> None:
        super().__init__()
        self.run, self.facts, self.size = run, facts, size

    @property
    def parameter_count(self) -> int | None:
        """How many parameters the network had; None where the file does not say."""
        return int(self.facts["parameters"]) if "parameters" in self.facts else None

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        scales = [self._scale(image) for image in images]
        found = in_batches(self.run, [self._fitted(image, scale) for image, scale in zip(images, scales, strict=True)])
        detections = [{name: torch.from_numpy(values) for name, values in one.items()} for one in found]
        for one, image, scale in zip(detections, images, scales, strict=True):
            if scale != 1:
                height, width = image.shape[1:]
                one["boxes"] = torch.minimum(one["boxes"] / scale, torch.tensor([width, height] * 2))
        return detections

    def _scale(self, image: Tensor) -> float:
        if self.size is None:
            return 1.0
        return min(full / side for full, side in zip(self.size, image.shape[1:], strict=True))

    def _fitted(self, image: Tensor, scale: float) -> Tensor:
        if self.size is None or tuple(image.shape[1:]) == self.size:
            return image
        sides = [max(1, int(side * scale)) for side in image.shape[1:]]
        small = F.interpolate(image[None], size=sides, mode="bilinear", align_corners=False, antialias=scale < 1)
        canvas = torch.tensor(json.loads(self.facts["mean"]))[:, None, None].repeat(1, *self.size)
        canvas[:, : sides[0], : sides[1]] = small[0]
        return canvas


def parameter_count(model: nn.Module) -> int | None:
    """How many parameters *model* has, or had before it was exported."""
    if isinstance(model, ExportedDetector):
        return model.parameter_count
    return sum(parameter.numel() for parameter in model.parameters())


def is_exported(path: Path) -> bool:
    """Whether *path* is, by its name, an exported file, or a folder that holds one and no saved model."""
    if path.is_dir():
        return not any((path / name).exists() for name in (META_FILE, WEIGHTS_FILE)) and _in_folder(path) is not None
    return path.suffix.lower() in SUFFIXES or path.name == SETTINGS_FILE


def open_model(
    path: Path, device: str | torch.device = "cpu", threads: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """A detector and what is known of it: a saved model as :func:`load_model` has it, or an exported file.

    Args:
        path: a run's folder, ``model.safetensors``, ``*.onnx``, OpenVINO's ``*.xml``, or ``model.raw.json``.
        device: where a saved model goes; exported ones run on the CPU.
        threads: of an exported one; None: as torch.

    Raises:
        InputError: no detector, damaged, or its runtime is not installed.
    """
    return open_exported(path, threads) if is_exported(path) else load_model(path, device)


def open_exported(path: Path, threads: int | None = None) -> tuple[ExportedDetector, dict[str, Any]]:
    """See :func:`open_model`."""
    path = (_in_folder(path) or path) if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"no file {path}; give an exported model (*.onnx, *.xml or {SETTINGS_FILE}) or a run's folder")
    if path.name in (SETTINGS_FILE, RAW_FILE, HEAD_FILE):
        raw, settings = open_raw(path.parent, threads)
        return _opened(raw_runner(raw), settings["facts"], path, None)
    if path.suffix.lower() == ".xml":
        model, facts = openvino.read(path)
        shape = model.input(0).get_partial_shape()
        size = None if shape[2].is_dynamic else (shape[2].get_length(), shape[3].get_length())
        return _opened(openvino.runner(model, threads), facts, path, size)
    session = open_session(str(path), threads)
    names = [output.name for output in session.get_outputs()]
    if names != list(DETECTIONS):
        raise InputError(
            f"{path} gives {', '.join(names)}, not {', '.join(DETECTIONS)}: no detector of detkt export --format onnx"
        )
    height, width = session.get_inputs()[0].shape[2:]
    size = (height, width) if isinstance(height, int) else None
    return _opened(runner(session), session.get_modelmeta().custom_metadata_map, path, size)


def _opened(
    run: Runner, facts: Mapping[str, str], path: Path, size: Size | None
) -> tuple[ExportedDetector, dict[str, Any]]:
    if facts.get("task") != "detection":
        raise InputError(f"{path}: 'task' is {facts.get('task')!r}, needed is a model for 'detection'")
    try:
        classes = json.loads(facts["classes"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} does not name its classes: it was not exported by detkt") from error
    model = ExportedDetector(run if size is None else one_by_one(run), facts, size)
    return model.eval(), {
        "task": "detection",
        "architecture": facts.get("architecture", "unknown"),
        "options": {},
        "classes": classes,
    }


def _in_folder(folder: Path) -> Path | None:
    candidates = [folder / ONNX_FILE, folder / "model.int8.onnx", folder / "model.xml", folder / SETTINGS_FILE]
    return next((path for path in candidates if path.is_file()), None)
