"""What a run tells: means of its lines, one bar for the whole run, trackers."""

from __future__ import annotations

import json
import os

import pytest
import torch
from run_comparison import read_log

from detkt.base.errors import InputError
from detkt.engine.reporting import Reporter, Window
from detkt.engine.run import train
from detkt.engine.trackers import ID


def filled(window: Window, values: list[float]) -> Window:
    for value in values:
        window.add({"loss": torch.tensor(value)}, images=2, learning_rate=0.1)
    return window


def test_a_value_of_few_steps_has_those_of_the_line_before_as_well():
    window = Window()
    assert filled(window, [1, 2, 3, 6]).flush()["loss"] == 3
    # One step alone would tell 13; of five it is 25 / 5.
    assert filled(window, [13]).flush()["loss"] == 5
    assert filled(window, [2, 2, 2]).flush()["loss"] == 2
    assert filled(window, [3, 5]).flush()["loss"] == 4  # half as many and more
    window.forget_the_line_before()  # another stage
    assert filled(window, [7]).flush()["loss"] == 7
    assert window.flush() == {}


def test_a_value_of_every_fourth_step_is_weighed_by_its_own_steps():
    window = Window()
    for step in range(12):
        window.add({"loss": torch.tensor(1.0)} | ({"d": torch.tensor(2.0)} if step % 4 == 0 else {}), 1, 0.1)
    assert window.flush()["d"] == 2
    window.add({"loss": torch.tensor(1.0), "d": torch.tensor(8.0)}, 1, 0.1)
    assert window.flush()["d"] == pytest.approx((2 + 2 + 2 + 8) / 4)


def test_a_window_goes_on_after_a_checkpoint():
    whole, first, second = Window(), Window(), Window()
    for window in (whole, first):
        filled(window, [1, 2, 3, 4, 5]).flush()
        filled(window, [9])
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    assert filled(whole, [6]).flush()["loss"] == filled(second, [6]).flush()["loss"] == pytest.approx(30 / 7)
    old = {
        "sums": {"loss": torch.tensor(6.0)},
        "counts": {"loss": 2},
        "images": 4,
        "learning_rate": 0.1,
        "seconds": 1.0,
    }
    second.load_state_dict(old, torch.device("cpu"))  # of a checkpoint from before there were lines before
    assert second.flush()["loss"] == 3


def test_one_bar_tells_of_the_whole_run(tmp_path, capsys):
    reporter = Reporter(tmp_path, tracker="none", done=3, total=10)
    reporter.start_stage("regressor")
    reporter.advance()
    reporter.start_stage("distill")
    reporter.advance()
    bar = reporter._bar
    assert (bar.n, bar.total, bar.desc) == (5, 10, "distill: ")
    reporter.close()
    assert "5/10" in capsys.readouterr().err


def scalars(folder) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_has_the_lines_of_the_log(tiny_config, tmp_path):
    pytest.importorskip("tensorboard")
    train(tiny_config("train.tracker=tensorboard", "train.log_every=2"), tmp_path / "run", quiet=True)
    steps = [line["step"] for line in read_log(tmp_path / "run") if line["stage"] == "train"]
    assert steps and scalars(tmp_path / "run")["train/loss"] == steps


def test_mlflow_has_them_and_a_resumed_run_goes_on_in_it(tiny_config, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config, run = tiny_config("train.tracker=mlflow", "train.log_every=2"), tmp_path / "run"
    train(config, run, quiet=True)
    known = json.loads((run / ID).read_text())["id"]
    train(config, run, resume=run / "last.pt", quiet=True)
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    steps = {line["step"] for line in read_log(run) if line["stage"] == "train"}
    assert steps and {one.step for one in client.get_metric_history(known, "train/loss")} == steps
    (experiment,) = [one for one in client.search_experiments() if one.name == "detkt"]
    assert [one.info.run_id for one in client.search_runs([experiment.experiment_id])] == [known]


def test_a_tracker_that_is_not_installed_is_named_before_the_work(tiny_config, tmp_path, monkeypatch):
    find = "detkt.engine.trackers.importlib.util.find_spec"
    monkeypatch.setattr(find, lambda name: None)
    with pytest.raises(InputError, match="train.tracker=wandb needs the package wandb: pip install wandb"):
        train(tiny_config("train.tracker=wandb"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_begin_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setattr("accelerate.tracking.MLflowTracker.start", lambda self: 1 / 0)
    with pytest.raises(InputError, match=r"^train.tracker=mlflow: division by zero; mend it"):
        Reporter(tmp_path, tracker="mlflow")


def test_a_trial_takes_two_steps_a_stage_and_eight_pictures(tool, tiny_file, tmp_path, capsys):
    run = tmp_path / "trial"
    given = ["--config", str(tiny_file), "--method", "ktan", "--output", str(run), "--quiet", "--trial"]
    tool("train_det").main([*given, "data.test=test"])
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["updates"] == 4 and metrics["split"] == "test[:8]"
    assert capsys.readouterr().out.endswith("; a trial, whose scores say nothing\n")
    assert [line["step"] for line in read_log(run)][-1] == 6
