"""Numbers that go wrong: what stops a run, and what it only tells."""

from __future__ import annotations

import json
import math

import pytest
import torch

from detkt import methods
from detkt.base.errors import InputError
from detkt.engine.guards import FiniteGuard, SkippedUpdates, Watcher
from detkt.engine.reporting import OUR_WATCHES
from detkt.engine.run import train
from detkt.engine.trainer import Trainer
from detkt.knowledge import FeatureSpec, Spec
from detkt.methods import method_config
from detkt.methods.base import Watch
from detkt.methods.ktan import KTAN


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_value_that_is_not_finite_is_named(value):
    guard = FiniteGuard()
    guard.add_losses(6, ["a", "b"], {"x": torch.tensor(1.0), "y": torch.tensor(2.0)})
    guard.add_gradient(6, ["a", "b"], "student", torch.tensor(3e38))
    with pytest.raises(
        InputError, match=rf"^loss 'y' became {value} at step 7 \(pictures c\); the last good checkpoint"
    ):
        guard.add_losses(7, ["c"], {"x": torch.tensor(1.0), "y": torch.tensor(value)})
    with pytest.raises(InputError, match=rf"^the gradient of player 'D' became {value} at step 8 \(pictures d, e\)"):
        guard.add_gradient(8, ["d", "e"], "D", torch.tensor(value))
    guard.check()


# -- fp16 ------------------------------------------------------------------------------------------------------------


def test_a_long_row_of_skipped_updates_is_told_once():
    skipped, finite, infinite = SkippedUpdates(), torch.tensor(1.0), torch.tensor(math.inf)
    told = []
    for step in range(100):
        skipped.add("student", finite if step == 20 else infinite)
        skipped.add("D", torch.tensor(math.nan) if step % 2 else finite)
        told += [(step, line) for line in skipped.warnings()]
    assert [step for step, _ in told] == [20 + SkippedUpdates.MANY]
    assert told[0][1] == (
        "the last 30 updates of player 'student' were skipped, its gradient being infinite in fp16: use --precision "
        "bf16, or lower train.lr_per_image"
    )


# -- signs of trouble ------------------------------------------------------------------------------------------------

LARGE = Watch("x is large", "lower it", ("x",), lambda mean, first: mean["x"] > 10 * first["x"], updates=40)


def lines(watcher, values, start=0):
    """What is told of *values* logged every 20 steps: step -> lines."""
    found = {}
    for number, value in enumerate(values, start=1):
        step = start + 20 * number
        if warnings := watcher.warnings(step, {"y": 0.0} if value is None else {"x": value}):
            found[step] = warnings
    return found


def test_a_sign_is_told_once_when_it_has_been_seen_for_long_enough():
    told = {100: ["x is large (seen from step 60 on): lower it"]}
    assert lines(Watcher([LARGE]), [1, 2, 11, 12, 13, 14, 2, 11, 12, 13, 14]) == told
    assert lines(Watcher([LARGE]), [1, 11, 12, 2, 11, 12, 2]) == {}
    assert lines(Watcher([LARGE]), [100, 110, 120, 999]) == {}, "ten times the first, not ten"
    # Lines of a stage that does not log it are neither the first nor an end.
    assert lines(Watcher([LARGE]), [None, 1, 11, None, 12, 13]) == told


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_resumed_watcher_tells_the_same(stop):
    values = [1, 2, 11, 12, 13, 14, 2, 11]
    first, second = Watcher([LARGE]), Watcher([LARGE])
    before = lines(first, values[:stop])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before | lines(second, values[stop:], 20 * stop) == lines(Watcher([LARGE]), values)


def ktan(**settings):
    spec = Spec({"output": FeatureSpec(4, 8, 8, True)}, 3)
    return KTAN(method_config("ktan", settings), spec, spec)


def means(**changed):
    usual = {
        "discriminator": 1.4,
        "discriminator_accuracy_teacher": 0.7,
        "discriminator_accuracy_student": 0.6,
        "generator_loss": 0.8,
    }
    return usual | changed


def told(method, before, after, steps=300):
    watcher = Watcher(method.watches())
    assert watcher.warnings(20, before) == []
    return [line for step in range(40, steps, 20) for line in watcher.warnings(step, after)]


def test_ktan_tells_of_a_degenerate_discriminator():
    sure = means(discriminator_accuracy_teacher=1.0, discriminator_accuracy_student=1.0)
    assert told(ktan(), means(), means()) == []
    assert told(ktan(), means(), means(discriminator_accuracy_teacher=1.0)) == []
    assert told(ktan(), means(), sure, steps=240) == [], "for long"
    (line,) = told(ktan(), means(), sure)
    assert line == (
        "the discriminator tells all maps apart, and teaches the student nothing (seen from step 40 on): lower "
        "methods.ktan.discriminator_lr, or raise methods.ktan.instance_noise or methods.ktan.label_smoothing"
    )
    # A loss near its least: 0, or with smoothed labels the entropy of 0.9 and 0.1, which is 0.3251.
    assert told(ktan(label_smoothing=0.0), means(), means(discriminator=0.005))
    assert not told(ktan(label_smoothing=0.0), means(), means(discriminator=0.02))
    assert told(ktan(), means(), means(discriminator=0.33))
    assert not told(ktan(), means(), means(discriminator=0.34))


def test_ktan_tells_of_an_exploding_adversary():
    (line,) = told(ktan(), means(), means(generator_loss=8.1))
    assert line == (
        "a loss of the adversary is more than 10 times what it was at first (seen from step 40 on): lower "
        "methods.ktan.alpha, methods.ktan.discriminator_lr or train.lr_per_image"
    )
    assert told(ktan(), means(), means(discriminator=14.1))
    assert not told(ktan(), means(), means(discriminator=13.9, generator_loss=7.9))


def test_sums_watch_for_their_parts_and_dln_for_nothing():
    spec = Spec({"output": FeatureSpec(4, 8, 8, True)}, 3)
    both = methods.build(methods.parse("ktan+kd"), spec, spec)
    assert [watch.sign for watch in both.watches()] == [watch.sign for watch in ktan().watches()]
    assert methods.build(methods.parse("dln"), spec, spec).watches() == []


def test_a_run_warns_in_one_line_and_goes_on(tiny_config, tmp_path, monkeypatch, capsys):
    original = KTAN.watches
    sooner = lambda self: [Watch(w.sign, w.advice, w.names, lambda *_: True, updates=2) for w in original(self)][:1]  # noqa: E731
    monkeypatch.setattr(KTAN, "watches", sooner)
    train(tiny_config("method=ktan", "train.log_every=1"), tmp_path / "run", quiet=True)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {line["step"]: line["warning"] for line in log if "warning" in line} == {
        9: "the discriminator tells all maps apart, and teaches the student nothing (seen from step 7 on): lower "
        "methods.ktan.discriminator_lr, or raise methods.ktan.instance_noise or methods.ktan.label_smoothing"
    }
    assert [line["step"] for line in log] == list(range(1, 12))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert told == [f"warning: step 9: {log[8]['warning']}"]


# -- of every run ----------------------------------------------------------------------------------------------------


def logged(watcher, name, values, every=20):
    """What is told of *values* of *name*, logged so often: step -> lines."""
    steps = range(every, every * len(values) + 1, every)
    found = {step: watcher.warnings(step, {name: value}) for step, value in zip(steps, values, strict=True)}
    return {step: told for step, told in found.items() if told}


def test_a_task_that_is_drowned_is_told_of_once_with_what_to_do():
    (told,) = logged(Watcher(OUR_WATCHES), "gradient_share", [70.0, 40, 12, 11, 20], every=200).items()
    assert told == (
        400,
        [
            "the gradient of the method's terms is more than 10 times the task's at the student's maps (seen from step "
            "200 on): the task is drowned: set the method's balance (0.5, say), or lower its weight"
        ],
    )
    assert logged(Watcher(OUR_WATCHES), "gradient_share", [70.0, 9, 11, 10, 70], every=200) == {}


def test_clipping_in_most_steps_is_told_of_once_with_what_to_do():
    ((step, (line,)),) = logged(Watcher(OUR_WATCHES), "clipped", [0.5] + 20 * [0.55]).items()
    assert step == 40 + 200
    assert line.startswith("the student's gradient is clipped in most steps (seen from step 40 on): ")
    assert "lower train.lr_per_image" in line
    assert logged(Watcher(OUR_WATCHES), "clipped", 30 * [0.5]) == {}


def test_a_checkpoint_of_before_our_watches_is_read():
    old, watcher = Watcher([LARGE]), Watcher([LARGE, *OUR_WATCHES])
    lines(old, [1, 11])
    watcher.load_state_dict(old.state_dict())
    assert lines(watcher, [12, 13], 40) == {80: ["x is large (seen from step 40 on): lower it"]}
    assert logged(watcher, "clipped", 20 * [1.0])


@pytest.mark.parametrize(("norm", "share"), [(1e-4, 1.0), (1e4, 0.0), (0, None)])
def test_a_run_tells_how_often_it_was_clipped(norm, share, tiny_config, tmp_path):
    config = tiny_config("train.epochs=1", f"train.clip_norm={norm}", "method=fitnet", "train.log_every=3")
    train(config, tmp_path / "run", quiet=True)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert metrics.get("clipped_share") == share
    assert [line.get("clipped") for line in log] == 2 * [share]
    # The third step of four is looked at, for the first line.
    assert ["gradient_share" in line for line in log] == [True, False]
    assert metrics["gradient_share"] == log[0]["gradient_share"] > 0


def test_looking_at_gradients_changes_nothing_that_is_learnt(tiny_config, tmp_path, monkeypatch):
    models = []
    for number, looks in enumerate((True, False)):
        monkeypatch.setattr(Trainer, "_compares_gradients", lambda _, looks=looks: looks)
        train(tiny_config("method=ktan+kd"), tmp_path / str(number), quiet=True)
        models.append((tmp_path / str(number) / "model.safetensors").read_bytes())
        assert ("gradient_share" in (tmp_path / str(number) / "log.jsonl").read_text()) is looks
    assert models[0] == models[1]
