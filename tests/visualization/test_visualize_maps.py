"""tools/visualize_maps.py: its three commands, and wrong input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detkt import data
from detkt.config import load_config, save_config
from detkt.engine.run import train
from detkt.models import build_classifier, save_model


@pytest.fixture(scope="module")
def ktan_run(tiny_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps") / "run"
    train(load_config(tiny_file, ["method=ktan"]), folder, quiet=True)
    return folder


def save_kernels(folder, method: str, kernels: torch.Tensor):
    """A saved classifier whose first convolution has these weights."""
    model = build_classifier("cifar_resnet8x0.25", 10, in_channels=1)
    first = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    with torch.no_grad():
        first.weight.copy_(kernels)
    save_model(model, folder, [str(i) for i in range(10)], {"method": method, "config": "tiny"})
    return folder


def save_log(folder, method: str, losses: list[float]):
    folder.mkdir()
    entries = [{"stage": "train", "step": 10 * (i + 1), "loss": loss} for i, loss in enumerate(losses)]
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (folder / "config.yaml").write_text(f"method: {method}\n")
    return folder


def test_maps(run, ktan_run, tmp_path):
    status, output, errors = run("visualize_maps", "maps", "--checkpoint", ktan_run, "--pictures", 2)
    assert (status, errors) == (0, "")
    assert output == f"ktan: teacher | teacher, regressed | student of 2 pictures in {ktan_run / 'maps.png'}\n"
    size = Image.open(ktan_run / "maps.png").size
    name = data.test_set(load_config(ktan_run / "config.yaml").data).ids[1]
    named = ["maps", "--checkpoint", ktan_run, "--images", name, "--channels", 3, "--output", tmp_path / "channels.jpg"]
    status, output, _ = run("visualize_maps", *named)
    assert status == 0 and "of 1 pictures in" in output
    drawn = Image.open(tmp_path / "channels.jpg")
    assert drawn.format == "JPEG" and drawn.size != size


def test_kernels(run, tmp_path):
    generator = torch.Generator().manual_seed(0)
    dense = save_kernels(tmp_path / "dense", "kr-dense", 1 + torch.rand(4, 1, 3, 3, generator=generator))
    sparse = torch.zeros(4, 1, 3, 3)
    sparse[:, :, 1, 1] = 1.0
    sparse = save_kernels(tmp_path / "sparse", "kr", sparse)
    status, output, errors = run("visualize_maps", "kernels", "--checkpoint", sparse, "--against", dense)
    assert (status, errors) == (0, "")
    table = {line.split()[0]: line.split()[1] for line in output.splitlines()[2:4]}
    assert table == {"kr": "88.9", "kr-dense": "0.0"}  # 32 of 36 weights
    pixels = np.asarray(Image.open(sparse / "kernels.png").convert("RGB"))
    assert ((pixels[:, :, 0] > 60) & (pixels[:, :, 2] < 60)).sum() > 1000  # dark red: the largest weights
    other = save_kernels(tmp_path / "other", "kr", torch.ones(4, 1, 3, 3))
    status, output, _ = run("visualize_maps", "kernels", "--checkpoint", sparse, "--against", dense, other)
    assert status == 0
    assert [line.split("  ")[0] for line in output.splitlines()[2:5]] == ["kr (sparse)", "kr-dense", "kr (other)"]


def test_curves(run, tmp_path):
    first, second = save_log(tmp_path / "a", "kr", [2.0, 1.0]), save_log(tmp_path / "b", "none", [3.0, 2.0])
    status, output, errors = run("visualize_maps", "curves", first, second)
    assert (status, errors) == (0, "")
    assert output == f"loss of kr, none in {first / 'curves.png'}\n"
    assert (first / "curves.png").stat().st_size > 5000


def test_wrong_input_is_one_line_and_status_2(run, ktan_run, tmp_path):
    log = save_log(tmp_path / "log", "kr", [1.0])
    save_config(load_config(log / "config.yaml"), log / "config.yaml")
    maps, kernels = ("maps", "--checkpoint", ktan_run), ("kernels", "--checkpoint", ktan_run)
    for arguments, message in [
        ((), "required: maps|kernels|curves"),
        (("mapps",), "invalid choice"),
        (("maps", "--checkpoint", tmp_path), "does not hold config.yaml and last.pt"),
        ((*maps, "--pictures", 0), "number of pictures is 0"),
        ((*maps, "--channels", 0), "number of channels is 0"),
        ((*maps, "--images", "nobody"), "no picture 'nobody'"),
        ((*maps, "--data-root", tmp_path / "none"), "none"),
        ((*maps, "--output", tmp_path / "maps.txt"), "is not a .png or .jpg file"),
        ((*maps, "--output", tmp_path / "none" / "maps.png"), "there is no folder"),
        ((*kernels, "--against", tmp_path / "none"), "cannot read"),
        ((*kernels, "--against", ktan_run), "is named twice"),
        (("curves", tmp_path / "none"), "none"),
        (("curves", log, "--key", "los"), "no 'los' (did you mean 'loss'?)"),
    ]:
        status, output, errors = run("visualize_maps", *arguments)
        assert (status, output) == (2, ""), arguments
        assert errors.startswith("error: ") and errors.count("\n") == 1, errors
        assert message in errors, errors
