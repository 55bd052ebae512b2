"""What a run tells while it goes on: progress bar, ``log.jsonl``, TensorBoard where installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm


class Reporter:
    """Writes one JSON object a logged step and keeps the progress bar.

    Args:
        folder: the run's folder.
        resume_step: on resuming, log lines of later steps (written after the checkpoint) are dropped.
        quiet: no progress bar.
    """

    def __init__(self, folder: Path, resume_step: int | None = None, quiet: bool = False) -> None:
        self.quiet = quiet
        path = folder / "log.jsonl"
        if resume_step is not None and path.exists():
            kept = [line for line in path.read_text().splitlines() if _step(line) <= resume_step]
            path.write_text("".join(f"{line}\n" for line in kept))
        self._file = open(path, "a")  # noqa: SIM115: open for as long as the run
        self._bar: tqdm | None = None
        self._board = _tensorboard(folder)

    def start_stage(self, name: str, done: int, total: int) -> None:
        """Begin (or, after a resume, go on with) a stage of *total* steps."""
        self._close_bar()
        self._bar = tqdm(
            total=total, initial=done, desc=name, unit="step", disable=self.quiet, file=sys.stderr, dynamic_ncols=True
        )

    def advance(self) -> None:
        """One more step of the current stage."""
        if self._bar is not None:
            self._bar.update()

    def log(self, entry: dict[str, Any]) -> None:
        """Write one line of ``log.jsonl``; numbers only in TensorBoard and the bar."""
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        if self._bar is not None and "loss" in entry:
            self._bar.set_postfix(loss=f"{entry['loss']:.3f}", refresh=False)
        if self._board is not None:
            for key, value in entry.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{entry['stage']}/{key}", value, entry["step"])

    def close(self) -> None:
        self._close_bar()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off when the run was killed


def _tensorboard(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
