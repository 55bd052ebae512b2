"""The training loop: stages, players, schedule, validation, checkpoints, exact resume."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from detkt.base.errors import InputError
from detkt.base.processes import Processes
from detkt.base.seeds import random_state, restore_random_state, seed_everything
from detkt.config import TrainConfig
from detkt.data.loading import EndlessBatches, dead_workers_in_one_line, training_loader
from detkt.distiller import Distiller
from detkt.engine.checkpoint import LAST, keep_last, load_checkpoint, prune, save_checkpoint
from detkt.engine.guards import FiniteGuard, check_weights
from detkt.engine.reporting import Journal
from detkt.engine.stops import Interrupted, Stops
from detkt.engine.validation import Validation
from detkt.methods.base import STUDENT, Stage
from detkt.methods.players import Players, schedule_factor

COMPARE_EVERY, COMPARED = 200, 4  # updates of the student; successive ones, so that an adversary has its turn

__all__ = ["Interrupted", "Progress", "Trainer"]

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        stage: index of the stage.
        stage_step: batches of it that are done.
        step: all batches that are done.
        student_step: those that trained the student.
        seconds: spent on training.
    """

    stage: int = 0
    stage_step: int = 0
    step: int = 0
    student_step: int = 0
    seconds: float = 0.0


class Trainer:
    """Runs a distiller's stages over a data set.

    A step is one batch: the method yields updates, each back-propagated to its player's parameters alone and applied
    before the method goes on. The student's budget is ``epochs`` passes over the data, whatever the method does
    beside; stages that do not train the student come on top.

    Args:
        distiller: student, teacher and method on the training device.
        dataset: yields (image, target); ``dataset.ids`` names the pictures.
        config: budget, optimizer, precision.
        folder: where ``last.pt`` and ``log.jsonl`` go.
        quiet: no progress bar.
        processes: those that share the work; None: as ``torchrun`` has it.
        validation: after every epoch of the student's budget; None: none.

    Attributes:
        progress: how far it is.
        players: who learns.
        lengths: steps of each stage.

    Raises:
        InputError: a batch cannot be shared out evenly among processes and parts, or the method's stages do not fit
            into the student's budget.
    """

    def __init__(
        self,
        distiller: Distiller,
        dataset,
        config: TrainConfig,
        folder: Path,
        quiet: bool = False,
        processes: Processes | None = None,
        validation: Validation | None = None,
    ) -> None:
        self.distiller, self.dataset, self.config, self.folder = distiller, dataset, config, folder
        self.validation = validation
        self.device = next(distiller.student.parameters()).device
        self.processes = processes or Processes(self.device.type == "cpu")
        batches = self.batches()
        self.batch_size, self.per_epoch = batches.batch_size, batches.per_epoch
        self.student_steps = config.epochs * self.per_epoch
        self.warmup_steps = min(config.warmup_steps, self.student_steps // 10)
        if self.warmup_steps < config.warmup_steps and self.processes.is_main:
            log.info(
                "the learning rate warms up over %d updates, a tenth of the run's %d, and not train.warmup_steps=%d",
                self.warmup_steps,
                self.student_steps,
                config.warmup_steps,
            )
        self.lengths = _stage_lengths(distiller.stages, self.student_steps)
        if config.stage_limit:
            self.lengths = [min(length, config.stage_limit) for length in self.lengths]
        self.progress = Progress()
        self.guard = FiniteGuard()
        self.journal = Journal(folder, distiller.method.watches(), self.processes, quiet, config.tracker)
        self.players = self._players()
        self._stops = Stops(self.processes, folder)
        self._saved_step: int | None = None  # of the last.pt in the folder, where it is of this run
        self._batch: list[str] = []  # the pictures of the step that is being computed
        self._clipped: Tensor | None = None  # whether the student's gradient was, in that step
        self._started = time.perf_counter()

    # The loop

    def fit(self) -> None:
        """Train to the end of the last stage.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM, once ``last.pt`` is written.
            InputError: a loss or a gradient became NaN or infinite, the disk is full, a data worker died.
        """
        progress, self._started = self.progress, time.perf_counter()
        # Where the validation is still due, a line of its step is of a process that was killed after it.
        resume_step = progress.step - self._validation_is_due() if progress.step else None
        self.journal.open(resume_step, progress.step, sum(self.lengths))
        order = self.batches(start=progress.step)
        loader = iter(training_loader(self.dataset, order, self.config.workers, self.device.type == "cuda"))
        try:
            with self._stops.listening(), dead_workers_in_one_line(), closing(loader):
                while progress.stage < len(self.lengths):
                    self._run_stage(loader)
                    self.journal.end_stage()
                    progress.stage, progress.stage_step = progress.stage + 1, 0
                    self.save()
                self._stops.check()
        finally:
            self.journal.close()
            self._count_seconds()

    def _run_stage(self, loader: Iterator) -> None:
        config, progress = self.config, self.progress
        stage, length = self.distiller.stages[progress.stage], self.lengths[progress.stage]
        self.journal.start_stage(stage.name)
        self.distiller.train()
        if self.validation is not None and self._validation_is_due():
            self._validate(self.validation, stage)
        while progress.stage_step < length:
            self.train_step(stage.turn(progress.stage_step), loader)
            progress.stage_step += 1
            progress.step += 1
            progress.student_step += stage.trains_student
            self.journal.advance()
            due = progress.step % config.log_every == 0
            if self.validation is not None and self._validation_is_due():
                self._validate(self.validation, stage)
            elif due or progress.stage_step == length:
                self.journal.log(self._line(stage))
            if self.processes.count == 1 or due:
                self._stops.check(self.save)
            if progress.step % config.checkpoint_every == 0:
                self.save()

    def train_step(self, stage: Stage, loader: Iterator) -> None:
        """One update of each player, from ``accumulate`` parts of a batch.

        All players step with the last part: of several parts, the student of the earlier ones meets a discriminator
        that has not stepped yet.
        """
        learning_rate, parts = self._set_rates(), self.config.accumulate
        self._batch = []
        for part in range(parts):
            images, targets = next(loader)
            pictures = [self.dataset.ids[index] for index in self.distiller.task.pictures(targets)]
            self._batch += pictures
            self.distiller.compares_gradients = part == 0 and self._compares_gradients()
            updates = self.distiller.updates(stage, images, targets)
            logged: dict[str, Tensor] = {}
            while True:
                with self._autocast():
                    update = next(updates, None)
                if update is None:
                    break
                self.guard.add_losses(self.progress.step + 1, pictures, update.losses)
                self.players.step(update, last=part == parts - 1)
                logged |= {**update.losses, **update.metrics}
                if update.player == STUDENT:
                    logged["loss"] = update.total.detach()
                    if self._clipped is not None:
                        logged["clipped"], self._clipped = self._clipped, None
            self.journal.add(logged, len(images), learning_rate)

    def _validation_is_due(self) -> bool:
        """Whether the student has ended an epoch on which it has not been scored."""
        done = self.progress.student_step
        return self.validation is not None and done == (self.validation.epochs + 1) * self.per_epoch

    def _validate(self, validation: Validation, stage: Stage) -> None:
        """Score the student. All is saved before, so that a stop need not wait; random states stay as they are."""
        self.save()
        self._stops.check()
        states, line = random_state(), self._line(stage)
        with self._stops.at_once():
            scores = validation.run(self.progress.step)
        restore_random_state(states)
        self.distiller.train()
        # Scoring counts neither for the run's seconds nor for the next line's speed.
        self._started = time.perf_counter()
        self.journal.restart()
        self.journal.log({**line, **scores})
        self.save()

    # What a step is made with

    def batches(self, start: int = 0) -> EndlessBatches:
        """The pictures of every batch from number *start* on."""
        config, processes = self.config, self.processes
        groups = getattr(self.dataset, "aspect_groups", None) if config.group_by_aspect else None
        share = (processes.rank, processes.count)
        return EndlessBatches(
            len(self.dataset), config.batch_size, config.seed, start, groups, config.accumulate, share
        )

    def _players(self) -> Players:
        config, parameters = self.config, self.distiller.player_parameters()
        student = torch.optim.SGD(
            parameters[STUDENT],
            lr=config.lr_per_image * self.batch_size,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=self.device.type == "cuda" or None,
        )
        self.learning_rate = student.param_groups[0]["lr"]
        return Players(
            self.distiller.method.players(),
            parameters,
            student,
            config.clip_norm,
            config.accumulate,
            half=config.precision == "fp16",
            average=self.processes.average_gradients,
            look=self._look_at_gradient,
        )

    def _compares_gradients(self) -> bool:
        """Whether this step measures what the method pulls against the task: some for the first line, and few after.

        Not where it could not: compiled backbones run backward once, and unscaled float16 gradients vanish.
        """
        if self.config.compile or self.config.precision == "fp16":
            return False
        since = self.progress.student_step + COMPARED - self.config.log_every
        return since >= 0 and since % COMPARE_EVERY < COMPARED

    def _look_at_gradient(self, player: str, norm: Tensor) -> None:
        if player == STUDENT and self.config.clip_norm:
            self._clipped = ((norm > self.config.clip_norm) & norm.isfinite()).float()
        if self.players.half:
            self.journal.skipped.add(player, norm)
        else:
            self.guard.add_gradient(self.progress.step + 1, self._batch, player, norm)

    def _set_rates(self) -> float:
        """The student's learning rate in this step, and what it is of the first one for the players that follow it."""
        config = self.config
        rate = self.learning_rate * schedule_factor(
            self.progress.student_step,
            self.student_steps,
            config.milestones,
            config.gamma,
            self.warmup_steps,
            config.poly_power,
        )
        self.players.set_rates(rate / self.learning_rate)
        return rate

    def _autocast(self):
        if self.config.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)

    def _line(self, stage: Stage) -> dict[str, Any]:
        """What to log of the steps since the last line."""
        self.guard.check()
        step = self.progress.step
        return {"stage": stage.name, "step": step, "epoch": round(step / self.per_epoch, 3), **self.journal.line(step)}

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.progress.seconds, self._started = self.progress.seconds + now - self._started, now

    # Checkpoints

    def save(self) -> None:
        """Write ``last.pt``: all players, optimizers, counters, random states. All processes call it, the first writes.

        Of the checkpoints before it, ``keep`` - 1 stay, as ``checkpoint-<step>.pt``.

        Raises:
            InputError: a loss or a weight is not finite (the checkpoint before stays), or the disk is full.
        """
        step = self.progress.step
        self.guard.check()
        self.processes.average_buffers(self.distiller)  # else those of process 0 alone would be kept
        weights = self.distiller.state_dict()
        check_weights(weights, step)
        self._count_seconds()
        state: dict[str, Any] = {
            "distiller": weights,
            "players": self.players.state_dict(),
            "random": self.processes.gather(random_state()),
            "journal": self.journal.state_dict(),
            "pictures": self._pictures(),
            **asdict(self.progress),
        }
        if self.validation is not None:
            state["validation"] = self.validation.state_dict()
        if self.processes.is_main:
            if self.config.keep > 1 and self._saved_step is not None and self._saved_step != step:
                keep_last(self.folder, self._saved_step)
            save_checkpoint(self.folder / LAST, state)
            prune(self.folder, step, self.config.keep)
        self._saved_step = step

    def resume(self, path: Path) -> None:
        """Go on exactly where the run that wrote *path* stopped.

        Raises:
            InputError: the checkpoint is missing, damaged, or of another model, method or data set.
        """
        state = load_checkpoint(path)
        try:
            if state["pictures"] != self._pictures():
                raise InputError(f"checkpoint {path} is of a run on other pictures; give the data it was trained on")
            self.distiller.load_state_dict(state["distiller"])
            self.players.load_state_dict(state["players"])
            self.progress = Progress(**{field.name: state[field.name] for field in fields(Progress)})
            self.journal.load_state_dict(state["journal"], self.device)
            if self.validation is not None:
                self.validation.load_state_dict(state["validation"])
            self._restore_random_states(state["random"])
        except InputError:
            raise
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            # torch heads its list of differences with a line that says nothing.
            reason = next((line.strip() for line in str(error).splitlines() if not line.endswith(":")), str(error))
            raise InputError(f"checkpoint {path} is of another model or method: {shorten(reason, 160)}") from None
        if path.resolve() == (self.folder / LAST).resolve():
            self._saved_step = self.progress.step

    def _restore_random_states(self, states: list[dict[str, Any]]) -> None:
        """Each process's own; with another number of processes, the first goes on and the others start anew."""
        rank, count = self.processes.rank, self.processes.count
        if rank == 0 or count == len(states):
            restore_random_state(states[rank])
        else:
            seed_everything(self.config.seed + (self.progress.step * count + rank) * 1_000_003)

    def _pictures(self) -> int:
        """A fingerprint of the data set: in another one, the order of the pictures would not go on."""
        return zlib.crc32("\n".join(self.dataset.ids).encode())


def _stage_lengths(stages: list[Stage], student_steps: int) -> list[int]:
    """Steps of each stage; the student's stages share its budget, the last takes what is left.

    Raises:
        InputError: the fixed stages leave nothing of the budget, or one is shorter than nothing.
    """
    left, lengths = student_steps, list[int]()
    for stage in stages:
        if stage.steps is not None and stage.steps < 0:
            raise InputError(f"stage '{stage.name}' has {stage.steps} steps; it must have 0 or more")
        if not stage.trains_student:
            lengths.append(stage.steps or 0)
            continue
        steps = left if stage.steps is None else stage.steps
        if steps > left or left == 0:
            raise InputError(
                f"stage '{stage.name}' needs {max(steps, 1)} updates but only {left} of the budget of {student_steps} "
                "are left; train longer (--epochs) or shorten the method's earlier stages"
            )
        left -= steps
        lengths.append(steps)
    return lengths
