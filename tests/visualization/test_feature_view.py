"""The maps that KTAN compares, read back from a finished run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detkt import data
from detkt.config import load_config
from detkt.engine.run import train
from detkt.models import load_model
from detkt.visualization.feature_view import REGRESSED, picture_maps, trained_regressors


@pytest.fixture(scope="module")
def run(tiny_file, tmp_path_factory):
    config = load_config(tiny_file, ["method=ktan"])
    folder = tmp_path_factory.mktemp("features") / "run"
    train(config, folder, quiet=True)
    return folder, config


def test_the_regressed_teacher_has_the_students_shape(run):
    folder, config = run
    student, teacher = load_model(folder)[0], load_model(config.teacher.checkpoint)[0]
    image = data.test_set(config.data)[0][0]
    regressors = trained_regressors(folder, student, teacher)
    maps = picture_maps({"student": student, "teacher": teacher}, image, regressors)
    assert list(maps) == ["student", "teacher", REGRESSED]
    assert maps["student"].shape == maps[REGRESSED].shape == (32, 4, 4)
    assert maps["teacher"].shape == (64, 4, 4)
    # The layer is the trained one of last.pt, applied to the teacher's map.
    state = torch.load(folder / "last.pt", weights_only=True)["distiller"]
    weight = state["method.regressors.output.convolution.weight"][:, :, 0, 0].numpy()
    bias = state["method.regressors.output.convolution.bias"].numpy()
    expected = np.maximum(np.einsum("oc,chw->ohw", weight, maps["teacher"]) + bias[:, None, None], 0)
    np.testing.assert_allclose(maps[REGRESSED], expected, rtol=1e-4, atol=1e-5)


def test_runs_without_a_regressor_have_none(run, tmp_path):
    folder, config = run
    student, teacher = load_model(folder)[0], load_model(config.teacher.checkpoint)[0]
    assert trained_regressors(tmp_path, student, teacher) is None
    maps = picture_maps({"student": student}, data.test_set(config.data)[0][0], None)
    assert list(maps) == ["student"]
