"""The training loop: budgets, players, guards, and runs that are stopped and go on as if they had not been."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from itertools import pairwise

import pytest
import torch

from detkt.data import training_set
from detkt.distiller import Distiller
from detkt.engine.checkpoint import load_checkpoint
from detkt.engine.optimizers import build_player_optimizer, schedule_factor
from detkt.engine.run import train_detector
from detkt.engine.trainer import Interrupted, Trainer
from detkt.errors import InputError
from detkt.methods.base import STUDENT, Method, Player, Stage, Update
from detkt.models import build_detector, load_model

TIMES = {"images_per_second", "seconds"}


def assert_same(found, expected, where="state"):
    """Equal to the last bit, through dicts and lists; times aside."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            if key not in TIMES:
                assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, where
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


def read_log(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_same_run(folder, expected):
    assert_same(load_checkpoint(folder / "last.pt"), load_checkpoint(expected / "last.pt"))
    assert read_log(folder) == read_log(expected)
    assert (folder / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    ours, theirs = (json.loads((each / "metrics.json").read_text()) for each in (folder, expected))
    for key in ("map_voc07", "map_area", "map_coco", "per_class", "updates"):
        assert ours[key] == theirs[key]


@pytest.fixture
def at_step(monkeypatch):
    """``at_step(n, action)``: do *action* in the midst of the n-th step from now on."""
    original = Distiller.updates

    def arrange(number, action):
        count = 0

        def updates(self, *arguments):
            nonlocal count
            count += 1
            if count == number:
                action()
            return original(self, *arguments)

        monkeypatch.setattr(Distiller, "updates", updates)

    return arrange


@pytest.fixture(scope="module")
def uninterrupted(tiny_file, tmp_path_factory):
    """``uninterrupted(method)``: the folder of a whole run."""
    from detkt.config import load_config

    folders = {}

    def run(method):
        if method not in folders:
            folders[method] = tmp_path_factory.mktemp(method) / "run"
            train_detector(load_config(tiny_file, [f"method={method}"]), folders[method], quiet=True)
        return folders[method]

    return run


def stop_and_go_on(config, folder, stops, at_step):
    """Train *config*, stopped in the midst of each step of *stops* (its number, a signal), to the end."""
    done, resume = 0, None
    for step, number in stops:
        at_step(step - done, lambda number=number: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted) as stopped:
            train_detector(config, folder, resume=resume, quiet=True)
        assert stopped.value.signal == number
        done, resume = step, folder / "last.pt"
        state = load_checkpoint(resume)
        assert state["step"] == step, "the step is finished before the run stops"
        assert not (folder / "metrics.json").exists()
    at_step(0, None)
    train_detector(config, folder, resume=resume, quiet=True)


STOPS = {
    # 8 steps; a log line every 4, so each of these cuts a window
    "none": [(2, signal.SIGINT), (7, signal.SIGTERM)],
    # regressor 1 to 3, distill 4 to 11
    "dln": [(2, signal.SIGTERM), (6, signal.SIGINT)],
    # regressor 1 to 3, warmup 4 to 6, adversarial 7 to 11; 3 and 11 are the ends of a stage and of the run
    "ktan": [(2, signal.SIGINT), (3, signal.SIGTERM), (5, signal.SIGTERM), (9, signal.SIGINT), (11, signal.SIGINT)],
}


@pytest.mark.parametrize("method", STOPS)
def test_a_resumed_run_equals_an_uninterrupted_one(method, uninterrupted, tiny_config, tmp_path, at_step):
    expected = uninterrupted(method)
    stop_and_go_on(tiny_config(f"method={method}"), tmp_path / "run", STOPS[method], at_step)
    assert_same_run(tmp_path / "run", expected)


def test_workers_change_nothing_and_resume_alike(uninterrupted, tiny_config, tmp_path, at_step):
    config = tiny_config("method=ktan", "train.workers=2")
    stop_and_go_on(config, tmp_path / "run", [(8, signal.SIGTERM)], at_step)
    assert_same_run(tmp_path / "run", uninterrupted("ktan"))
