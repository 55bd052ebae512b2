"""A teacher that would teach nonsense is refused before the training: a random head, other pixels, other channels."""

from __future__ import annotations

import re

import pytest
import torch

from detkt.base.errors import InputError
from detkt.base.paths import resolve
from detkt.config import load_config
from detkt.engine.run import train
from detkt.models import build_classifier


@pytest.fixture
def run(tiny_classifier_file, tmp_path):
    """``run("method=kd", ..., output="name")``: a run's folder, once it is done."""

    def start(*overrides, output="run"):
        folder = tmp_path / output
        train(load_config(tiny_classifier_file, ["train.epochs=1", *overrides]), folder, quiet=True)
        return folder

    return start


def test_a_teacher_whose_head_stays_random_is_refused(run, tmp_path):
    path = tmp_path / "ten-classes.pth"
    torch.save(build_classifier("cifar_resnet14x0.5", 10).state_dict(), path)
    message = rf"teacher.weights={path} does not fill the teacher's head.fc.weight, head.fc.bias.*--role teacher"
    with pytest.raises(InputError, match=message):
        run("method=fitnet", "teacher.checkpoint=null", f"teacher.weights={path}")
    assert not (tmp_path / "run").exists()
    run("method=none", "role=teacher", "teacher.checkpoint=null", f"teacher.weights={path}")


def test_a_teacher_of_other_pixels_is_refused(run):
    mean, std = "data.mean=[0.5,0.5,0.5]", "data.std=[0.2,0.2,0.2]"
    teacher = run("method=none", "role=teacher", "teacher.checkpoint=null", mean, std, output="teacher")
    config = load_config(teacher / "config.yaml")
    assert (config.data.mean, config.data.std) == ([0.5] * 3, [0.2] * 3)
    message = re.escape(
        "the teacher's checkpoint saw pictures with mean [0.5, 0.5, 0.5] and std [0.2, 0.2, 0.2] removed"
    )
    with pytest.raises(InputError, match=message):
        run("method=kd", f"teacher.checkpoint={teacher}")
    run("method=kd", f"teacher.checkpoint={teacher}", mean, std)


def test_a_config_is_resolved_to_the_data_sets_own_pixels(run):
    config = load_config(run("method=none") / "config.yaml")
    assert (config.data.mean, config.data.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_a_net_for_grey_pictures_is_refused_on_coloured_ones(run):
    with pytest.raises(InputError, match="the student takes pictures of 1 channels and those of folder have 3; set"):
        run("method=none", "student.options={in_channels: 1}")


def test_a_test_list_that_was_trained_on_is_told(run, caplog):
    run("method=none", "data.test=train")
    assert "data.train=train and data.test=train share 16 pictures" in caplog.text


@pytest.mark.parametrize(
    ("name", "millions"),
    [("cifar10_resnet26_resnet8", 0.12), ("cifar100_resnet32_resnet14", 0.19), ("tcifar100_resnet32_resnet14", 0.19)],
)
def test_krs_plain_students_have_the_papers_size(name, millions):
    """The other way round, KR's "smaller" student would be the larger one."""
    config = load_config(resolve(f"configs/{name}.yaml"))
    classes = 10 if name.startswith("cifar10_") else 100
    count = sum(p.numel() for p in build_classifier(config.student.architecture, classes).parameters())
    assert round(count / 1e6, 2) == millions
