"""The configs of COCO and of own data: their schedules, and a step of each at a reduced size."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import detkt
from detkt.config import load_config
from detkt.kinds import kind_of
from detkt.models import build_detector

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
COCO = ["coco_frcnn_resnet101_resnet50_fpn", "coco_retinanet_resnet101_resnet50", "coco_frcnn_resnet50v2_mobilenet320"]


@pytest.mark.parametrize(("name", "rate"), zip(COCO, [0.02, 0.01, 0.02], strict=True))
def test_schedules_are_the_published_1x(name, rate):
    """90,000 updates of 16 of COCO's 117,266 pictures are 12.3 epochs; the rate falls after 8 and 11 of 12."""
    config = load_config(CONFIGS / f"{name}.yaml")
    train = config.train
    assert config.data.format == "coco"
    assert (config.data.train, config.data.test) == ("train2017", "val2017")
    assert (train.epochs, train.batch_size, train.weight_decay) == (12, 16, 1e-4)
    assert train.batch_size * train.lr_per_image == pytest.approx(rate)
    assert [round(share * train.epochs, 2) for share in train.milestones] == [8, 11]


@pytest.mark.parametrize("name", [*COCO, "own_data"])
def test_a_step_at_a_reduced_size(name, batch):
    """The pair's own forms on thin ResNets, at 64 pixels."""
    config = load_config(CONFIGS / f"{name}.yaml")
    torch.manual_seed(0)
    nets = []
    for net in (config.student, config.teacher):
        thin = net.architecture
        for depth in ("resnet50", "resnet101"):
            thin = thin.replace(f"{depth}_", "resnet10x0.25_")
        size = {"min_size": 64, "max_size": 96}
        assert kind_of(config).family.resolve_options(net.architecture, size)
        nets.append(build_detector(thin, 4, **size, **net.options))
    with detkt.Distiller(*nets, "pkd") as distiller:
        losses = distiller(*batch)
        total = sum(losses.values())
        total.backward()
    assert losses["pkd"].item() > 0 and math.isfinite(total.item())
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in nets[0].parameters())
