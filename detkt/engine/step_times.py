"""How long a run will take, from a few of its steps."""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from detkt.base.device import clock, resolve_device
from detkt.base.seeds import seed_everything
from detkt.config import Config, NetConfig
from detkt.data.loading import training_loader
from detkt.distiller import Distiller
from detkt.engine.nets import build_net
from detkt.engine.trainer import Trainer
from detkt.kinds import kind_of

STEPS = 2
"""Measured steps of each stage and of the one between its turns, after one that is not."""


def seconds_expected(config: Config) -> float:
    """Seconds of training that the run of *config* will take here, scoring and start not counted.

    A few steps of each of its stages are made, with networks of random weights where its own are not trained yet.

    Raises:
        InputError: what a training raises of settings or data.
    """
    device, kind = resolve_device(config.train.device), kind_of(config)
    seed_everything(config.train.seed)
    dataset = kind.training_set(config)
    networks = {"student": config.trained_net, "teacher": config.teacher}
    student, teacher = (
        build_net(kind, _as_it_is_now(net), role, dataset.classes).to(device) for role, net in networks.items()
    )
    distiller = Distiller(
        student,
        teacher if config.needs_teacher else None,
        config.method,
        config.method_settings(),
        dataset.classes,
        dataset.classes,
        kind.image_size(dataset),
        own_size=config.teacher.own_size,
    )
    with tempfile.TemporaryDirectory() as folder, closing(distiller):
        train = replace(config.train, lr_per_image=1e-9, compile=False, cache_teacher=None)
        trainer = Trainer(distiller, dataset, train, Path(folder), quiet=True)
        # Random weights must not run away while they are timed: the student does not learn, nor do its method's nets.
        for optimizer in trainer.players.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = 0.0
        order = trainer.batches()
        loader = iter(training_loader(dataset, order, config.train.workers, device.type == "cuda"))
        total = 0.0
        with closing(loader):
            for stage, length in zip(distiller.stages, trainer.lengths, strict=True):
                distiller.train()
                for turn, share in ((stage, 1 / stage.every), (stage.between, 1 - 1 / stage.every)):
                    if turn is None:
                        continue
                    trainer.train_step(turn, loader)
                    started = clock(device)
                    for _ in range(STEPS):
                        trainer.train_step(turn, loader)
                    total += share * length * (clock(device) - started) / STEPS
    return total


def _as_it_is_now(net: NetConfig) -> NetConfig:
    """*net* with weights that are there: a checkpoint is yet to be trained, and costs as much as it."""
    return replace(net, checkpoint=None, weights=None)
