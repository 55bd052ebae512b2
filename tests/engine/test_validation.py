"""The best model of a run, chosen on a list of its own; older checkpoints; what neither may change."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal

import pytest
import torch
from run_comparison import assert_same_run, read_log

from detkt.base.errors import InputError
from detkt.config import load_config
from detkt.engine.checkpoint import load_checkpoint
from detkt.engine.reporting import Reporter
from detkt.engine.run import train
from detkt.engine.trainer import Interrupted, Trainer
from detkt.engine.validation import Validation
from detkt.kinds import Classification
from detkt.models import load_model, saved


def test_the_best_is_the_first_of_the_highest_of_the_first_measure():
    scores = iter([0.2, math.nan, 0.5, 0.5, 0.3])
    kept = []
    checked = Validation(lambda: {"top1": next(scores), "top5": 0.9, "per_class": {}}, ["top1", "top5"], kept.append)
    logged = [checked.run(step) for step in (10, 20, 30, 40, 50)]
    assert [line["val_top1"] for line in logged] == [0.2, None, 0.5, 0.5, 0.3]
    assert all(line == {"val_top1": line["val_top1"], "val_top5": 0.9} for line in logged)
    assert kept == [
        {"step": 10, "epoch": 1, "top1": 0.2, "top5": 0.9},
        {"step": 30, "epoch": 3, "top1": 0.5, "top5": 0.9},
    ]
    assert (checked.epochs, checked.best) == (5, kept[1])


def test_a_first_score_that_is_no_number_is_still_a_model():
    scores, kept = iter([math.nan, 0.0]), []
    checked = Validation(lambda: {"map": next(scores)}, ["map"], kept.append)
    checked.run(1)
    checked.run(2)
    assert [record["map"] for record in kept] == [None, 0.0]


# KTAN on classifiers with a validation list; three checkpoints are kept.
OVERRIDES = ("method=ktan", "data.val=val", "train.epochs=3", "train.keep=3", "train.checkpoint_every=4")


@pytest.fixture(scope="module")
def finished(tiny_classifier_file, tmp_path_factory):
    """3 regressor steps, then 12 of the student: epochs end after steps 7, 11 and 15."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, train(load_config(tiny_classifier_file, OVERRIDES), folder, quiet=True)


def test_every_epoch_is_scored_and_the_best_kept(finished):
    folder, metrics = finished
    scored = [line for line in read_log(folder) if "val_top1" in line]
    assert [(line["step"], line["stage"]) for line in scored] == [
        (7, "adversarial"),
        (11, "adversarial"),
        (15, "adversarial"),
    ]
    assert all({"val_top5", "loss", "lr"} < set(line) for line in scored)
    best = max(scored, key=lambda line: line["val_top1"])  # the first of them
    record = {
        "step": best["step"],
        "epoch": (best["step"] - 3) // 4,
        "top1": best["val_top1"],
        "top5": best["val_top5"],
    }
    assert json.loads((folder / "metrics.json").read_text())["best"] == {"model": "best", "split": "val", **record}
    assert load_model(folder / "best", task="classification")[1]["extra"]["validation"] == record
    # The student's updates: 4 an epoch.
    assert metrics["curve"] == [
        {"updates": 4 * (number + 1), "top1": line["val_top1"], "top5": line["val_top5"]}
        for number, line in enumerate(scored)
    ]


def test_the_best_model_is_the_student_as_it_was_scored(tiny_classifier_file, finished, tmp_path, monkeypatch):
    scored = {}
    original = Validation.run

    def run(self, step):
        scored[step] = {name: value.clone() for name, value in self._score.args[0].state_dict().items()}
        return original(self, step)

    monkeypatch.setattr(Validation, "run", run)
    metrics = train(load_config(tiny_classifier_file, OVERRIDES), tmp_path / "run", quiet=True)
    found = load_model(tmp_path / "run" / "best", task="classification")[0].state_dict()
    expected = scored[metrics["best"]["step"]]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert_same_run(tmp_path / "run", finished[0])


def test_scoring_changes_nothing_that_is_learnt(tiny_classifier_file, finished, tmp_path):
    train(load_config(tiny_classifier_file, [o for o in OVERRIDES if "val" not in o]), tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished[0] / "model.safetensors").read_bytes()
    assert not (tmp_path / "run" / "best").exists()
    assert "best" not in json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_detectors_are_scored_alike(tiny_config, voc_folder, tmp_path):
    root = shutil.copytree(voc_folder, tmp_path / "voc")
    lists = root / "ImageSets" / "Main"
    ids = (lists / "trainval.txt").read_text().splitlines(keepends=True)
    (lists / "learn.txt").write_text("".join(ids[:12]))
    (lists / "choose.txt").write_text("".join(ids[12:]))
    config = tiny_config(f"data.root={root}", "data.train=learn", "data.val=choose", "train.epochs=1")
    metrics = train(config, tmp_path / "run", quiet=True)
    (scored,) = [line for line in read_log(tmp_path / "run") if "val_map_voc07" in line]
    assert scored["step"] == metrics["best"]["step"] == 3
    assert [scored[f"val_{name}"] for name in ("map_voc07", "map_area", "map_coco")] == [
        metrics["best"][name] for name in ("map_voc07", "map_area", "map_coco")
    ]
    assert load_model(tmp_path / "run" / "best")[1]["classes"] == ["cross", "disc", "star"]


# -- stops -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def while_scoring(at_call):
    """``while_scoring(n, action)``: do *action* in the midst of the n-th validation from now on."""
    return at_call(Classification, "evaluate")


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_a_stop_does_not_wait_for_the_scores(tiny_classifier_file, finished, tmp_path, while_scoring):
    """The checkpoint is saved before: the score is still due in it."""
    folder, config = tmp_path / "run", load_config(tiny_classifier_file, OVERRIDES)
    while_scoring(2, lambda: (interrupt(), pytest.fail("the stop waited")))
    with pytest.raises(Interrupted, match="SIGINT"):
        train(config, folder, quiet=True)
    assert load_checkpoint(folder / "last.pt")["step"] == 11
    assert load_checkpoint(folder / "last.pt")["validation"]["epochs"] == 1
    assert read_log(folder)[-1]["step"] < 11
    while_scoring(0, None)
    train(config, folder, resume=folder / "last.pt", quiet=True)
    assert_same_run(folder, finished[0])


def test_a_stop_at_an_epochs_last_step(tiny_classifier_file, finished, tmp_path, monkeypatch):
    folder, config = tmp_path / "run", load_config(tiny_classifier_file, OVERRIDES)
    original = Trainer.train_step

    def step(self, *arguments):
        original(self, *arguments)
        if self.progress.step + 1 == 15:
            interrupt()

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        with pytest.raises(Interrupted):
            train(config, folder, quiet=True)
    assert load_checkpoint(folder / "last.pt")["validation"]["epochs"] == 2
    train(config, folder, resume=folder / "last.pt", quiet=True)
    assert_same_run(folder, finished[0])


class Killed(BaseException):
    """Stands for a SIGKILL."""


@pytest.mark.parametrize("moment", ["while scoring", "between the two files of the best", "after the log line"])
def test_a_run_killed_around_its_scores_tells_them_once(moment, tiny_classifier_file, finished, tmp_path, monkeypatch):
    folder, config = tmp_path / "run", load_config(tiny_classifier_file, OVERRIDES)

    def kill(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "while scoring":
            patch.setattr(Classification, "evaluate", kill)
        elif moment == "between the two files of the best":
            original = saved.write_atomically
            patch.setattr(saved, "write_atomically", lambda p, w: kill() if p.name == "model.json" else original(p, w))
        else:
            original = Reporter.log
            patch.setattr(Reporter, "log", lambda self, e: (original(self, e), "val_top1" in e and kill()))
        with pytest.raises(Killed):
            train(config, folder, quiet=True)
    assert load_checkpoint(folder / "last.pt")["step"] == 7
    train(config, folder, resume=folder / "last.pt", quiet=True)
    assert_same_run(folder, finished[0])


def test_a_run_resumed_into_a_new_folder_takes_its_best_model_along(tiny_classifier_file, finished, tmp_path):
    config = load_config(tiny_classifier_file, OVERRIDES)
    train(config, tmp_path / "copy", resume=finished[0] / "last.pt", quiet=True)
    assert_same_run(tmp_path / "copy", finished[0])


# -- what is refused, and replaced -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "shares"), [("test", "test"), ("train", "train"), ("train[-3:]", "train")])
def test_a_list_that_is_trained_or_tested_on_is_refused(split, shares, tiny_classifier_file, tmp_path):
    with pytest.raises(InputError, match=rf"and data\.{shares}={shares} share \d+ pictures, such as {shares}/dark/"):
        train(load_config(tiny_classifier_file, [*OVERRIDES, f"data.val={split}"]), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_overwriting_removes_the_old_runs_models_and_checkpoints(tiny_classifier_file, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    (folder / "best" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds a run already"):
        train(load_config(tiny_classifier_file, ["method=none"]), folder, quiet=True)
    train(load_config(tiny_classifier_file, ["method=none"]), folder, overwrite=True, quiet=True)
    assert steps_in(folder) == {"last.pt": 8}
    assert os.listdir(folder / "best") == ["notes.txt"]


# -- older checkpoints -----------------------------------------------------------------------------------------------


def steps_in(folder):
    return {path.name: load_checkpoint(path)["step"] for path in folder.glob("*.pt")}


def test_the_last_checkpoints_are_kept(finished):
    """Saved after steps 3 (a stage's end), 4, 6, 7, 8, 11, 12 and 15."""
    assert steps_in(finished[0]) == {"last.pt": 15, "checkpoint-12.pt": 12, "checkpoint-11.pt": 11}


def test_a_run_resumed_from_an_older_checkpoint_forgets_the_newer(tiny_classifier_file, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    (folder / "metrics.json").unlink()
    seen = []
    original = Trainer.save

    def save(self):
        original(self)
        seen.append(sorted(path.name for path in folder.glob("*.pt")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save", save)
        train(load_config(tiny_classifier_file, OVERRIDES), folder, resume=folder / "checkpoint-11.pt", quiet=True)
    assert seen[0] == ["checkpoint-11.pt", "last.pt"], "12, and 15 in last.pt, are of the course before"
    assert steps_in(folder) == {"last.pt": 15, "checkpoint-12.pt": 12, "checkpoint-11.pt": 11}
    assert_same_run(folder, finished[0])
