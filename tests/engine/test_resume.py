"""Runs that are stopped, killed or out of disk and go on as if they had not been: every method, both tasks."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from run_comparison import CLASSIFICATION_SETTINGS, DETECTION_SETTINGS, OF_OBJECTS, assert_same_run, read_log

from detkt import methods
from detkt.base.errors import InputError
from detkt.config import load_config
from detkt.engine.checkpoint import load_checkpoint
from detkt.engine.run import train
from detkt.engine.trainer import Interrupted
from detkt.methods import balance

METHODS = [*(name for name in methods.available() if name != "crosskd"), "ktan+kd", "kr+kdgan"]
OF_PICTURES = [method for method in METHODS if method not in OF_OBJECTS]


DETECTION, DENSE, CLASSIFICATION = "detection", "dense", "classification"


@pytest.fixture(scope="module")
def configured(tiny_file, tiny_dense_file, tiny_classifier_file):
    """``configured(task, "method=kd", ...)``: the tiny config of a task, with settings for every method."""
    files = {
        DETECTION: (tiny_file, DETECTION_SETTINGS),
        DENSE: (tiny_dense_file, ()),
        CLASSIFICATION: (tiny_classifier_file, CLASSIFICATION_SETTINGS),
    }

    def load(task, *overrides):
        path, settings = files[task]
        return load_config(path, [*settings, *overrides])

    return load


@pytest.fixture(scope="module")
def uninterrupted(configured, tmp_path_factory):
    """``uninterrupted(task, "method=kd", ...)``: the folder of a whole run."""
    folders = {}

    def run(*arguments):
        if arguments not in folders:
            folders[arguments] = tmp_path_factory.mktemp("whole") / "run"
            train(configured(*arguments), folders[arguments], quiet=True)
        return folders[arguments]

    return run


def step_of(folder: Path) -> int:
    return load_checkpoint(folder / "last.pt")["step"]


@pytest.fixture
def stop_and_go_on(at_step):
    """``stop_and_go_on(config, folder, steps)``: train, stopped in the midst of each of *steps*, to the end."""

    def run(config, folder, steps):
        done, resume = 0, None
        for step in steps:
            number = (signal.SIGINT, signal.SIGTERM)[step % 2]
            at_step(step - done, lambda number=number: os.kill(os.getpid(), number))
            with pytest.raises(Interrupted) as stopped:
                train(config, folder, resume=resume, quiet=True)
            assert stopped.value.signal == number
            done, resume = step, folder / "last.pt"
            assert step_of(folder) == step, "the step is finished before the run stops"
            assert not (folder / "metrics.json").exists()
        at_step(0, None)
        train(config, folder, resume=resume, quiet=True)

    return run


# Stages may begin and end anywhere: the cheaper task is stopped after each of its 8 to 11 steps, so after the last of
# each stage and of the run too.
@pytest.mark.parametrize(
    ("task", "stride", "method"),
    [
        *((CLASSIFICATION, 1, method) for method in OF_PICTURES),
        *((DETECTION, 4, method) for method in METHODS),
        (DENSE, 3, "crosskd"),
        (DENSE, 4, "crosskd+pkd"),
    ],
)
def test_a_stopped_run_equals_an_uninterrupted_one(
    task, stride, method, configured, uninterrupted, tmp_path, stop_and_go_on
):
    expected = uninterrupted(task, f"method={method}")
    total = step_of(expected)
    assert total >= 8
    stop_and_go_on(configured(task, f"method={method}"), tmp_path / "run", range(1, total + 1, stride))
    assert_same_run(tmp_path / "run", expected)


@pytest.mark.parametrize("task", [CLASSIFICATION, DETECTION])
def test_workers_change_nothing_and_resume_alike(task, configured, uninterrupted, tmp_path, stop_and_go_on):
    """Stopped within an epoch and at the end of one, while the workers have loaded more than was used."""
    stop_and_go_on(configured(task, "method=ktan", "train.workers=2"), tmp_path / "run", [6, 8])
    assert_same_run(tmp_path / "run", uninterrupted(task, "method=ktan"))


def test_a_balanced_run_resumes_alike(configured, uninterrupted, tmp_path, stop_and_go_on, monkeypatch):
    """Shares are measured in the same batches, and their means go on; a term that has not played yet has none."""
    monkeypatch.setattr(balance, "FIRST", 1)
    monkeypatch.setattr(balance, "EVERY", 3)
    settings = ["methods.ktan.balance=0.5", "methods.ktan.adversary_balance=0.1", "methods.kd.balance=0.25"]
    arguments = (CLASSIFICATION, "method=ktan+kd", *settings, "train.log_every=1")
    expected = uninterrupted(*arguments)
    stop_and_go_on(configured(*arguments), tmp_path / "run", range(2, step_of(expected) + 1, 2))
    assert_same_run(tmp_path / "run", expected)
    told = [line["kd_share"] for line in read_log(tmp_path / "run") if "kd_share" in line]
    assert 2 <= len(told) < 8
    assert told[0] == pytest.approx(0.25, rel=1e-3)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing is saved. (A real one: tests/faults.)"""


def kill():
    raise Killed


@pytest.mark.parametrize("method", OF_PICTURES)
def test_a_killed_run_goes_on_from_the_checkpoint_before(method, configured, uninterrupted, tmp_path, at_step):
    expected, folder = uninterrupted(CLASSIFICATION, f"method={method}"), tmp_path / "run"
    config = configured(CLASSIFICATION, f"method={method}", "train.checkpoint_every=2")
    resume = None
    for kept in ((2, 3), (4, 6)):  # without, and with, a stage that ends after step 3, which is a checkpoint too
        at_step(4, kill)
        with pytest.raises(Killed):
            train(config, folder, resume=resume, quiet=True)
        resume = folder / "last.pt"
        assert step_of(folder) in kept
    at_step(0, None)
    train(config, folder, resume=resume, quiet=True)
    assert_same_run(folder, expected)


@pytest.mark.parametrize("task", [CLASSIFICATION, DETECTION])
def test_a_run_that_filled_the_disk_goes_on_once_there_is_space(task, configured, uninterrupted, tmp_path, at_step):
    config, folder = configured(task, "method=ktan", "train.checkpoint_every=2"), tmp_path / "run"

    def fill():
        (folder / ".last.pt.tmp").symlink_to("/dev/full")

    at_step(8, fill)
    with pytest.raises(InputError, match=r"cannot write .*last\.pt: .*; free space"):
        train(config, folder, quiet=True)
    assert step_of(folder) == 6
    assert not (folder / ".last.pt.tmp").is_symlink()
    at_step(0, None)
    train(config, folder, resume=folder / "last.pt", quiet=True)
    assert_same_run(folder, uninterrupted(task, "method=ktan"))
