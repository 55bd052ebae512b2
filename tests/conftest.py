"""Networks, a batch, data sets and configs so small that a training step takes hundredths of a second."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import TINY_CLASSES, TINY_METHODS, TINY_OPTIONS, TINY_TRAINING

from detkt.base.commands import COMMANDS
from detkt.cli.shared import run_tool
from detkt.config import load_config
from detkt.data.shapes import ShapesConfig, write_shapes
from detkt.distiller import Distiller
from detkt.models import build_classifier, build_detector, save_model


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Nets this small gain nothing from threads, and on a busy machine they spend their time waiting for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def detector():
    """``detector(name, num_classes=4, seed=0, **options)``: a seeded tiny Faster R-CNN in training mode."""

    def build(name: str = "fasterrcnn_resnet10x0.125_c4", num_classes: int = 4, seed: int = 0, **options):
        torch.manual_seed(seed)
        small = {
            "min_size": 64,
            "max_size": 96,
            "anchor_sizes": [16, 24, 32, 48, 64] if name.endswith("fpn") else [16, 32],
            "rpn_batch_size_per_image": 32,
            "rpn_pre_nms_top_n_train": 100,
            "rpn_post_nms_top_n_train": 30,
            "box_batch_size_per_image": 16,
        }
        return build_detector(name, num_classes, **{**small, **options})

    return build


@pytest.fixture
def batch():
    """Two pictures of unequal size, 64x80 and 53x96 within 64x96 once resized, and their three objects."""
    generator = torch.Generator().manual_seed(5)
    images = [0.2 * torch.rand(3, *size, generator=generator) for size in ((64, 80), (50, 90))]
    targets = [
        {"boxes": torch.tensor([[5.0, 5, 35, 40]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[50.0, 5, 85, 35], [10, 15, 40, 45]]), "labels": torch.tensor([2, 3])},
    ]
    for image, target in zip(images, targets, strict=True):
        for (x1, y1, x2, y2), label in zip(target["boxes"].int().tolist(), target["labels"].tolist(), strict=True):
            image[label - 1, y1:y2, x1:x2] += 0.7
    return images, targets


@pytest.fixture(scope="session")
def voc_folder(tmp_path_factory) -> Path:
    """A VOC-format folder of 16 pictures to train on ("trainval") and 6 to test on, 64 x 64, of three classes."""
    config = ShapesConfig(image_size=64, train=16, test=6, val=0, classes=TINY_CLASSES, max_objects=3, max_size=48.0)
    return write_shapes(tmp_path_factory.mktemp("data") / "voc", config)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    """A saved detector of random weights with twice the student's channels."""
    return _save_random(tmp_path_factory.mktemp("teacher"), "fasterrcnn_resnet10x0.25_c4", seed=1)


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory) -> Path:
    """A saved student of random weights."""
    return _save_random(tmp_path_factory.mktemp("student"), "fasterrcnn_resnet10x0.125_c4", seed=2)


def _save_random(folder: Path, architecture: str, seed: int) -> Path:
    torch.manual_seed(seed)
    save_model(build_detector(architecture, len(TINY_CLASSES) + 1, **TINY_OPTIONS), folder, TINY_CLASSES)
    return folder


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory, voc_folder, tiny_teacher) -> Path:
    """A config file: 2 epochs of 4 batches of 4 pictures, a log line every 4 steps, KTAN's stages 3 + 3 + 5 steps."""
    content = {
        "data": {"root": str(voc_folder)},
        "method": "none",
        "student": {"architecture": "fasterrcnn_resnet10x0.125_c4", "options": TINY_OPTIONS},
        "teacher": {
            "architecture": "fasterrcnn_resnet10x0.25_c4",
            "checkpoint": str(tiny_teacher),
            "options": TINY_OPTIONS,
        },
        "train": {**TINY_TRAINING, "lr_per_image": 0.001},
        "methods": TINY_METHODS,
    }
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="session")
def tiny_dense_file(tmp_path_factory, tiny_file) -> Path:
    """The config of `tiny_file` with two RetinaNets, of unequal channels."""
    folder, content = tmp_path_factory.mktemp("dense"), yaml.safe_load(tiny_file.read_text())
    options = {"min_size": 64, "max_size": 64, "anchor_sizes": [16, 24, 32, 48, 64]}
    content["student"] = {"architecture": "retinanet_resnet10x0.125_fpn", "options": options}
    torch.manual_seed(1)
    teacher = build_detector("retinanet_resnet10x0.25_fpn", len(TINY_CLASSES) + 1, **options)
    save_model(teacher, folder / "teacher", TINY_CLASSES)
    content["teacher"] = {
        "architecture": "retinanet_resnet10x0.25_fpn",
        "checkpoint": str(folder / "teacher"),
        "options": options,
    }
    path = folder / "tiny-dense.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def tiny_config(tiny_file):
    """``tiny_config("train.epochs=1", ...)``: the tiny config with overrides."""
    return lambda *overrides: load_config(tiny_file, overrides)


@pytest.fixture(scope="session")
def tool():
    """``tool("train_det")``: the module behind a program of tools/, whose main() takes its arguments as a list."""

    def load(name: str):
        for command, file in COMMANDS.items():
            if name == file:
                return importlib.import_module(f"detkt.cli.{command.replace('-', '_')}")
        path = Path(__file__).parent.parent / "tools" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"tool_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory) -> Path:
    """Pictures of 16 x 16 pixels in folders of two classes: 16 to train on ("train"), 6 each in "val" and "test"."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3), ("test", 3)):
        for shade, name in ((70, "dark"), (180, "light")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(random.normal(shade, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def tiny_classifier_file(tmp_path_factory, photo_folder) -> Path:
    """A config file of a classifying pair: 2 epochs of 4 batches of 4 pictures, KTAN's stages 3 + 3 + 5 steps."""
    folder = tmp_path_factory.mktemp("classifiers")
    torch.manual_seed(1)
    save_model(build_classifier("cifar_resnet14x0.5", 2), folder / "teacher", ["dark", "light"])
    content = {
        "data": {"format": "folder", "root": str(photo_folder), "train": "train", "test": "test", "crop_padding": 1},
        "method": "none",
        "student": {"architecture": "cifar_resnet8x0.25"},
        "teacher": {"architecture": "cifar_resnet14x0.5", "checkpoint": str(folder / "teacher")},
        "train": TINY_TRAINING,
        "methods": TINY_METHODS,
    }
    path = folder / "tiny-classifier.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def at_call(monkeypatch):
    """``at_call(owner, name)``: a function ``(n, action)`` that lets *action* precede the n-th call from then on."""

    def watch(owner: type, name: str) -> Callable[[int, Callable[[], None] | None], None]:
        original = getattr(owner, name)

        def arrange(number, action):
            count = 0

            def counted(self, *arguments):
                nonlocal count
                count += 1
                if count == number:
                    action()
                return original(self, *arguments)

            monkeypatch.setattr(owner, name, counted)

        return arrange

    return watch


@pytest.fixture
def at_step(at_call):
    """``at_step(n, action)``: do *action* in the midst of the n-th step from now on."""
    return at_call(Distiller, "updates")


@pytest.fixture
def run(tool, capsys):
    """``run(name, *arguments)``: exit status, standard output and error of a program of tools/."""

    def call(name: str, *arguments) -> tuple[int, str, str]:
        status = 0
        try:
            run_tool(lambda _: tool(name).main([str(argument) for argument in arguments]))
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call
