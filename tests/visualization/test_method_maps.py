"""A finished run read back: its method's maps on pictures, of classifiers and of detectors."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import torch
import yaml

from detkt import data
from detkt.base.errors import InputError
from detkt.config import load_config
from detkt.data.voc import VOCDetection
from detkt.engine.run import train
from detkt.models import build_classifier, load_model, save_model
from detkt.visualization.method_maps import choose_indices, open_run, picture_maps, shown_pixels


def write_idx(path, array: np.ndarray, magic: int) -> None:
    header = struct.pack(f">{array.ndim + 1}i", magic, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """MNIST's files with 32 and 9 pictures of noise."""
    folder = tmp_path_factory.mktemp("mnist")
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 32), ("t10k", 9)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", generator.integers(0, 256, (count, 28, 28)), 2051)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", generator.integers(0, 10, count), 2049)
    return folder


@pytest.fixture(scope="module")
def classifier_run(digits, tmp_path_factory):
    """Factor transfer between two classifiers, a few steps."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(3)
    teacher = build_classifier("cifar_resnet8x0.5", 10, in_channels=1)
    save_model(teacher, folder / "teacher", [str(digit) for digit in range(10)])
    net = {"options": {"in_channels": 1}}
    content = {
        "method": "ft",
        "data": {"format": "mnist", "root": str(digits), "train": "train", "test": "test"},
        "student": {"architecture": "cifar_resnet8x0.25", **net},
        "teacher": {"architecture": "cifar_resnet8x0.5", "checkpoint": str(folder / "teacher"), **net},
        "train": {"epochs": 1, "batch_size": 16, "warmup_steps": 0, "workers": 0, "device": "cpu"},
        "methods": {"ft": {"paraphraser_steps": 2}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    train(load_config(folder / "config.yaml"), folder / "run", quiet=True)
    return folder / "run"


@pytest.fixture(scope="module")
def detector_run(tiny_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector") / "run"
    train(load_config(tiny_file, ["method=none", "train.epochs=1"]), folder, quiet=True)
    return folder


def test_a_classifiers_maps_are_those_of_its_nets_in_evaluation_mode(classifier_run, digits):
    distiller, dataset = open_run(classifier_run)
    shown = picture_maps(distiller, dataset, 4)
    assert list(shown.maps) == ["teacher", "teacher factor", "student factor", "student"]
    raw = np.frombuffer(gzip.decompress((digits / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    pixels = raw.reshape(9, 28, 28)[4]
    assert shown.name == "test/00004"
    np.testing.assert_array_equal(shown.picture, np.repeat(pixels[:, :, None], 3, axis=2))
    image = (torch.from_numpy(pixels.copy()).float() / 255 - 0.1307)[None, None] / 0.3081
    student, _ = load_model(classifier_run, task="classification")
    teacher, _ = load_model(classifier_run.parent / "teacher", task="classification")
    with torch.no_grad():
        expected = {"student": student.backbone(image), "teacher": teacher.backbone(image)}
    for title, feature in expected.items():
        np.testing.assert_allclose(shown.maps[title], feature[0], atol=1e-5)
    # The trained translator of last.pt made the factor.
    state = torch.load(classifier_run / "last.pt", weights_only=True)["distiller"]
    translator = distiller.method.translators["output"]
    translator.load_state_dict({k.split("output.")[1]: v for k, v in state.items() if ".translators." in k})
    with torch.no_grad():
        factor = translator(expected["student"])[0]
    np.testing.assert_allclose(shown.maps["student factor"], factor, rtol=1e-4, atol=1e-5)
    assert shown.maps["teacher factor"].shape == (16, 7, 7)


def test_a_detectors_maps_are_cut_to_the_picture(detector_run, tiny_config, monkeypatch):
    distiller, dataset = open_run(detector_run)
    assert distiller.teacher is None  # plain training
    model, meta = load_model(detector_run)
    image, _ = data.test_set(tiny_config().data, meta["classes"])[2]
    batch, _ = model.transform([image])
    with torch.no_grad():
        expected = model.backbone(batch.tensors)[0]
    shown = picture_maps(distiller, dataset, 2)
    assert list(shown.maps) == ["student"]
    np.testing.assert_allclose(shown.maps["student"], expected, atol=1e-5)
    np.testing.assert_array_equal(shown.picture, (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    # Of 64 x 64 pixels only 40 x 64 show picture in a batch padded to multiples of 32.
    dataset.transforms = lambda picture, boxes, labels, seed: (picture[:40], boxes[:0], labels[:0], False)
    cropped = picture_maps(distiller, dataset, 2)
    assert cropped.picture.shape == (40, 64, 3)
    batch, _ = model.transform([image[:, :40]])
    height, width = batch.image_sizes[0]
    with torch.no_grad():
        feature = model.backbone(batch.tensors)[0]
    rows = round(feature.shape[1] * height / batch.tensors.shape[2])
    assert rows < feature.shape[1]
    columns = round(feature.shape[2] * width / batch.tensors.shape[3])
    np.testing.assert_allclose(cropped.maps["student"], feature[:, :rows, :columns], atol=1e-5)


def test_pictures_are_spread_over_the_data_set_or_named(classifier_run):
    _, dataset = open_run(classifier_run)
    assert choose_indices(dataset, 3) == [0, 4, 8]
    assert choose_indices(dataset, 1) == [0]
    assert choose_indices(dataset, 50) == list(range(9))
    assert choose_indices(dataset, 3, ["test/00007", "test/00002", "test/00007"]) == [7, 2]
    with pytest.raises(InputError, match=r"no picture 'test/7'"):
        choose_indices(dataset, 3, ["test/7"])


def test_colours_beyond_the_range_are_cut_off(classifier_run, voc_folder):
    _, dataset = open_run(classifier_run)
    image = torch.tensor([-9.0, (0.5 - 0.1307) / 0.3081, 9.0]).view(1, 1, 3)
    np.testing.assert_array_equal(shown_pixels(image, dataset), [[[0] * 3, [128] * 3, [255] * 3]])
    assert shown_pixels(torch.full((3, 2, 2), 0.2), VOCDetection(voc_folder, "test")).tolist() == [[[51] * 3] * 2] * 2


def test_what_is_no_run_is_refused(classifier_run, tmp_path):
    with pytest.raises(InputError, match=r"does not hold config.yaml and last.pt; give a finished run's folder"):
        open_run(tmp_path)
    with pytest.raises(InputError, match="none"):
        open_run(classifier_run, str(tmp_path / "none"))
