"""What two runs left, compared to the last bit; and the settings with which every method fits the tiny networks."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from detkt import methods
from detkt.engine.checkpoint import load_checkpoint

TIMES = {"images_per_second", "seconds", "milliseconds_per_picture"}
VARYING = TIMES | {"finished", "versions", "data_root"}

OF_OBJECTS = ("crosskd", "fgd", "fgfi")  # need boxes or dense heads, which classifiers do not have

_SETTINGS = (
    *(f"methods.{name}.paraphraser_steps=3" for name in ("ft", "rae", "cae")),
    "methods.cae.num_layers=1",
    "methods.fgfi.warmup_steps=3",
    "methods.fsp.layers=[layer2, output]",
)
_REPRESENTING = [name for name in methods.available() if name.startswith("kr")]
# With them every method has stages of a few steps each, and finds its layers in the tiny networks.
DETECTION_SETTINGS = (*_SETTINGS, *(f"methods.{n}.layers=[output=layer3.0.bn1+layer3]" for n in _REPRESENTING))
CLASSIFICATION_SETTINGS = (*_SETTINGS, *(f"methods.{n}.layers=[output=layer3.0+layer3.1]" for n in _REPRESENTING))


def assert_same(found, expected, where="state"):
    """Equal to the last bit, through dicts and lists; times aside."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            if key not in TIMES:
                assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, where
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


def read_log(folder: Path) -> list[dict]:
    """The lines of a run's log, less what the clock decides."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_same_run(folder: Path, expected: Path) -> None:
    """Checkpoint, log, models and scores of two finished runs."""
    assert_same(load_checkpoint(folder / "last.pt"), load_checkpoint(expected / "last.pt"))
    assert read_log(folder) == read_log(expected)
    ours, theirs = (json.loads((each / "metrics.json").read_text()) for each in (folder, expected))
    assert {k: v for k, v in ours.items() if k not in VARYING} == {k: v for k, v in theirs.items() if k not in VARYING}
    for model in ("model", "best/model"):
        assert (folder / f"{model}.safetensors").exists() == (expected / f"{model}.safetensors").exists()
        if (expected / f"{model}.safetensors").exists():
            for suffix in (".safetensors", ".json"):
                ours, theirs = ((each / f"{model}{suffix}").read_bytes() for each in (folder, expected))
                assert ours == theirs, f"{model}{suffix}"
