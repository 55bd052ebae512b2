"""One training run from a config: data, networks, training, evaluation, and what it leaves on disk."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from detkt.base import files as folders
from detkt.base.device import resolve_device
from detkt.base.errors import InputError
from detkt.base.files import write_atomically
from detkt.base.paths import resolve
from detkt.base.processes import Processes
from detkt.base.seeds import seed_everything
from detkt.base.version import __version__
from detkt.config import Config, DataConfig, NetConfig, save_config
from detkt.data import data_root
from detkt.data.picture_cache import PictureCache
from detkt.distiller import Distiller
from detkt.engine.checkpoint import LAST, older_checkpoints
from detkt.engine.jobs import Job, job_of
from detkt.engine.synced_norm import sync_batch_norms
from detkt.engine.teacher_cache import open_teacher_cache
from detkt.engine.trainer import Trainer
from detkt.engine.validation import Validation
from detkt.methods import parse
from detkt.models import load_model, save_model
from detkt.models.layout import channels_last
from detkt.tasks.compiling import compile_backbones

log = logging.getLogger(__name__)

RUN_FILES = ("config.yaml", "log.jsonl", "metrics.json", "last.pt", "model.safetensors", "model.json")
BEST = "best"  # the folder of the best model, where there is a list to choose it by


def check_folder(folder: Path, *, may_hold_run: bool) -> None:
    """See that a run can be written to *folder*; nothing is made or removed yet.

    Raises:
        InputError: taken by another run, not a folder, or not writable.
    """
    folders.check_folder(folder)
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
    names = [*RUN_FILES, f"{BEST}/model.safetensors", f"{BEST}/model.json"]
    others = [*older_checkpoints(folder), *folder.glob("events.out.tfevents.*")]
    return [folder / name for name in names if os.path.lexists(folder / name)] + sorted(others)


def resolve_config(config: Config) -> Config:
    """A copy of *config* with every setting of its method, its networks and its pictures written out.

    Defaults may change from one version to the next; a run's own ``config.yaml`` must not change with them.
    """
    config, job = copy.deepcopy(config), job_of(config)
    config.methods = {cls.name: asdict(settings) for cls, settings in parse(config.method, config.methods).items()}
    for net in (config.student, config.teacher):
        net.options = job.options(net)
    job.resolve_data(config.data)
    return config


def build_net(job: Job, net: NetConfig, role: str, classes: list[str], data: DataConfig | None = None) -> nn.Module:
    """The network of *net*: its architecture with weights, or with a trained checkpoint of the same architecture.

    Raises:
        InputError: the checkpoint is of another architecture, was built with other options, or has other classes than
            the data; with *data*, of a classifier, pictures have other channels or were normalised otherwise.
    """
    if net.checkpoint is None:
        model, description = job.build(net, classes), None
    else:
        model, description = _trained_net(job, net, role, classes)
    if data is not None:
        job.check(model, role, data, description)
    return model


def _trained_net(job: Job, net: NetConfig, role: str, classes: list[str]) -> tuple[nn.Module, dict[str, Any] | None]:
    """The network of the checkpoint, and what its file tells of the pictures it was trained on."""
    path = resolve(net.checkpoint)
    if net.weights is not None:
        log.warning("%s.weights=%s is not used: the checkpoint %s holds all weights", role, net.weights, path)
    model, meta = load_model(path, task=job.task)
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
    for key, value in net.options.items():
        if meta["options"].get(key) != value:
            raise InputError(
                f"{role}.options.{key} is {value}, but the {role}'s checkpoint {path} was built with "
                f"{meta['options'].get(key)}; a checkpoint keeps its options: set {role}.options.{key} to that"
            )
    return model, meta.get("extra")


def train(
    config: Config, folder: Path, *, resume: Path | None = None, overwrite: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Train a detector or a classifier, evaluate it, and return what was written to ``metrics.json``.

    Args:
        config: resolved settings; ``config.role`` says which of the two networks is trained.
        folder: output folder (``config.yaml``, ``log.jsonl``, ``last.pt``, ``model.safetensors``, ``model.json``,
            ``metrics.json``; with ``data.val`` the best model in ``best/``, with ``train.keep`` older checkpoints).
        resume: a ``last.pt`` to go on from.
        overwrite: replace a run that is in *folder* (once the new one is ready to start).
        quiet: no progress bars.

    Raises:
        InputError: settings or data that cannot be used; the message says which and what to do.
        Interrupted: Ctrl-C or SIGTERM during the training, once ``last.pt`` is written.
    """
    device = resolve_device(config.train.device)
    processes = Processes(on_cpu=device.type == "cpu")
    if processes.count > 1:
        device = processes.device
    if config.train.precision == "fp16" and device.type != "cuda":
        raise InputError("precision fp16 needs a CUDA device; use --precision bf16 or fp32")
    with_teacher = config.needs_teacher
    if with_teacher and config.role == "teacher":
        raise InputError(f"--role teacher trains on ground truth: use --method none, not {config.method}")
    job = job_of(config)
    if with_teacher and not job.has_trained(config.teacher):
        raise InputError(
            f"method '{config.method}' needs a trained teacher: give --teacher CKPT "
            "(train one with --role teacher --method none)"
        )
    goes_on = resume is not None and resume.parent.resolve() == folder.resolve()
    if processes.is_main:
        check_folder(folder, may_hold_run=overwrite or goes_on)
    seed_everything(config.train.seed)
    progress = None if quiet else partial(tqdm, desc="draw shapes", unit="picture", file=sys.stderr)
    with processes.main_first():
        dataset = job.training_set(config, progress)
    # Read now, so that a damaged annotation of the test list is known before hours of training.
    held_out = job.test_set(config, dataset.classes)
    to_validate = _validation_set(config, job, dataset, held_out)

    net = config.teacher if config.role == "teacher" else config.student
    student = build_net(job, net, config.role, dataset.classes, config.data).to(device)
    teacher = None
    if with_teacher:
        teacher = build_net(job, config.teacher, "teacher", dataset.classes, config.data).to(device)
        if random := teacher.detkt.get("random"):
            raise InputError(
                f"teacher.weights={config.teacher.weights} does not fill the teacher's {', '.join(random)}, and random "
                "weights teach nothing: train it on this data set first, with --role teacher --method none"
            )
    if shared := set(dataset.ids) & set(held_out.ids):
        log.warning(
            "data.train=%s and data.test=%s share %d pictures, such as %s: the scores will look better than they are",
            config.data.train,
            config.data.test,
            len(shared),
            min(shared),
        )
    if config.data.cache is not None:
        size = max(student.transform.min_size), student.transform.max_size
        dataset.picture_cache = PictureCache(Path(config.data.cache).expanduser(), *size)
    if teacher is not None and config.teacher.checkpoint is None:
        # Published weights: how good they are on these pictures is known only from here on.
        scores = job.evaluate(teacher, held_out, device, config.train, quiet, processes)
        log.info("teacher: %s on %s", job.summary(scores), config.data.test)
    for built in filter(None, (student, teacher)):
        channels_last(built.backbone)
    # Building draws random weights or none, depending on checkpoints: training starts from the seed either way.
    seed_everything(config.train.seed)
    distiller = Distiller(
        student,
        teacher,
        config.method,
        config.method_settings(),
        dataset.classes,
        dataset.classes,
        job.image_size(dataset),
    )
    if distiller.method.reads_student_head and net.checkpoint is None:
        log.warning(
            "method '%s' reads the student's head before it trains the student, and this one is untrained: "
            "give --student-init CKPT (a run with --method none)",
            config.method,
        )
    if processes.count > 1:
        sync_batch_norms(distiller)
    if processes.rank > 0:
        # The weights are the same in all processes, what they draw from here on is not.
        seed_everything(config.train.seed + processes.rank * 1_000_003)
    description = {"method": config.method_name, "config": config.name} | job.description(config.data)
    validation = None
    if to_validate is not None:

        def keep(record: dict[str, Any]) -> None:
            if processes.is_main:
                save_model(student, folder / BEST, dataset.classes, description | {"validation": record})

        score = partial(job.evaluate, student, to_validate, device, config.train, True, processes)
        validation = Validation(score, list(job.measures), keep)
    trainer = Trainer(distiller, dataset, config.train, folder, quiet, processes, validation)
    if resume is not None:
        trainer.resume(resume)
    if config.train.cache_teacher is not None and teacher is None:
        log.info("method '%s' learns from no teacher: train.cache_teacher is not used", config.method)
    elif config.train.cache_teacher is not None:
        with processes.main_first():
            cache = open_teacher_cache(config, distiller, dataset, Path(config.train.cache_teacher), quiet)
        distiller.task._cache = cache
    if config.train.compile:
        compile_backbones(distiller.task, device)
    if processes.is_main:
        open_folder(folder, resume)
        write_atomically(folder / "config.yaml", lambda temporary: save_config(resolve_config(config), temporary))
    trainer.fit()

    scores = job.evaluate(student, held_out, device, config.train, quiet, processes)
    metrics = {
        "method": config.method_name,
        "role": config.role,
        "dataset": config.name,
        "data_root": str(data_root(config.data)),
        "split": config.data.test,
        "seed": config.train.seed,
        **scores,
        "parameters": sum(p.numel() for p in student.parameters()),
        "updates": trainer.progress.student_step,
        "seconds": trainer.progress.seconds,
        "images_per_second": trainer.progress.step * trainer.batch_size / trainer.progress.seconds,
        "versions": versions(device),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if validation is not None:
        metrics["best"] = {"model": BEST, "split": config.data.val, **validation.best}
    if processes.is_main:
        save_model(student, folder, dataset.classes, description)
        write_metrics(folder / "metrics.json", metrics)
    return metrics


def _validation_set(config: Config, job: Job, trained_on: Dataset, tested_on: Dataset) -> Dataset | None:
    """The pictures of ``data.val``, None without. InputError where the choice of a model by them would mean nothing."""
    if config.data.val is None:
        return None
    own = copy.deepcopy(config)
    own.data.test = config.data.val
    found = job.test_set(own, trained_on.classes)
    for other, part in ((trained_on, "train"), (tested_on, "test")):
        if shared := set(found.ids) & set(other.ids):
            raise InputError(
                f"data.val={own.data.test} and data.{part}={getattr(config.data, part)} share {len(shared)} pictures, "
                f"such as {min(shared)}: a model chosen by them would look better than it is; give a list of others"
            )
    return found


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """JSON has no NaN: a class without ground truth becomes null."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(_jsonable(metrics), indent=2) + "\n"))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(part) for key, part in value.items()}
    value = value.item() if hasattr(value, "dtype") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions(device: torch.device) -> dict[str, str]:
    """What the numbers were computed with."""
    import torchvision

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "detkt": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": name,
    }
