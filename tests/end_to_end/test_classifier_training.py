"""tools/train_cls.py from raw files to metrics: it learns, distillation helps, a stopped run goes on exactly."""

from __future__ import annotations

import json
import os
import signal
import struct

import numpy as np
import pytest
import torch
import yaml

from detkt.config import load_config
from detkt.engine.checkpoint import load_checkpoint
from detkt.engine.run import train
from detkt.engine.trainer import Interrupted, Trainer
from detkt.models import load_model

CLASSES = 10


def write_split(folder, split: str, count: int, seed: int) -> None:
    """Pictures of 28 x 28 in MNIST's files: a bright bar whose place and direction are the class, under noise."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count).astype(np.uint8)
    pictures = generator.integers(0, 120, (count, 28, 28))
    for picture, label in zip(pictures, labels, strict=True):
        place = 3 + 5 * (label % 5) + generator.integers(-1, 2)
        bar = (slice(place, place + 3), slice(None)) if label < 5 else (slice(None), slice(place, place + 3))
        picture[bar] += 120
    prefix = folder / ("train" if split == "train" else "t10k")
    header = struct.pack(">4i", 2051, count, 28, 28)
    prefix.with_name(prefix.name + "-images-idx3-ubyte").write_bytes(header + pictures.astype(np.uint8).tobytes())
    header = struct.pack(">2i", 2049, count)
    prefix.with_name(prefix.name + "-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist")
    write_split(folder, "train", 1600, seed=0)
    write_split(folder, "test", 500, seed=1)
    return folder


@pytest.fixture(scope="module")
def config_file(bars, tmp_path_factory):
    net = {"options": {"in_channels": 1}}
    content = {
        "data": {"format": "mnist", "root": str(bars), "train": "train", "test": "test", "flip": 0.0},
        "student": {"architecture": "cifar_resnet8x0.25", **net},
        "teacher": {"architecture": "cifar_resnet8x0.5", **net},
        "train": {
            "epochs": 4,
            "batch_size": 32,
            "lr_per_image": 0.003,
            "warmup_steps": 10,
            "workers": 0,
            "device": "cpu",
            "checkpoint_every": 10000,
        },
        "methods": {"ktan": {"regressor_steps": 20, "warmup_steps": 20, "discriminator_width": 8}},
    }
    content["data"]["crop_padding"] = 0
    path = tmp_path_factory.mktemp("config") / "bars.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def teacher(config_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    metrics = train(load_config(config_file, ["role=teacher", "method=none"]), folder, quiet=True)
    assert metrics["top1"] > 0.9
    return folder


@pytest.mark.slow
def test_the_tool_learns_and_writes_what_it_says(config_file, teacher, tool, tmp_path, capsys):
    """200 steps from nothing to well above chance, in every file's numbers."""
    run = tmp_path / "run"
    tool("train_cls").main(
        ["--method", "kd", "--config", str(config_file), "--teacher", str(teacher), "--output", str(run), "--quiet"]
    )
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["top1"] > 0.7
    assert metrics["top5"] >= metrics["top1"]
    assert (metrics["method"], metrics["dataset"], metrics["split"], metrics["seed"]) == ("kd", "bars", "test", 0)
    assert metrics["updates"] == 200
    assert metrics["parameters"] == sum(p.numel() for p in load_model(run, task="classification")[0].parameters())
    assert f"top-1 {100 * metrics['top1']:.2f} %" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["cross_entropy"] < lines[0]["cross_entropy"]
    assert lines[-1]["kd"] < lines[0]["kd"]
    description = json.loads((run / "model.json").read_text())
    assert description["task"] == "classification"
    assert len(description["classes"]) == CLASSES


@pytest.mark.parametrize("method", ["kd", "ktan"])
def test_a_stopped_run_equals_an_uninterrupted_one(method, config_file, teacher, tmp_path, monkeypatch):
    overrides = [f"method={method}", f"teacher.checkpoint={teacher}", "train.epochs=1", "data.crop_padding=2"]
    config = load_config(config_file, overrides)
    whole = train(config, tmp_path / "whole", quiet=True)
    original, count = Trainer.train_step, 0

    def step(self, *arguments):
        nonlocal count
        count += 1
        if count == 37:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", quiet=True)
    again = train(config, tmp_path / "run", resume=tmp_path / "run" / "last.pt", quiet=True)
    assert (again["top1"], again["updates"]) == (whole["top1"], whole["updates"])
    ours, theirs = (load_checkpoint(tmp_path / name / "last.pt")["distiller"] for name in ("run", "whole"))
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(ours[name], value), name


def test_the_wrong_tool_says_so(config_file, tool, tiny_file, tmp_path):
    from detkt.base.errors import InputError

    with pytest.raises(InputError, match=r"data.format=mnist is for classification: use python tools/train_cls.py"):
        tool("train_det").main(["--config", str(config_file), "--output", str(tmp_path / "a"), "--method", "none"])
    with pytest.raises(InputError, match=r"data.format=voc is for detection: use python tools/train_det.py"):
        tool("train_cls").main(["--config", str(tiny_file), "--output", str(tmp_path / "b"), "--method", "none"])
