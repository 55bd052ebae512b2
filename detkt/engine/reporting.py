"""What a run tells while it goes on: progress bar, ``log.jsonl``, a tracker."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from detkt.base.errors import InputError
from detkt.base.files import write_atomically
from detkt.base.processes import Processes
from detkt.engine.guards import SkippedUpdates, Watcher
from detkt.engine.trackers import open_tracker, track
from detkt.methods.base import Watch

WHOLE_RUN = {"clipped": "clipped_share", "gradient_share": "gradient_share"}
"""What is logged and kept as a mean over the whole run as well -> its name in ``metrics.json``."""
OUR_WATCHES = (
    Watch(
        "the gradient of the method's terms is more than 10 times the task's at the student's maps",
        "the task is drowned: set the method's balance (0.5, say), or lower its weight",
        ("gradient_share",),
        lambda now, first: now["gradient_share"] > 10,
    ),
    Watch(
        "the student's gradient is clipped in most steps",
        "every step is as long, whatever the loss says: lower train.lr_per_image or the method's weight, or raise "
        "train.clip_norm",
        ("clipped",),
        lambda now, first: now["clipped"] > 0.5,
    ),
)


class Reporter:
    """Writes one JSON object a logged step and keeps the progress bar.

    Args:
        folder: the run's folder.
        resume_step: on resuming, log lines of later steps (written after the checkpoint) are dropped.
        quiet: no progress bar.
        tracker: ``train.tracker``.
        done, total: steps of the whole run, so that the bar tells when all of it ends.

    Raises:
        InputError: the log cannot be written, at the start or later; the tracker cannot begin.
    """

    def __init__(
        self,
        folder: Path,
        resume_step: int | None = None,
        quiet: bool = False,
        tracker: str = "auto",
        done: int = 0,
        total: int = 0,
    ) -> None:
        self.quiet = quiet
        self._path = folder / "log.jsonl"
        if resume_step is not None and self._path.exists():
            lines = self._path.read_text(errors="replace").splitlines()
            kept = "".join(f"{line}\n" for line in lines if _step(line) <= resume_step)
            write_atomically(self._path, lambda temporary: temporary.write_text(kept))
        try:
            self._file = self._path.open("a")
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}; choose another folder") from None
        self._tracker = open_tracker(tracker, folder, resume_step)
        self._bar = tqdm(
            total=total, initial=done, unit="step", disable=quiet, file=sys.stderr, dynamic_ncols=True, smoothing=0.05
        )

    def start_stage(self, name: str) -> None:
        """Begin (or, after a resume, go on with) a stage."""
        self._bar.set_description(name)

    def advance(self) -> None:
        """One more step."""
        self._bar.update()

    def log(self, entry: dict[str, Any]) -> None:
        """Write one line of ``log.jsonl``; the tracker has its numbers. A "warning" is shown as well."""
        if "warning" in entry:
            tqdm.write(f"warning: step {entry['step']}: {entry['warning']}", file=sys.stderr)
        try:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        except OSError as error:
            reason = error.strerror
            raise InputError(f"cannot write {self._path}: {reason}; free space, then go on with --resume") from None
        if "loss" in entry:
            self._bar.set_postfix(loss=f"{entry['loss']:.3f}", refresh=False)
        if self._tracker is not None:
            track(self._tracker, entry)

    def close(self) -> None:
        """End the bar, the log and the tracker."""
        self._bar.close()
        with contextlib.suppress(OSError):  # the full disk that log() has told of already
            self._file.close()
        if self._tracker is not None:
            self._tracker.finish()


class NoReporter:
    """What all processes but the first have for a :class:`Reporter`."""

    def start_stage(self, name: str) -> None: ...

    def advance(self) -> None: ...

    def log(self, entry: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class Journal:
    """All that a training tells: means of what is logged, warnings, and where they are written.

    Args:
        folder: the run's folder.
        watches: the method's signs of trouble.
        processes: means are taken over all of them, and the first writes.
        quiet: no progress bar.
        tracker: ``train.tracker``.
    """

    def __init__(
        self, folder: Path, watches: Sequence[Watch], processes: Processes, quiet: bool, tracker: str = "auto"
    ) -> None:
        self._folder, self._processes, self._quiet, self._tracker = folder, processes, quiet, tracker
        # Ours come last: a checkpoint of before there were any has states of the method's alone.
        self._watcher, self.skipped = Watcher([*watches, *OUR_WATCHES]), SkippedUpdates()
        self._window, self._whole = Window(), Window()
        self._reporter: Reporter | NoReporter = NoReporter()

    def open(self, resume_step: int | None, done: int, total: int) -> None:
        """Begin to write; see :class:`Reporter`."""
        if self._processes.is_main:
            self._reporter = Reporter(self._folder, resume_step, self._quiet, self._tracker, done, total)

    def start_stage(self, name: str) -> None:
        """Begin (or, after a resume, go on with) a stage."""
        self._reporter.start_stage(name)

    def end_stage(self) -> None:
        """The next line is of other terms."""
        self._window.forget_the_line_before()

    def advance(self) -> None:
        """One more step of the current stage."""
        self._reporter.advance()

    def add(self, values: dict[str, Tensor], images: int, learning_rate: float) -> None:
        """What one batch, or part of it, has to be logged; looked at only when a line is due."""
        self._window.add(values, images, learning_rate)
        self._whole.add({name: values[name] for name in WHOLE_RUN if name in values}, images, learning_rate)

    def whole_run(self) -> dict[str, float]:
        """Means over the whole run, for ``metrics.json``."""
        means = self._whole.means(self._processes)
        return {key: means[name] for name, key in WHOLE_RUN.items() if name in means}

    def line(self, step: int) -> dict[str, Any]:
        """Means since the last line, and warnings that are due at *step*."""
        means = self._window.flush(self._processes)
        warnings = self._watcher.warnings(step, means) + self.skipped.warnings()
        return {**means, **({"warning": "; ".join(warnings)} if warnings else {})}

    def log(self, line: dict[str, Any]) -> None:
        """Write *line*."""
        self._reporter.log(line)

    def restart(self) -> None:
        """Count the seconds, for the speed, from now on."""
        self._window.restart()

    def close(self) -> None:
        """End writing."""
        self._reporter.close()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run tells the same."""
        return {
            "window": self._window.state_dict(),
            "whole": self._whole.state_dict(),
            "watcher": self._watcher.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """The reverse of :meth:`state_dict`."""
        self._window.load_state_dict(state["window"], device)
        self._watcher.load_state_dict(state["watcher"])
        if "whole" in state:  # else the means are those of the rest
            self._whole.load_state_dict(state["whole"], device)


class Window:
    """Means of the logged values since the last log line, summed on the device.

    Where a line is due early, at the end of a stage or before a validation, a value of fewer than half as many steps
    as in the line before has those steps, too: one step says nothing of a value that every fourth has.
    """

    def __init__(self) -> None:
        self._before: tuple[dict[str, Tensor], dict[str, int]] = {}, {}
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._images = 0
        self._learning_rate = 0.0
        self.restart()

    def restart(self) -> None:
        """Count the seconds, for the speed, from now on."""
        self._since = time.perf_counter()

    def forget_the_line_before(self) -> None:
        """It is of another stage."""
        self._before = {}, {}

    def add(self, values: dict[str, Tensor], images: int, learning_rate: float) -> None:
        for name, value in values.items():
            _add(self._sums, self._counts, name, value.detach().float(), 1)
        self._images += images
        self._learning_rate = learning_rate

    def flush(self, processes: Processes | None = None) -> dict[str, float]:
        """The means, with learning rate and speed, and a fresh start; nothing where nothing was added."""
        if not self._sums:
            return {}
        sums, counts = self._before
        for name in self._sums:
            if self._counts[name] < counts.get(name, 0) / 2:
                _add(self._sums, self._counts, name, sums[name], counts[name])
        entry = {"lr": self._learning_rate} | self.means(processes)
        images = self._images * (1 if processes is None else processes.count)
        entry["images_per_second"] = images / (time.perf_counter() - self._since)
        self._before = self._sums, self._counts
        self._reset()
        return entry

    def means(self, processes: Processes | None = None) -> dict[str, float]:
        """Of each value over the steps that have it and over all *processes*."""
        if not self._sums:
            return {}
        names = list(self._sums)
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        means = means if processes is None else processes.mean(means)
        return dict(zip(names, means.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint between two log lines keeps, so that a resumed run logs the same means."""
        return {
            "sums": dict(self._sums),
            "counts": dict(self._counts),
            "before": {"sums": dict(self._before[0]), "counts": dict(self._before[1])},
            "images": self._images,
            "learning_rate": self._learning_rate,
            "seconds": time.perf_counter() - self._since,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        def on_device(part: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, int]]:
            return {name: value.to(device) for name, value in part["sums"].items()}, dict(part["counts"])

        self._sums, self._counts = on_device(state)
        self._before = on_device(state.get("before", {"sums": {}, "counts": {}}))
        self._images = state["images"]
        self._learning_rate = state["learning_rate"]
        self._since = time.perf_counter() - state["seconds"]


def _add(sums: dict[str, Tensor], counts: dict[str, int], name: str, value: Tensor, count: int) -> None:
    sums[name] = sums[name] + value if name in sums else value
    counts[name] = counts.get(name, 0) + count


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off when the run was killed
