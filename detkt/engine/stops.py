"""Ctrl-C and SIGTERM: a run ends at a step that all its processes agree on, with its checkpoint saved."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from detkt.base.processes import Processes


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the checkpoint is saved. ``signal`` is the signal's number, ``folder`` the run's."""

    def __init__(self, number: int, folder: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal, self.folder = number, folder


class Stops:
    """Listens for signals while a run trains.

    Args:
        processes: those that share the work.
        folder: the run's, for the exception.
    """

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes, self._folder = processes, folder
        self._number: int | None = None
        self._at_once = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals inside the block in place of ending the process."""
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Stop in the midst of the block, where all is saved; several processes still have to agree."""
        self._at_once = self._processes.count == 1
        try:
            yield
        finally:
            self._at_once = False

    def check(self, save: Callable[[], None] | None = None) -> None:
        """Raise Interrupted, once *save* is called, where any process was stopped: all stop at the same step."""
        if number := self._processes.largest(self._number or 0):
            if save is not None:
                save()
            raise Interrupted(number, self._folder)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the step to end
        if self._at_once:
            raise Interrupted(number, self._folder)
        self._number = number
