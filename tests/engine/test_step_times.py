"""How long a run will take: of an adversary that plays in some steps only, both kinds count by their number."""

from __future__ import annotations

import pytest

from detkt.config import load_config
from detkt.engine import step_times
from detkt.engine.trainer import Trainer

COSTS = {"regressor": 2.0, "warmup": 3.0, "adversarial": 9.0, "between": 1.0}


@pytest.mark.parametrize(("every", "adversarial"), [(1, 9.0), (4, 3.0)])  # (9 + 1 + 1 + 1) / 4
def test_steps_of_every_kind_count_by_their_number(tiny_classifier_file, monkeypatch, every, adversarial):
    now, settings = [0.0], [f"methods.ktan.adversary_every={every}", "train.warmup_steps=0"]

    def step(self, stage, loader):
        now[0] += COSTS[stage.name]

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(step_times, "clock", lambda device: now[0])
    config = load_config(tiny_classifier_file, ["method=ktan", *settings])
    # The regressor, the warm-up and what is left of 2 epochs of 4 batches.
    assert step_times.seconds_expected(config) == pytest.approx(3 * 2.0 + 3 * 3.0 + 5 * adversarial)
