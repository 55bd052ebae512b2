"""Saving to a folder and rebuilding from it."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from detkt.base.errors import InputError
from detkt.models import build_detector, card_of, load_model, load_weights, save_model

NAME = "fasterrcnn_resnet10x0.25_c4"
CLASSES = ["disc", "square", "star"]


def small(**options) -> nn.Module:
    torch.manual_seed(0)
    options = {"min_size": 96, "max_size": 96, "anchor_sizes": [16, 32, 64]} | options
    return build_detector(NAME, len(CLASSES) + 1, **options)


def edit(folder: Path, **changes) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def saved(tmp_path) -> Path:
    save_model(small(), tmp_path / "run", CLASSES)
    return tmp_path / "run"


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_round_trip_gives_identical_detections(tmp_path, norm):
    model = small(norm=norm)
    if norm == "batch":  # statistics that differ from the initial ones
        model.backbone(torch.rand(4, 3, 64, 64))
    model.eval()
    save_model(model, tmp_path, CLASSES, extra={"method": "ktan"})
    again, meta = load_model(tmp_path)
    assert not again.training
    image = torch.rand(3, 96, 120)
    with torch.no_grad():
        expected, got = model([image])[0], again([image])[0]
    assert len(expected["boxes"]) > 0
    for key in ("boxes", "labels", "scores"):
        assert torch.equal(expected[key], got[key])
    assert card_of(again) == card_of(model)
    assert meta["classes"] == CLASSES
    assert meta["extra"] == {"method": "ktan"}


def test_model_json_holds_the_contract(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]
    meta = json.loads((saved / "model.json").read_text())
    assert set(meta) == {"format", "task", "architecture", "options", "classes"}
    assert (meta["format"], meta["task"], meta["architecture"]) == (1, "detection", NAME)
    assert meta["options"]["anchor_sizes"] == [16, 32, 64]
    assert meta["classes"] == CLASSES


@pytest.mark.parametrize("given", ["", "model.safetensors", "model.json"])
def test_load_takes_the_folder_or_its_files(saved, given):
    model, meta = load_model(saved / given)
    assert meta["architecture"] == NAME
    assert torch.equal(model.backbone.conv1.weight, small().backbone.conv1.weight)


def test_a_description_cannot_ask_for_a_download(saved):
    options = json.loads((saved / "model.json").read_text())["options"]
    edit(saved, options=options | {"weights": "imagenet"})
    with pytest.raises(InputError, match="no option 'weights'"):
        load_model(saved)


def test_tensors_that_share_memory_are_saved(tmp_path):
    model = small(norm="frozen")
    block = model.backbone.layer1[0]
    block.bn2 = block.bn1
    block.bn1.weight.fill_(3.0)
    save_model(model, tmp_path, CLASSES)
    again, _ = load_model(tmp_path)
    assert torch.equal(again.backbone.layer1[0].bn2.weight, torch.full((16,), 3.0))


def test_channels_last_and_compiled_names_are_saved_plain(tmp_path):
    model = small().to(memory_format=torch.channels_last)
    expected = model.state_dict()
    model.backbone = torch.compile(model.backbone)
    assert any("_orig_mod" in name for name in model.state_dict())
    save_model(model, tmp_path, CLASSES)
    again, _ = load_model(tmp_path)
    assert all(torch.equal(expected[name], tensor) for name, tensor in again.state_dict().items())


def test_weights_of_a_saved_model_load_from_its_folder(saved):
    other = build_detector(NAME, 9)
    report = load_weights(other, saved)
    assert len(report.mismatched) == 4
    assert torch.equal(other.backbone.conv1.weight, small().backbone.conv1.weight)


@pytest.mark.parametrize("classes", [["a", "b"], ["a", "b", "c", "d"], ["a", "b", "b"]])
def test_class_list_must_fit_the_model_when_saving(tmp_path, classes):
    with pytest.raises(InputError, match="3 classes besides the background"):
        save_model(small(), tmp_path, classes)
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_the_old_model_whole(saved, monkeypatch):
    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    changed = small()
    nn.init.zeros_(changed.backbone.conv1.weight)
    with pytest.raises(InputError, match="No space left"):
        save_model(changed, saved, CLASSES)
    monkeypatch.undo()
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]
    assert load_model(saved)[0].backbone.conv1.weight.any()


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(InputError, match="cannot make the folder"):
        save_model(small(), tmp_path / "taken", CLASSES)


def test_training_state_points_to_the_folder(saved):
    (saved / "last.pt").write_bytes(b"state")
    with pytest.raises(InputError, match="not a saved model: give the folder.*run"):
        load_model(saved / "last.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 1"),
        ({"task": "classification"}, "'task' is 'classification'"),
        ({"architecture": "fasterrcnn_resnet10x0.5_c4"}, "not the weights of fasterrcnn_resnet10x0.5_c4"),
        (
            {"architecture": "fasterrcnn_resnet18x0.25_c4"},
            "not the weights of fasterrcnn_resnet18x0.25_c4.*missing",
        ),
        ({"architecture": "fasterrcnn_resnett_c4"}, "model.json: unknown detector"),
        ({"architecture": 3}, "'architecture' is missing or not a str"),
        ({"options": None}, "'options' is missing or not a dict"),
        ({"options": {"min_sise": 3}}, "model.json: .*no option 'min_sise'"),
        ({"options": {"num_classes": 3}}, "model.json: .*no option 'num_classes'"),
        ({"classes": CLASSES[:2]}, "model.json names 2 classes, model.safetensors has 3"),
        ({"classes": []}, "'classes' must be a list of different names"),
        ({"classes": ["a", "a", "b"]}, "'classes' must be a list of different names"),
        ({"classes": [1, 2, 3]}, "'classes' must be a list of different names"),
    ],
)
def test_bad_descriptions(saved, changes, message):
    edit(saved, **changes)
    with pytest.raises(InputError, match=message) as error:
        load_model(saved)
    assert "\n" not in str(error.value)


def test_additional_tensor_is_refused(saved):
    path = saved / "model.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(path) | {"more": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="'more' is unknown, and 0 more"):
        load_model(saved)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.json", None, "model.json: No such file"),
        ("model.safetensors", None, "model.safetensors: No such file"),
        ("model.json", b'{"format": 1,', "model.json: not JSON"),
        ("model.json", b"[" * 100_000, "model.json: not JSON"),
        ("model.json", b"\xff\xfe", "model.json: not JSON"),
        ("model.json", b"[]", "model.json: not a model description"),
        ("model.safetensors", b"short", "model.safetensors: damaged, truncated"),
        ("model.safetensors", b"", "model.safetensors: the file is empty"),
        ("model.safetensors", b"<html></html>", "model.safetensors: this is a web page"),
    ],
)
def test_missing_and_damaged_files(saved, file, content, message):
    if content is None:
        (saved / file).unlink()
    else:
        (saved / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load_model(saved)
    assert "\n" not in str(error.value)


def test_nothing_at_the_path(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_model(tmp_path / "nowhere")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_no_cuda(saved):
    with pytest.raises(InputError, match="no CUDA device"):
        load_model(saved, device="cuda")


def test_a_run_that_is_not_finished_is_told_from_a_folder_without_a_model(saved):
    (saved / "last.pt").write_bytes(b"")
    load_model(saved)  # a finished run has a checkpoint, too
    (saved / "model.json").unlink()
    with pytest.raises(InputError, match=r"not finished and .* go on with --resume .*run$"):
        load_model(saved)
