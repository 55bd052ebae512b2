"""Compiled backbones reveal what uncompiled ones do, and a missing compiler is said in one line."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from detkt.base.errors import InputError
from detkt.config import load_config
from detkt.engine.run import train
from detkt.methods.base import Needs
from detkt.models import build_classifier
from detkt.tasks import build_task
from detkt.tasks.compiling import compile_backbones

CPU = torch.device("cpu")
PASSES = Needs.STUDENT | Needs.TEACHER_FEATURES


def loss_and_gradients(task, images, targets):
    torch.manual_seed(0)
    student, teacher, _ = task.run(images, targets, PASSES)
    distance = sum(
        (s - t).square().mean() for s, t in zip(student.features.values(), teacher.features.values(), strict=True)
    )
    task.student.zero_grad()
    (sum(student.losses.values()) + distance).backward()
    gradients = {name: p.grad.clone() for name, p in task.student.named_parameters() if p.grad is not None}
    return student, teacher, gradients


def compared(make, images, targets, layers, monkeypatch):
    """The same batch through an uncompiled and a compiled task; the second's features and gradients are the first's."""
    # Without the code generator, which takes half a minute: tracing is where hooks and in-place layers could be lost.
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compiler(function, backend="aot_eager", fullgraph=True))
    student, teacher = make(0), make(1).eval().requires_grad_(False)
    plain, compiled = (build_task(copy.deepcopy(student), teacher) for _ in range(2))
    for task in (plain, compiled):
        task.reveal(layers, layers)
    compile_backbones(compiled, CPU)
    for expected, found in zip(
        loss_and_gradients(plain, images, targets), loss_and_gradients(compiled, images, targets), strict=True
    ):
        expected, found = (getattr(value, "features", value) for value in (expected, found))
        assert list(expected) == list(found)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("fasterrcnn_resnet10x0.125_c4", ["layer1", "layer2.0.bn1"]),
        ("fasterrcnn_resnet10x0.125_fpn", ["body.layer2"]),
        ("fasterrcnn_alexnet", ["0", "3"]),  # convolutions whose ReLU works in place
    ],
)
def test_a_detectors_maps_and_gradients(detector, batch, name, layers, monkeypatch):
    compared(lambda seed: detector(name, seed=seed), *batch, layers, monkeypatch)


def test_a_classifiers_maps_and_gradients(monkeypatch):
    def make(seed):
        torch.manual_seed(seed)
        return build_classifier("cifar_resnet8x0.5", 4)

    images, labels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    compared(make, images, labels, ["layer1", "layer2"], monkeypatch)


def test_a_run_with_compiled_backbones(tiny_file, tmp_path):
    """The real compiler: the same losses as without, to rounding, and a model that loads."""
    overrides = ["method=fitnet", "train.epochs=1", "train.log_every=1"]
    losses = []
    for compiled in (False, True):
        config = load_config(tiny_file, [*overrides, f"train.compile={str(compiled).lower()}"])
        metrics = train(config, tmp_path / str(compiled), quiet=True)
        losses.append((tmp_path / str(compiled) / "log.jsonl").read_text().splitlines()[0])
        assert metrics["updates"] > 0
    first, second = ({k: v for k, v in json.loads(line).items()} for line in losses)
    assert first["fitnet"] == pytest.approx(second["fitnet"], rel=1e-4)


def test_crosskd_with_compiled_backbones(tiny_dense_file, tmp_path, monkeypatch):
    """Backbones alone are compiled: the towers that CrossKD looks into are heads, and all losses stay what they are."""
    compiler, compiled = torch.compile, []

    def eager(function, **options):
        compiled.append(function)
        return compiler(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", eager)
    lines = []
    for value in ("false", "true"):
        overrides = ["method=crosskd", "train.epochs=1", "train.log_every=1", f"train.compile={value}"]
        train(load_config(tiny_dense_file, overrides), tmp_path / value, quiet=True)
        lines.append([json.loads(line) for line in (tmp_path / value / "log.jsonl").read_text().splitlines()])
        assert bool(compiled) == (value == "true")
    assert len(compiled) == 3, "the trial of the compiler, and two backbones"
    for plain, other in zip(*lines, strict=True):
        for name in ("crosskd_classes", "crosskd_boxes", "classification", "bbox_regression"):
            assert plain[name] > 0
            assert other[name] == pytest.approx(plain[name], rel=1e-4)


def test_without_a_compiler(tiny_config, tmp_path, monkeypatch):
    def broken(function):
        raise RuntimeError("No working C++ compiler found\nand a long trace")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(InputError, match=r"\(No working C\+\+ compiler found\); leave out --compile$"):
        train(tiny_config("method=none", "train.compile=true"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
