"""What the faults are made from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from commands import SHORT
from faults import Place
from PIL import Image

from detkt.config import load_config
from detkt.data.voc import VOCDetection
from detkt.engine.run import train
from detkt.evaluation.voc_results import write_results

CLASSES = ["cross", "disc", "star"]


@pytest.fixture(scope="session")
def originals(
    tmp_path_factory, voc_folder, photo_folder, tiny_file, tiny_classifier_file, tiny_teacher, tiny_student
) -> dict[str, Path]:
    """Name -> what a `Place` copies."""
    folder = tmp_path_factory.mktemp("originals")
    classifier = yaml.safe_load(tiny_classifier_file.read_text())["teacher"]["checkpoint"]
    own = {str(voc_folder): "{voc}", str(photo_folder): "{photos}", str(tiny_teacher): "{teacher}"}
    own[classifier] = "{classifier}"
    configs = {"pair": tiny_file, "classifiers": tiny_classifier_file}
    for name, source in configs.items():
        text = source.read_text()
        for path, mark in own.items():
            text = text.replace(path, f"'{mark}'")
        configs[name] = folder / f"{name}.yaml"
        configs[name].write_text(text)
    run = folder / "run"
    train(load_config(tiny_file, ["name=pair", *SHORT.split()]), run, quiet=True)
    text = (run / "config.yaml").read_text()
    for path, mark in own.items():
        text = text.replace(path, f"'{mark}'")
    (run / "config.yaml").write_text(text)
    dataset = VOCDetection(voc_folder, "test", classes=CLASSES)
    found = {
        name: {"boxes": one["boxes"], "labels": one["labels"], "scores": [0.5] * len(one["labels"])}
        for name, one in dataset.annotations().items()
    }
    write_results(folder / "results", found, CLASSES, "test")
    entries = [
        {"image_id": name, "category_id": 1 + CLASSES.index(label), "bbox": [1, 2, 30, 20], "score": 0.5}
        for name, one in found.items()
        for label in one["labels"]
    ]
    (folder / "coco.json").write_text(json.dumps(entries, indent=1))
    (folder / "pictures").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (64, 48), "grey").save(folder / "pictures" / name)
    return {
        "voc": voc_folder,
        "photos": photo_folder,
        **configs,
        "teacher": tiny_teacher,
        "student": tiny_student,
        "classifier": Path(classifier),
        "run": run,
        "results": folder / "results",
        "coco": folder / "coco.json",
        "pictures": folder / "pictures",
    }


@pytest.fixture
def place(tmp_path, originals) -> Place:
    """The test's folder, in which all is well."""
    return Place(tmp_path, originals)
