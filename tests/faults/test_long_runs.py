"""More steps take no more memory."""

from __future__ import annotations

import gc
import os

import pytest

from detkt.config import load_config
from detkt.engine.run import train
from detkt.engine.trainer import Trainer

STEPS, WARM_UP, MOST = 1200, 600, 2.0  # updates; megabytes of growth after the first ones

_NET = {"min_size": 32, "max_size": 32, "rpn_pre_nms_top_n_train": 20, "rpn_post_nms_top_n_train": 8}
TASKS = {
    # One picture of 32 x 32 pixels a step: a hundredth of a second.
    "detection": ["method=none", "train.batch_size=1", *(f"student.options.{key}={v}" for key, v in _NET.items())],
    "classification": ["method=ktan", "methods.ktan.num_convs=1", "train.batch_size=2"],
}


def resident() -> float:
    """Megabytes of this process in memory."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_hundreds_of_updates_more_take_no_more_memory(task, tiny_file, tiny_classifier_file, tmp_path, monkeypatch):
    """With log lines and checkpoints."""
    file = {"detection": tiny_file, "classification": tiny_classifier_file}[task]
    per_epoch = {"detection": 16, "classification": 8}[task]
    settings = [f"train.epochs={-(-STEPS // per_epoch)}", "train.log_every=50", "train.checkpoint_every=500"]
    sizes = {}
    original = Trainer.train_step

    def step(self, *arguments):
        original(self, *arguments)
        if (self.progress.step + 1) % 200 == 0:
            sizes[self.progress.step + 1] = resident()

    monkeypatch.setattr(Trainer, "train_step", step)
    config = load_config(file, [*TASKS[task], *settings])
    train(config, tmp_path / "run", quiet=True)
    assert max(sizes) >= STEPS
    growth = max(sizes.values()) - max(size for number, size in sizes.items() if number <= WARM_UP)
    assert growth < MOST, f"{growth:.1f} MB: {sizes}"
