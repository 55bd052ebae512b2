"""Many runs: one after the other, side by side as processes, or as commands for a cluster."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from detkt.base.commands import command
from detkt.base.errors import InputError
from detkt.base.files import make_folder
from detkt.config import Config, load_config
from detkt.engine.run import resolve_config, train
from detkt.engine.stops import Interrupted

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Attributes:
        name: what it is called in messages.
        config: its settings.
        folder: where it goes.
        call: ``detkt``'s command and its flags that make this run alone, and nothing else.
    """

    name: str
    config: Config
    folder: Path
    call: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether the run is there."""
        return (self.folder / "metrics.json").exists()

    @property
    def log(self) -> Path:
        """Where it tells of itself when it runs beside others."""
        return self.folder.with_name(f"{self.folder.name}.txt")


def run_job(job: Job, quiet: bool) -> None:
    """Make the run, unless it is there; one that was stopped goes on from its checkpoint.

    Raises:
        InputError: a run in the folder was made with other settings, and what :func:`detkt.engine.run.train` raises.
    """
    check_settings(job)
    if job.finished:
        return
    checkpoint = job.folder / "last.pt"
    resume = checkpoint if checkpoint.exists() else None
    print(f"{job.name}: {'going on' if resume else 'training'} in {job.folder}", flush=True)
    train(job.config, job.folder, resume=resume, overwrite=resume is None, quiet=quiet)


def check_settings(job: Job) -> None:
    """A run made with other settings must not pass for this one. What does not change the result may differ.

    Raises:
        InputError: the folder holds such a run.
    """
    if not (job.folder / "config.yaml").exists():
        return
    # The run's own is resolved already: a setting that it lacks is younger than the run, and had no value then.
    found, wanted = load_config(job.folder / "config.yaml"), resolve_config(job.config)
    for config in (found, wanted):
        config.train.device, config.train.workers, config.data.root, config.paper = "", 0, None, {}
    if found != wanted:
        differing = [key for key, value in vars(wanted).items() if vars(found)[key] != value]
        raise InputError(
            f"{job.folder} holds a run with other settings ({', '.join(differing)}); choose another --output or "
            "remove it"
        )


def job_lines(jobs: Sequence[Job], at_once: int = 0) -> list[str]:
    """The commands of the runs that are not there yet, one a line; of several *at_once* each has its share of cores."""
    threads = f"OMP_NUM_THREADS={threads_each(at_once)} " if at_once else ""
    return [f"{threads}{command(job.call[0])} {shlex.join(job.call[1:])}" for job in jobs if not job.finished]


def threads_each(at_once: int) -> int:
    """The threads that each of so many processes may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // at_once)


def run_side_by_side(jobs: Sequence[Job], at_once: int, root: Path) -> list[str]:
    """Make the runs that are not there, so many *at_once*, each a process with its share of the cores and its own log.

    Returns:
        A line for each run that failed; the others went on.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, once all have saved their checkpoints and ended.
        InputError: a run in a folder was made with other settings.
    """
    for job in jobs:
        check_settings(job)
    waiting = [job for job in jobs if not job.finished]
    count, started, failed = len(waiting), time.monotonic(), []
    running: dict[subprocess.Popen, Job] = {}
    make_folder(root)
    with _noted_signals() as signals:
        told = 0
        try:
            while running or (waiting and not signals):
                while waiting and not signals and len(running) < at_once:
                    job = waiting.pop(0)
                    print(f"{job.name}: started, log in {job.log}", flush=True)
                    running[_start(job, threads_each(at_once))] = job
                for number in signals[told:]:
                    for process in running:
                        process.send_signal(number)
                    told += 1
                time.sleep(POLL_SECONDS)
                for process in [each for each in running if each.poll() is not None]:
                    job = running.pop(process)
                    done = f"{count - len(waiting) - len(running)} of {count}, {time.monotonic() - started:.0f} s"
                    if process.returncode == 0:
                        print(f"{job.name}: done ({done})", flush=True)
                    elif not signals:
                        failed.append(f"{job.name}: {_last_line(job.log)}")
                        print(f"{job.name}: failed with status {process.returncode} ({done})", flush=True)
        finally:
            for process in running:
                process.kill()
                process.wait()
    if signals:
        raise Interrupted(signals[0], root)
    return failed


def _start(job: Job, threads: int) -> subprocess.Popen:
    package = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    with open(job.log, "a") as log:
        # A session of its own: Ctrl-C in the terminal reaches it through us, once.
        return subprocess.Popen(
            [sys.executable, "-m", "detkt", *job.call],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,
        )


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """The numbers of the stop signals that have come inside the block, in place of ending the process."""
    signals: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda got, _: signals.append(got)) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    told = next((line.strip() for line in reversed(lines) if line.strip()), "it told nothing")
    return f"{told} (see {log})"
