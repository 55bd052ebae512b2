"""The guide "write a method": one file and one test, nothing else touched."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch

import detkt
from detkt import methods

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "guides" / "own_method.md"


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)


@pytest.fixture
def installed(blocks, tmp_path, monkeypatch):
    """The guide's method as a file of detkt.methods, for as long as the test runs."""
    (tmp_path / "similarity.py").write_text(blocks[0])
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    methods._classes.cache_clear()
    yield importlib.import_module("detkt.methods.similarity")
    sys.modules.pop("detkt.methods.similarity", None)
    monkeypatch.undo()
    methods._classes.cache_clear()


def test_its_own_test_passes(installed, blocks):
    namespace = {}
    exec(compile(blocks[1], "test_similarity.py", "exec"), namespace)
    namespace["test_two_pictures_by_hand"]()


def test_the_tool_finds_it_by_name(installed, tool, tiny_file, tmp_path):
    """Alone and in a sum, with a setting of its own, through training and evaluation."""
    assert "sp" in methods.available()
    for name in ("sp", "sp+kd"):
        run = tmp_path / name
        tool("train_det").main(
            ["--method", name, "--config", str(tiny_file), "--output", str(run), "--quiet", "--epochs", "1"]
            + ["methods.sp.weight=7.5"]
        )
        last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
        assert last["sp"] > 0
        assert "weight: 7.5" in (run / "config.yaml").read_text()
    with pytest.raises(detkt.base.errors.InputError, match=r"unknown key 'methods.sp.wieght' .*did you mean 'weight'"):
        methods.method_config("sp", {"wieght": 1.0})


def test_the_class_alone_does_in_a_loop(installed, detector, batch):
    """Its term has the value of its loss function on the two backbones' maps, padding cut out."""
    student, teacher = detector(), detector("fasterrcnn_resnet10x0.25_c4", seed=1)
    distiller = detkt.Distiller(student, teacher, method=installed.Similarity)
    losses = distiller(*batch)
    images = student.transform(*batch)[0]
    with torch.no_grad():
        maps = [net.backbone(images.tensors) for net in (student, teacher)]
    for feature in maps:
        for picture, (height, width) in enumerate(images.image_sizes):
            rows = (torch.arange(feature.shape[2]) + 0.5) / feature.shape[2] * images.tensors.shape[2] < height
            columns = (torch.arange(feature.shape[3]) + 0.5) / feature.shape[3] * images.tensors.shape[3] < width
            feature[picture] *= rows[:, None] * columns
    expected = 100.0 * installed.similarity_loss(*maps)
    torch.testing.assert_close(losses["sp"].detach(), expected, rtol=1e-4, atol=1e-6)


def test_its_file_may_lie_anywhere(blocks, tmp_path):
    (tmp_path / "similarity.py").write_text(blocks[0])
    named = methods.method_class(f"{tmp_path}/similarity.py:Similarity")
    assert (named.name, named.Config().weight) == ("sp", 100.0)


def test_it_is_gone_afterwards():
    assert "sp" not in methods.available()
