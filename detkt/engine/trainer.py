"""The training loop: stages, players with their own optimizers, schedule, checkpoints, exact resume."""

from __future__ import annotations

import signal
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.base.processes import Processes
from detkt.base.seeds import random_state, restore_random_state, seed_everything
from detkt.config import TrainConfig
from detkt.data.loading import EndlessBatches, dead_workers_in_one_line, training_loader
from detkt.distiller import Distiller
from detkt.engine.checkpoint import LAST, keep_last, load_checkpoint, prune, save_checkpoint
from detkt.engine.guards import FiniteGuard, SkippedUpdates, Watcher, check_weights
from detkt.engine.optimizers import build_player_optimizer, match_layout, schedule_factor
from detkt.engine.reporting import NoReporter, Reporter, Window
from detkt.engine.validation import Validation
from detkt.methods.base import STUDENT, Stage, Update


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the checkpoint is saved. ``signal`` is the signal's number, ``folder`` the run's."""

    def __init__(self, number: int, folder: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal, self.folder = number, folder


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
        self.distiller, self.dataset, self.config, self.folder, self.quiet = distiller, dataset, config, folder, quiet
        self.validation = validation
        self.device = next(distiller.student.parameters()).device
        self.processes = processes or Processes(self.device.type == "cpu")
        batches = self._batches()
        self.batch_size, self.per_epoch = batches.batch_size, batches.per_epoch
        self.learning_rate = config.lr_per_image * self.batch_size
        self.student_steps = config.epochs * self.per_epoch
        self.lengths = _stage_lengths(distiller.stages, self.student_steps)
        self.parameters = distiller.player_parameters()
        self.players = players = distiller.method.players()
        self.optimizers = {
            name: self._student_optimizer() if name == STUDENT else build_player_optimizer(players[name], parameters)
            for name, parameters in self.parameters.items()
        }
        self.clip_norms = {
            name: config.clip_norm if name == STUDENT else players[name].clip_norm for name in self.parameters
        }
        half = config.precision == "fp16"
        self.scalers = {name: torch.amp.GradScaler(self.device.type, enabled=half) for name in self.parameters}
        self.stage_index = self.stage_step = self.step = self.student_step = 0
        self.seconds = 0.0
        self._window = Window()
        self._watcher = Watcher(distiller.method.watches())
        self._skipped = SkippedUpdates()
        self._last_step: int | None = None  # of the last.pt in the folder, where it is of this run
        self._stop_signal: int | None = None
        self._may_stop_at_once = False

    def _batches(self, start: int = 0) -> EndlessBatches:
        config, processes = self.config, self.processes
        groups = getattr(self.dataset, "aspect_groups", None) if config.group_by_aspect else None
        share = (processes.rank, processes.count)
        return EndlessBatches(
            len(self.dataset), config.batch_size, config.seed, start, groups, config.accumulate, share
        )

    def _student_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        return torch.optim.SGD(
            self.parameters[STUDENT],
            lr=self.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=self.device.type == "cuda" or None,
        )

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
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
                self.scalers[name].load_state_dict(state["scalers"][name])
            for key in ("stage_index", "stage_step", "step", "student_step", "seconds"):
                setattr(self, key, state[key])
            self._window.load_state_dict(state["window"], self.device)
            self._watcher.load_state_dict(state["watcher"])
            if self.validation is not None:
                self.validation.load_state_dict(state["validation"])
            self._restore_random_states(state["random"])
            for optimizer in self.optimizers.values():
                match_layout(optimizer)
        except InputError:
            raise
        except (KeyError, RuntimeError, ValueError) as error:
            # torch heads its list of differences with a line that says nothing.
            reason = next((line.strip() for line in str(error).splitlines() if not line.endswith(":")), str(error))
            raise InputError(f"checkpoint {path} is of another model or method: {shorten(reason, 160)}") from None
        if path.resolve() == (self.folder / LAST).resolve():
            self._last_step = self.step

    def _restore_random_states(self, states: list[dict[str, Any]]) -> None:
        """Each process's own; with another number of processes, the first goes on and the others start anew."""
        rank, count = self.processes.rank, self.processes.count
        if rank == 0 or count == len(states):
            restore_random_state(states[rank])
        else:
            seed_everything(self.config.seed + (self.step * count + rank) * 1_000_003)

    def _pictures(self) -> int:
        """A fingerprint of the data set: in another one, the order of the pictures would not go on."""
        return zlib.crc32("\n".join(self.dataset.ids).encode())

    def save(self) -> None:
        """Write ``last.pt``: all players, optimizers, counters, random states. All processes call it, the first writes.

        Of the checkpoints before it, ``keep`` - 1 stay, as ``checkpoint-<step>.pt``.

        Raises:
            InputError: a loss or a weight is not finite (the checkpoint before stays), or the disk is full.
        """
        self.guard.check()
        self.processes.average_buffers(self.distiller)  # else those of process 0 alone would be kept
        weights = self.distiller.state_dict()
        check_weights(weights, self.step)
        state: dict[str, Any] = {
            "distiller": weights,
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scalers": {name: scaler.state_dict() for name, scaler in self.scalers.items()},
            "random": self.processes.gather(random_state()),
            "window": self._window.state_dict(),
            "watcher": self._watcher.state_dict(),
            "pictures": self._pictures(),
        }
        for key in ("stage_index", "stage_step", "step", "student_step"):
            state[key] = getattr(self, key)
        state["seconds"] = self._elapsed()
        if self.validation is not None:
            state["validation"] = self.validation.state_dict()
        if self.processes.is_main:
            if self.config.keep > 1 and self._last_step not in (None, self.step):
                keep_last(self.folder, self._last_step)
            save_checkpoint(self.folder / LAST, state)
            prune(self.folder, self.step, self.config.keep)
        self._last_step = self.step

    def fit(self) -> None:
        """Train to the end of the last stage.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM, once ``last.pt`` is written.
            InputError: a loss or a gradient became NaN or infinite, the disk is full, a data worker died.
        """
        self.guard = FiniteGuard()
        self._started = time.perf_counter()
        main = self.processes.is_main
        # Where the validation is still due, a line of its step is of a process that was killed after it.
        logged = self.step - self._validation_is_due()
        self.reporter = Reporter(self.folder, logged if self.step else None, self.quiet) if main else NoReporter()
        batches = self._batches(start=self.step)
        loader = iter(training_loader(self.dataset, batches, self.config.workers, self.device.type == "cuda"))
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with dead_workers_in_one_line(), closing(loader):
                while self.stage_index < len(self.lengths):
                    self._run_stage(loader)
                    self.stage_index, self.stage_step = self.stage_index + 1, 0
                    self.save()
            if (number := self._agreed_stop()) is not None:
                raise Interrupted(number, self.folder)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self.reporter.close()
            self.seconds = self._elapsed()

    def _run_stage(self, loader: Iterator) -> None:
        stage, length = self.distiller.stages[self.stage_index], self.lengths[self.stage_index]
        self.reporter.start_stage(stage.name, self.stage_step, length)
        self.distiller.train()
        if self._validation_is_due():
            self._validate(stage)
        while self.stage_step < length:
            self._train_step(stage.turn(self.stage_step), loader)
            self.stage_step += 1
            self.step += 1
            self.student_step += stage.trains_student
            self.reporter.advance()
            if self._validation_is_due():
                self._validate(stage)
            elif self.step % self.config.log_every == 0 or self.stage_step == length:
                self.reporter.log(self._entry(stage))
            alone = self.processes.count == 1
            if (alone or self.step % self.config.log_every == 0) and (number := self._agreed_stop()) is not None:
                self.save()
                raise Interrupted(number, self.folder)
            if self.step % self.config.checkpoint_every == 0:
                self.save()

    def _validation_is_due(self) -> bool:
        """Whether the student has ended an epoch on which it has not been scored."""
        return self.validation is not None and self.student_step == (self.validation.epochs + 1) * self.per_epoch

    def _validate(self, stage: Stage) -> None:
        """Score the student. All is saved before, so that a stop need not wait; random states stay as they are."""
        self.save()
        if (number := self._agreed_stop()) is not None:
            raise Interrupted(number, self.folder)
        states, entry = random_state(), self._entry(stage)
        self._may_stop_at_once = self.processes.count == 1
        try:
            scores = self.validation.run(self.step)
        finally:
            self._may_stop_at_once = False
        restore_random_state(states)
        self.distiller.train()
        # Scoring counts neither for the run's seconds nor for the next line's speed.
        self._started, self._window = time.perf_counter(), Window()
        self.reporter.log({**entry, **scores})
        self.save()

    def _agreed_stop(self) -> int | None:
        """The signal any process was stopped by: all of them have to stop at the same step."""
        return self.processes.any(self._stop_signal or 0) or None

    def _train_step(self, stage: Stage, loader: Iterator) -> None:
        """One update of each player, from ``accumulate`` parts of a batch.

        All players step with the last part: of several parts, the student of the earlier ones meets a discriminator
        that has not stepped yet.
        """
        learning_rate, parts = self._set_learning_rate(), self.config.accumulate
        self._pictures_seen: list[str] = []
        for part in range(parts):
            images, targets = next(loader)
            pictures = [self.dataset.ids[index] for index in self.distiller.task.pictures(targets)]
            self._pictures_seen += pictures
            updates = self.distiller.updates(stage, images, targets)
            logged: dict[str, Tensor] = {}
            while True:
                with self._autocast():
                    update = next(updates, None)
                if update is None:
                    break
                self.guard.add_losses(self.step + 1, pictures, update.losses)
                self._apply(update, last=part == parts - 1)
                logged |= {**update.losses, **update.metrics}
                if update.player == STUDENT:
                    logged["loss"] = update.total.detach()
            self._window.add(logged, len(images), learning_rate)

    def _apply(self, update: Update, last: bool = True) -> None:
        """Add to the gradients of the update's player; step with the *last* part."""
        optimizer, scaler = self.optimizers[update.player], self.scalers[update.player]
        parameters = self.parameters[update.player]
        # Restricting the inputs keeps every other player's gradients untouched, and uncomputed.
        scaler.scale(update.total / self.config.accumulate).backward(inputs=parameters)
        if not last:
            return
        self.processes.average_gradients(parameters)
        scaler.unscale_(optimizer)
        if clip_norm := self.clip_norms[update.player]:
            norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if scaler.is_enabled():
            self._skipped.add(update.player, norm)
        else:
            self.guard.add_gradient(self.step + 1, self._pictures_seen, update.player, norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)  # not before the next backward pass: the forward pass needs the room

    def _set_learning_rate(self) -> float:
        config = self.config
        factor = schedule_factor(
            self.student_step,
            self.student_steps,
            config.milestones,
            config.gamma,
            config.warmup_steps,
            config.poly_power,
        )
        rate = self.learning_rate * factor
        scheduled = {name: player.lr * factor for name, player in self.players.items() if player.scheduled}
        for name, value in {**scheduled, STUDENT: rate}.items():
            for group in self.optimizers[name].param_groups:
                group["lr"] = value
        return rate

    def _autocast(self):
        if self.config.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)

    def _entry(self, stage: Stage) -> dict[str, Any]:
        """What to log of the steps since the last line."""
        self.guard.check()
        entry = {"stage": stage.name, "step": self.step, "epoch": round(self.step / self.per_epoch, 3)}
        means = self._window.flush(self.processes)
        warnings = self._watcher.warnings(self.step, means) + self._skipped.warnings()
        return {**entry, **means, **({"warning": "; ".join(warnings)} if warnings else {})}

    def _elapsed(self) -> float:
        now = time.perf_counter()
        self.seconds, self._started = self.seconds + now - self._started, now
        return self.seconds

    def _on_signal(self, number: int, frame) -> None:
        if self._stop_signal is not None:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the step to end
        if self._may_stop_at_once:
            raise Interrupted(number, self.folder)
        self._stop_signal = number


def _stage_lengths(stages: list[Stage], student_steps: int) -> list[int]:
    """Steps of each stage; the student's stages share its budget, the last takes what is left.

    Raises:
        InputError: the fixed stages leave nothing of the budget, or one is shorter than nothing.
    """
    left, lengths = student_steps, []
    for stage in stages:
        if stage.steps is not None and stage.steps < 0:
            raise InputError(f"stage '{stage.name}' has {stage.steps} steps; it must have 0 or more")
        if not stage.trains_student:
            lengths.append(stage.steps)
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
