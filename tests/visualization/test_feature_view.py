"""The maps of a comparison's models on one picture, with what the distilled student's method makes of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from detkt import data
from detkt.base.errors import InputError
from detkt.config import load_config
from detkt.engine.run import train
from detkt.visualization.feature_view import compared_maps, trained_distiller
from detkt.visualization.sources import open_sources


@pytest.fixture(scope="module")
def run(tiny_file, tmp_path_factory):
    config = load_config(tiny_file, ["method=ktan"])
    folder = tmp_path_factory.mktemp("features") / "run"
    train(config, folder, quiet=True)
    return folder, config


@pytest.fixture
def sources(run, tiny_student):
    folder, config = run
    paths = {"student": tiny_student, "distilled": folder, "teacher": Path(config.teacher.checkpoint)}
    return open_sources(paths, torch.device("cpu"))


def test_the_regressed_teacher_has_the_students_shape(run, sources):
    folder, config = run
    maps = compared_maps(sources, trained_distiller(sources), data.test_set(config.data), 0)
    assert list(maps) == ["student", "teacher", "teacher, regressed", "distilled (ktan)"]
    assert maps["student"].shape == maps["teacher, regressed"].shape == maps["distilled (ktan)"].shape == (32, 4, 4)
    assert maps["teacher"].shape == (64, 4, 4)
    # The layer is the trained one of last.pt, applied to the teacher's map.
    state = torch.load(folder / "last.pt", weights_only=True)["distiller"]
    weight = state["method.regressors.output.convolution.weight"][:, :, 0, 0].numpy()
    bias = state["method.regressors.output.convolution.bias"].numpy()
    expected = np.maximum(np.einsum("oc,chw->ohw", weight, maps["teacher"]) + bias[:, None, None], 0)
    np.testing.assert_allclose(maps["teacher, regressed"], expected, rtol=1e-4, atol=1e-5)


def test_without_the_method_each_detector_is_shown_alone(run, sources):
    """The same maps of the same networks, whether they are shown together or alone."""
    folder, config = run
    dataset = data.test_set(config.data)
    together = compared_maps(sources, trained_distiller(sources), dataset, 1)
    alone = compared_maps(sources, None, dataset, 1)
    assert list(alone) == ["student", "distilled (ktan)", "teacher"]
    for title, feature in alone.items():
        np.testing.assert_allclose(feature, together[title], atol=1e-6)
    assert not np.allclose(alone["student"], alone["distilled (ktan)"])
    without_teacher = {role: source for role, source in sources.items() if role != "teacher"}
    assert trained_distiller(without_teacher) is None


def test_no_method_where_the_run_holds_none(run, tiny_student, tmp_path):
    folder, config = run
    paths = {"student": tiny_student, "distilled": tiny_student, "teacher": Path(config.teacher.checkpoint)}
    assert trained_distiller(open_sources(paths, torch.device("cpu"))) is None


def test_a_checkpoint_of_other_networks_is_refused(run, tiny_student, tmp_path):
    folder, config = run
    copied = shutil.copytree(folder, tmp_path / "run")
    (copied / "config.yaml").write_text((folder / "config.yaml").read_text().replace("method: ktan", "method: dln", 1))
    paths = {"student": tiny_student, "distilled": copied, "teacher": Path(config.teacher.checkpoint)}
    with pytest.raises(InputError, match=r"last.pt does not fit the run's config.yaml, or is of other networks"):
        trained_distiller(open_sources(paths, torch.device("cpu")))
