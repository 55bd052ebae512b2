"""One training run from a config: data, networks, training, evaluation, and what it leaves on disk."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import detkt
from detkt.config import Config, NetConfig, save_config
from detkt.data import test_set, training_set
from detkt.distiller import Distiller
from detkt.engine.checkpoint import seed_everything, write_atomically
from detkt.engine.trainer import Trainer
from detkt.errors import InputError
from detkt.evaluation.detector import detect, score
from detkt.methods import method_class, parse
from detkt.models import build_detector, load_model, save_model
from detkt.paths import resolve


def resolve_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one. InputError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device '{name}'; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device '{name}' was asked for but torch sees no CUDA; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device '{name}' was asked for but there are {torch.cuda.device_count()} CUDA devices")
    return device


def open_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Make the run's folder; refuse one that holds another run.

    Raises:
        InputError: taken, not a folder, or not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the output folder {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"the output folder {folder} is not writable; choose another --output")
    leftovers = [name for name in RUN_FILES if (folder / name).exists()]
    if leftovers and overwrite and not resume:
        for name in leftovers:
            (folder / name).unlink()
    elif leftovers and not resume:
        raise InputError(
            f"the output folder {folder} holds a run already ({leftovers[0]}); go on with --resume, "
            "replace it with --overwrite, or choose another --output"
        )


RUN_FILES = ("config.yaml", "log.jsonl", "metrics.json", "last.pt", "model.safetensors", "model.json")


def build_net(net: NetConfig, role: str, classes: list[str]) -> nn.Module:
    """The network of *net*: its architecture with weights, or with a trained checkpoint of the same architecture.

    Raises:
        InputError: the checkpoint is of another architecture or has other classes than the data.
    """
    if net.checkpoint is None:
        return build_detector(net.architecture, len(classes) + 1, net.weights, **net.options)
    path = resolve(net.checkpoint)
    model, meta = load_model(path)
    if meta["architecture"] != net.architecture:
        raise InputError(
            f"checkpoint {path} is a {meta['architecture']} but the {role} is to be a {net.architecture}; "
            f"set {role}.architecture={meta['architecture']} or give another checkpoint"
        )
    if list(meta["classes"]) != list(classes):
        raise InputError(
            f"the {role}'s checkpoint {path} knows the classes {', '.join(meta['classes'])}, but the data set has "
            f"{', '.join(classes)}; train the {role} on this data set or give data.classes in its order"
        )
    return model


def train_detector(
    config: Config, folder: Path, *, resume: Path | None = None, overwrite: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Train, evaluate, and return what was written to ``metrics.json``.

    Args:
        config: resolved settings; ``config.role`` says which of the two networks is trained.
        folder: output folder (``config.yaml``, ``log.jsonl``, ``last.pt``, ``model.safetensors``, ``model.json``,
            ``metrics.json``).
        resume: a ``last.pt`` to go on from.
        overwrite: replace a run that is in *folder*.
        quiet: no progress bars.
    """
    device = resolve_device(config.train.device)
    if config.train.precision == "fp16" and device.type != "cuda":
        raise InputError("precision fp16 needs a CUDA device; use --precision bf16 or fp32")
    with_teacher = any(method_class(name).needs_teacher for name in parse(config.method, config.methods))
    if with_teacher and config.role == "teacher":
        raise InputError(f"--role teacher trains on ground truth: use --method none, not {config.method}")
    if with_teacher and config.teacher.checkpoint is None:
        raise InputError(
            f"method '{config.method}' needs a trained teacher: give --teacher CKPT "
            "(train one with --role teacher --method none)"
        )
    open_folder(folder, resume=resume is not None, overwrite=overwrite)
    seed_everything(config.train.seed)
    dataset = training_set(config.data)
    # Read now, so that a damaged annotation of the test list is known before hours of training.
    held_out = test_set(config.data, dataset.classes)
    if len(dataset) == 0:
        raise InputError(f"the training list '{config.data.train}' names no picture")

    net = config.teacher if config.role == "teacher" else config.student
    student = build_net(net, config.role, dataset.classes).to(device)
    teacher = build_net(config.teacher, "teacher", dataset.classes).to(device) if with_teacher else None
    # Building draws random weights or none, depending on checkpoints: training starts from the seed either way.
    seed_everything(config.train.seed)
    distiller = Distiller(
        student,
        teacher,
        config.method,
        config.methods if "+" in config.method else config.methods.get(config.method),
        dataset.classes,
        dataset.classes,
    )
    trainer = Trainer(distiller, dataset, config.train, folder, quiet)
    if resume is not None:
        trainer.resume(resume)
    save_config(config, folder / "config.yaml")
    trainer.fit()

    save_model(student, folder, dataset.classes, {"method": config.method, "config": config.name})
    detections, milliseconds = detect(
        student, held_out, device, batch_size=config.train.batch_size, workers=config.train.workers, quiet=quiet
    )
    metrics = {
        "method": config.method,
        "dataset": config.name,
        "split": config.data.test,
        "seed": config.train.seed,
        **score(detections, held_out.annotations(), dataset.classes),
        "parameters": sum(p.numel() for p in student.parameters()),
        "updates": trainer.student_step,
        "seconds": trainer.seconds,
        "images_per_second": trainer.step * config.train.batch_size / trainer.seconds,
        "milliseconds_per_picture": milliseconds,
        "versions": versions(device),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_metrics(folder / "metrics.json", metrics)
    return metrics


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """JSON has no NaN: a class without ground truth becomes null."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(_jsonable(metrics), indent=2) + "\n"))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(part) for key, part in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return float(value) if hasattr(value, "dtype") else value


def versions(device: torch.device) -> dict[str, str]:
    """What the numbers were computed with."""
    import torchvision

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "detkt": detkt.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": name,
    }
