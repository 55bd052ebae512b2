"""What is shipped: the demo's checkpoints, the configs, and what they are worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import detkt
from detkt import methods
from detkt.config import load_config, published_name
from detkt.data import shapes_config
from detkt.data.shapes import write_shapes
from detkt.data.voc import VOCDetection
from detkt.engine.run import resolve_config
from detkt.evaluation import voc
from detkt.evaluation.detector import detect
from detkt.kinds import kind_of
from detkt.models import load_model
from detkt.models.published import published

PROJECT = Path(__file__).resolve().parent.parent
MODELS = PROJECT / "data" / "models"
CONFIGS = sorted((PROJECT / "configs").glob("*.yaml"))


def test_the_checkpoints_are_small():
    assert sum(path.stat().st_size for path in MODELS.glob("*/model.safetensors")) <= 5_000_000


def test_the_teacher_is_better_than_the_student_and_that_than_its_start(tmp_path):
    """The first 80 scenes of the list "test", which depend on seed and number alone."""
    config = load_config(PROJECT / "configs" / "shapes.yaml")
    scenes = replace(shapes_config(config.data), train=0, val=0, test=80)
    dataset = VOCDetection(write_shapes(tmp_path / "shapes", scenes), "test", classes=list(scenes.classes))
    maps = {}
    for name in ("shapes-student-init", "shapes-student", "shapes-teacher"):
        model, meta = load_model(MODELS / name)
        assert meta["classes"] == list(dataset.classes)
        detections, _ = detect(model, dataset, torch.device("cpu"), quiet=True)
        maps[name] = voc.evaluate(detections, dataset.annotations()).map
    assert maps["shapes-student-init"] > 0.4
    assert maps["shapes-student"] > maps["shapes-student-init"] + 0.05
    assert maps["shapes-teacher"] > maps["shapes-student"] + 0.05


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_names_what_exists(path):
    config = load_config(path)
    assert config.name == path.stem
    for net in (config.student, config.teacher):
        kind_of(config).family.resolve_options(net.architecture, net.options)
        if net.checkpoint and (found := published_name(net.checkpoint)):
            assert published(*found).meta["categories"]
        elif net.checkpoint:
            assert (PROJECT / net.checkpoint / "model.json").is_file()
    resolved = resolve_config(config)
    assert all(resolved.methods[cls.name] is not None for cls in methods.classes(config.method))
    if "rpn_nms_thresh" in resolved.student.options:
        assert resolved.student.options["rpn_nms_thresh"] == 0.7


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_method_with_a_section_or_a_published_number_can_be_built(path):
    """The layers a config names are there, in nets of its architectures; nothing is trained or downloaded."""
    config = load_config(path)
    family = kind_of(config).family
    if "1001" in config.teacher.architecture:
        config.teacher.architecture = "cifar_preact_resnet110"  # the same stages
    config.student.options.pop("transform_input", None)
    small = {"min_size": 128, "max_size": 160}  # no layer's size depends on it
    nets = []
    for net in (config.student, config.teacher):
        options = family.resolve_options(net.architecture, net.options)
        options |= {key: value for key, value in small.items() if key in options}
        nets.append(family.build(net.architecture, 10, **options))
    for method in {*config.methods, *config.paper} - {"teacher"}:
        config.method = method
        detkt.Distiller(*nets, method, config.method_settings())
