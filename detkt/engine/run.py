"""One training run from a config: data, networks, training, evaluation, and what it leaves on disk."""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from detkt.base.device import resolve_device
from detkt.base.errors import InputError
from detkt.base.files import write_atomically
from detkt.base.processes import Processes
from detkt.base.seeds import seed_everything
from detkt.config import Config, save_config
from detkt.data import data_root
from detkt.data.base import PictureSet, shared_pictures
from detkt.distiller import Distiller, settings_told_as_keys
from detkt.engine.nets import build_net, build_teacher, inherit
from detkt.engine.run_folder import BEST, PICTURES, check_run_folder, open_folder, versions, write_metrics
from detkt.engine.synced_norm import sync_batch_norms
from detkt.engine.teacher_cache import TeacherCache
from detkt.engine.trackers import check_tracker
from detkt.engine.trainer import Trainer
from detkt.engine.validation import Validation
from detkt.evaluation.outcomes import Outcomes, write_outcomes
from detkt.kinds import Keep, Kind, forget, kind_of
from detkt.methods import parse
from detkt.methods.base import Needs
from detkt.models import card_of, save_model
from detkt.tasks.compiling import compile_backbones

log = logging.getLogger(__name__)


def resolve_config(config: Config) -> Config:
    """A copy of *config* with every setting of its method, its networks and its pictures written out.

    Defaults may change from one version to the next; a run's own ``config.yaml`` must not change with them.
    """
    config, kind = copy.deepcopy(config), kind_of(config)
    config.methods = {cls.name: asdict(settings) for cls, settings in parse(config.method, config.methods).items()}
    for net in (config.student, config.teacher):
        net.options = kind.options(net)
    kind.resolve_data(config.data)
    return config


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
    job = _check(config, folder, resume, overwrite, quiet)
    data = _open_data(job)
    nets = _build_nets(job, data)
    trainer = _prepare_training(job, data, nets)
    if job.processes.is_main:
        open_folder(folder, resume)
        write_atomically(folder / "config.yaml", lambda temporary: save_config(resolve_config(config), temporary))
    trainer.fit()
    return _score_and_save(job, data, trainer, nets.inherited)


@dataclass(frozen=True)
class _Job:
    """What is to be done, where and by whom."""

    config: Config
    kind: Kind[Any]
    folder: Path
    resume: Path | None
    quiet: bool
    device: torch.device
    processes: Processes

    def score(
        self, model: nn.Module, held_out: PictureSet, quiet: bool | None = None, keep: Keep = forget
    ) -> dict[str, Any]:
        """The scores of *model*, the work shared by all processes; *keep* gets what is behind them."""
        quiet = self.quiet if quiet is None else quiet
        return self.kind.evaluate(model, held_out, self.device, self.config.train, quiet, self.processes, keep)

    def save(self, model: nn.Module, folder: Path, classes: Sequence[str], **more: Any) -> None:
        """Save *model* with what its file has to tell of this run."""
        told = {"method": self.config.method_name, "config": self.config.name} | self.kind.description(self.config.data)
        save_model(model, folder, classes, told | more)


@dataclass(frozen=True)
class _Data:
    """The pictures: to learn from, to test on, and to choose the best model by, if there are such."""

    training: PictureSet
    held_out: PictureSet
    validation: PictureSet | None


@dataclass(frozen=True)
class _Nets:
    """The network that is trained, and, if the method has one, its teacher.

    ``inherited``: what the student begins with of the teacher.
    """

    student: nn.Module
    teacher: nn.Module | None = None
    teacher_classes: Sequence[str] = ()
    inherited: dict[str, Any] | None = None


def _check(config: Config, folder: Path, resume: Path | None, overwrite: bool, quiet: bool) -> _Job:
    """What can be known to be wrong before any file of the data set is read."""
    check_tracker(config.train.tracker)
    device = resolve_device(config.train.device)
    processes = Processes(on_cpu=device.type == "cpu")
    if processes.count > 1:
        device = processes.device
    if config.train.precision == "fp16" and device.type != "cuda":
        raise InputError("precision fp16 needs a CUDA device; use --precision bf16 or fp32")
    kind = kind_of(config)
    if config.needs_teacher and config.role == "teacher":
        raise InputError(f"--role teacher trains on ground truth: use --method none, not {config.method}")
    if config.student.inherit and config.role == "teacher":
        raise InputError("student.inherit is for students: leave it out with --role teacher")
    if (config.needs_teacher or config.student.inherit) and not kind.has_trained(config.teacher):
        who = f"method '{config.method}'" if config.needs_teacher else "student.inherit"
        raise InputError(
            f"{who} needs a trained teacher: give --teacher CKPT (train one with --role teacher --method none)"
        )
    goes_on = resume is not None and resume.parent.resolve() == folder.resolve()
    if processes.is_main:
        check_run_folder(folder, may_hold_run=overwrite or goes_on)
    return _Job(config, kind, folder, resume, quiet, device, processes)


def _open_data(job: _Job) -> _Data:
    """All pictures, now, so that a damaged annotation of the test list is known before hours of training."""
    data = job.config.data
    seed_everything(job.config.train.seed)
    progress = None if job.quiet else partial(tqdm, desc="draw shapes", unit="picture", file=sys.stderr)
    with job.processes.main_first():
        training = job.kind.training_set(job.config, progress)
    held_out = job.kind.test_set(data, training.classes)
    if shared := shared_pictures(training, held_out):
        log.warning(
            "data.train=%s and data.test=%s share %d pictures, such as %s: the scores will look better than they are",
            data.train,
            data.test,
            len(shared),
            min(shared),
        )
    if data.val is None:
        return _Data(training, held_out, None)
    validation = job.kind.test_set(replace(data, test=data.val), training.classes)
    for other, part in ((training, "train"), (held_out, "test")):
        if shared := shared_pictures(validation, other):
            raise InputError(
                f"data.val={data.val} and data.{part}={getattr(data, part)} share {len(shared)} pictures, "
                f"such as {min(shared)}: a model chosen by them would look better than it is; give a list of others"
            )
    return _Data(training, held_out, validation)


def _build_nets(job: _Job, data: _Data) -> _Nets:
    """The networks, on the device."""
    config, classes = job.config, data.training.classes
    student = build_net(job.kind, config.trained_net, config.role, classes, config.data).to(job.device)
    if not config.needs_teacher and not config.student.inherit:
        return _Nets(student)
    teacher, known = build_teacher(job.kind, config.teacher, classes, config.data)
    teacher.to(job.device)
    if random := card_of(teacher).random:
        raise InputError(
            f"teacher.weights={config.teacher.weights} does not fill the teacher's {', '.join(random)}, and random "
            "weights teach nothing: train it on this data set first, with --role teacher --method none"
        )
    inherited = None
    if config.student.inherit:
        inherited = inherit(student, teacher, config.student.inherit, known == list(classes))
    if not config.needs_teacher:
        return _Nets(student, inherited=inherited)
    if config.teacher.checkpoint is None and known == list(classes):
        # Published weights: how good they are on these pictures is known only from here on.
        log.info("teacher: %s on %s", job.kind.summary(job.score(teacher, data.held_out)), config.data.test)
    return _Nets(student, teacher, known, inherited)


def _tell_shared_classes(distiller: Distiller) -> None:
    """Log which classes' scores are compared, where they are not all of them."""
    scores = distiller.method.student_spec.scores
    reads = any(Needs.TEACHER_LOGITS in stage.needs for stage in distiller.stages)
    if reads and scores is not None and scores.shared:
        log.info("scores are compared of the classes that the teacher knows, too: %s", ", ".join(scores.shared))


def _prepare_training(job: _Job, data: _Data, nets: _Nets) -> Trainer:
    """The trainer, at the step where it begins or goes on, with all that its steps read."""
    config, processes, student, teacher = job.config, job.processes, nets.student, nets.teacher
    # Building draws random weights or none, depending on checkpoints: training starts from the seed either way.
    seed_everything(config.train.seed)
    folder = config.train.cache_teacher if teacher is not None else None
    cache = TeacherCache(folder) if folder is not None else None
    with settings_told_as_keys():
        distiller = Distiller(
            student,
            teacher,
            config.method,
            config.method_settings(),
            data.training.classes,
            nets.teacher_classes,
            job.kind.image_size(data.training),
            cache,
            config.train.accumulate,
            config.teacher.class_map or None,
            own_size=config.teacher.own_size,
        )
    _tell_shared_classes(distiller)
    for line in distiller.method.weights_without_use():
        log.warning(line)
    if distiller.method.reads_student_head and config.trained_net.checkpoint is None:
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
    validation = None if data.validation is None else _validation(job, student, data.validation)
    trainer = Trainer(distiller, data.training, config.train, job.folder, job.quiet, processes, validation)
    if job.resume is not None:
        trainer.resume(job.resume)
    if cache is not None:
        with processes.main_first():
            cache.fill(distiller, data.training, config, job.quiet)
    elif config.train.cache_teacher is not None:
        log.info("method '%s' learns from no teacher: train.cache_teacher is not used", config.method)
    if config.train.compile:
        compile_backbones(distiller.task, job.device)
    return trainer


def _validation(job: _Job, student: nn.Module, pictures: PictureSet) -> Validation:
    """The student's scores on *pictures*, the best of which is kept."""

    def keep(record: dict[str, Any]) -> None:
        if job.processes.is_main:
            job.save(student, job.folder / BEST, pictures.classes, validation=record)

    return Validation(partial(job.score, student, pictures, quiet=True), list(job.kind.measures), keep)


def _score_and_save(job: _Job, data: _Data, trainer: Trainer, inherited: dict[str, Any] | None) -> dict[str, Any]:
    """Write ``metrics.json``, which is returned, and the model."""
    config, student, progress = job.config, trainer.distiller.student, trainer.progress
    outcomes: list[Outcomes] = []
    metrics = {
        "method": config.method_name,
        "role": config.role,
        "dataset": config.name,
        "data_root": str(data_root(config.data)),
        "split": config.data.test,
        "seed": config.train.seed,
        **job.score(student, data.held_out, keep=outcomes.append),
        **trainer.journal.whole_run(),
        "parameters": sum(p.numel() for p in student.parameters()),
        "updates": progress.student_step,
        "seconds": progress.seconds,
        "images_per_second": progress.step * trainer.batch_size / progress.seconds,
        "versions": versions(job.device),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if inherited is not None:
        metrics["inherited"] = inherited
    if trainer.validation is not None:
        metrics["best"] = {"model": BEST, "split": config.data.val, **(trainer.validation.best or {})}
        metrics["curve"] = [
            {"updates": record["epoch"] * trainer.per_epoch, **{key: record[key] for key in job.kind.measures}}
            for record in trainer.validation.history
        ]
    if job.processes.is_main:
        job.save(student, job.folder, data.training.classes)
        write_outcomes(job.folder / PICTURES, outcomes[0])
        write_metrics(job.folder / "metrics.json", metrics)
    return metrics
