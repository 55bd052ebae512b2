"""Ctrl-C, SIGTERM and dead workers, as a terminal and the system send them: what is said, and what is left running."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import Child, wait_until_gone

from detkt.cli.shared import run_tool
from detkt.config import load_config
from detkt.data.detection import DetectionSet
from detkt.data.loading import evaluation_loader
from detkt.engine.checkpoint import load_checkpoint
from detkt.engine.run import train
from detkt.engine.trainer import Interrupted, Trainer

PROJECT = Path(__file__).resolve().parent.parent.parent
TOOLS = sorted(path.stem for path in (PROJECT / "tools").glob("*.py"))


def noting_workers(path: Path) -> None:
    """From now on, in this process, every training step writes the workers' process ids to *path*."""
    original = Trainer.train_step

    def step(self, *arguments):
        original(self, *arguments)
        path.write_text(" ".join(str(child.pid) for child in multiprocessing.active_children()))

    Trainer.train_step = step


DIED = "error: a process that loads pictures died:"


@pytest.fixture
def training(place, tool, tmp_path):
    """A child that trains with two workers until it is stopped, and the list of its workers."""
    program, pids = tool("train_det"), tmp_path / "pids"
    flags = place.flags("--config {pair} --output {out} --quiet --workers 2 --epochs 9999 train.log_every=1")
    child = Child(lambda: (noting_workers(pids), run_tool(lambda _: program.main(flags))), tmp_path)
    child.wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    workers = [int(pid) for pid in pids.read_text().split()]
    yield child, workers
    wait_until_gone(workers)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_saves_itself_and_leaves_no_worker(training, place, number, status):
    """The whole group is told, as a terminal does it."""
    child, workers = training
    os.killpg(child.pid, number)
    assert child.wait() == status
    advice = f"go on with --resume {place['out']}"
    assert child.stderr == f"stopped by {number.name}; the checkpoint is saved, {advice}\n"
    assert load_checkpoint(place["out"] / "last.pt")["step"] >= 1
    names = [path.name for path in place["out"].iterdir() if not path.name.startswith("events.out.tfevents.")]
    assert sorted(names) == ["config.yaml", "last.pt", "log.jsonl"]
    wait_until_gone(workers, 5)


def test_a_killed_training_leaves_no_worker(training):
    child, workers = training
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -9
    wait_until_gone(workers)


def test_a_dead_worker_ends_the_training_with_a_message(training, place):
    child, workers = training
    os.kill(workers[0], signal.SIGKILL)
    assert child.wait() == 2
    assert re.fullmatch(rf"{DIED} .*{workers[0]}.*; free memory or use --workers 0\n", child.stderr)
    wait_until_gone(workers)


def test_a_dead_worker_ends_the_scoring_with_a_message(place, tool, tmp_path):
    program, pids = tool("eval_voc"), tmp_path / "pids"
    original = DetectionSet.__getitem__

    def slow(self, index):
        pids.write_text(str(os.getpid()))
        time.sleep(0.5)
        return original(self, index)

    def action():
        DetectionSet.__getitem__ = slow
        run_tool(lambda _: program.main(flags))

    flags = place.flags("--checkpoint {student} --data-root {voc} --quiet --device cpu --workers 1 --batch-size 2")
    child = Child(action, tmp_path)
    child.wait_for(lambda: pids.exists() and pids.read_text())
    os.kill(int(pids.read_text()), signal.SIGKILL)
    assert child.wait() == 2
    assert re.fullmatch(rf"{DIED} .*{pids.read_text()}.*; free memory or use --workers 0\n", child.stderr)


@pytest.mark.parametrize("name", ["train_det", "eval_voc"])
def test_a_stop_before_or_after_the_training_is_one_word(name, place, tool, tmp_path, monkeypatch):
    program = tool(name)
    lines = {
        "train_det": "--config {pair} --output {out} --quiet",
        "eval_voc": "--checkpoint {student} --data-root {voc} --quiet --device cpu",
    }
    flags = place.flags(lines[name])

    def action():
        DetectionSet.__init__ = lambda self, *arguments, **options: os.kill(os.getpid(), signal.SIGINT)
        run_tool(lambda _: program.main(flags))

    child = Child(action, tmp_path)
    assert child.wait() == 130
    assert child.stderr == "stopped\n"
    assert not place["out"].exists()


def _opened_since(before: list[str]) -> list[str]:
    opened = set(os.listdir("/proc/self/fd")) - set(before)
    return [os.readlink(f"/proc/self/fd/{number}") for number in opened if os.path.exists(f"/proc/self/fd/{number}")]


def test_an_interrupted_run_keeps_no_file_open(tiny_file, tmp_path, monkeypatch):
    """As a library: what a run opened is closed, though its exception still knows its frames."""
    original = Trainer.train_step

    def step(self, *arguments):
        original(self, *arguments)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", step)
    list(evaluation_loader([], 1, 0))
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(Interrupted) as stopped:
        train(load_config(tiny_file, ["train.workers=2"]), tmp_path / "run", quiet=True)
    assert multiprocessing.active_children() == []
    deadline = time.monotonic() + 20  # on a busy machine the threads that feed a loader's queues end a little later
    while (held := _opened_since(before)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert held == []
    assert stopped.value.signal == signal.SIGINT


# -- while Python imports --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [*(f"tools/{name}.py" for name in TOOLS), "-m detkt methods"])
def test_a_tool_ends_quietly_when_it_is_stopped_while_it_imports(program, tmp_path):
    """The handler is there before anything that takes time is imported; here that is a torch that takes a minute."""
    # In small steps: a signal that comes just before one long sleep begins would wait for its end.
    (tmp_path / "torch.py").write_text(
        "import time\nprint('ready', flush=True)\nfor _ in range(600):\n    time.sleep(0.1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, *program.split()],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


def test_a_worker_that_starts_after_its_parents_death_ends():
    program = "import os; from detkt.data.loading import _start_worker as start; start({}, 0); print('at work')"
    for parent, status, said in (("os.getppid()", 0, "at work\n"), ("os.getppid() + 1", 1, "")):
        child = subprocess.run([sys.executable, "-c", program.format(parent)], capture_output=True, text=True)
        assert (child.returncode, child.stdout) == (status, said), child.stderr
