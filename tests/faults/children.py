"""Runs in a process of their own, which may be killed: forked, since to start Python and torch anew takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Child:
    """A forked process that calls *action*; its stderr goes to a file. It is the head of a group, as in a terminal."""

    def __init__(self, action: Callable[[], object], folder: Path) -> None:
        self._stderr = folder / "stderr"
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(action,))
        self._process.start()
        self.pid = self._process.pid

    def _run(self, action: Callable[[], object]) -> None:
        os.setsid()
        sys.stderr = self._stderr.open("w", buffering=1)
        action()

    def wait(self, seconds: float = 120) -> int:
        """Its exit status, as `subprocess` has it: -9 for one that was killed."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, "the run hangs"
        return self._process.exitcode

    def wait_for(self, ready: Callable[[], object], seconds: float = 120) -> None:
        """Until *ready*, while the child lives."""
        end = time.monotonic() + seconds
        while not ready():
            assert self._process.is_alive(), self.stderr
            assert time.monotonic() < end
            time.sleep(0.02)

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def gone(pid: int) -> bool:
    """Whether there is no such process, or only its entry that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until_gone(pids: list[int], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < end, f"still there: {[pid for pid in pids if not gone(pid)]}"
        time.sleep(0.05)
