"""Rows of runs from anywhere: which files they may be, and which runs one table may hold."""

from __future__ import annotations

import json
import math

import pytest

from detkt.base.errors import InputError
from detkt.engine.collected import read_rows
from detkt.kinds import CocoDetection


def write(folder, name, **changes):
    """The metrics.json of a run on COCO's format at folder/NAME-sSEED.json, less or with *changes*."""
    method, seed = name.split("-s")
    scores = dict.fromkeys(CocoDetection.measures, 0.5) | {"per_class": {"disc": {}, "star": {}}, "split": "test"}
    budget = {"updates": 10, "seconds": 2.0}
    (folder / f"{name}.json").write_text(
        json.dumps({"method": method, "seed": int(seed), **scores, **budget, **changes})
    )


def test_what_cannot_be_measured_is_nan(tmp_path):
    for name in ("none-s0", "none-s1"):
        write(tmp_path, name, ap_small=None)
    write(tmp_path, "none-s9", role="teacher", ap_small=None)
    (row,), teacher, _ = read_rows([tmp_path], pictures=False, quiet=True)
    assert math.isnan(row.mean("ap_small"))
    assert row.spread("ap_small") is None
    assert math.isnan(teacher["ap_small"])
    assert row.mean("map_coco") == 0.5


@pytest.mark.parametrize(("key", "value"), [("ap_small", "0.5"), ("updates", None), ("seed", [1])])
def test_what_is_no_number_is_refused(tmp_path, key, value):
    write(tmp_path, "none-s0", **{key: value})
    with pytest.raises(InputError) as stopped:
        read_rows([tmp_path], pictures=False, quiet=True)
    assert str(stopped.value) == f"{tmp_path}/none-s0.json holds no number under '{key}'; mend it, or leave it out"


def test_runs_of_other_classes_are_refused(tmp_path):
    write(tmp_path, "none-s0")
    write(tmp_path, "kd-s3", per_class={"star": {}, "RBC": {}})
    with pytest.raises(InputError) as stopped:
        read_rows([tmp_path / "none-s0.json", tmp_path / "kd-s3.json"], pictures=False, quiet=True)
    assert str(stopped.value) == (
        "--runs holds runs of different classes: 'RBC' is one of those of none, seed 0 or kd, seed 3, not of both; "
        "give runs of one data set"
    )
    write(tmp_path, "kd-s3", per_class={"star": {}, "disc": {}})
    rows, _, _ = read_rows([tmp_path], pictures=False, quiet=True)
    assert len(rows) == 2


def test_rows_of_two_configs_keep_their_names(tmp_path):
    write(tmp_path, "fcos-none-s0", dataset="fcos")
    rows, _, _ = read_rows([tmp_path], pictures=False, quiet=True)
    assert [row.method for row in rows] == ["none"]
    write(tmp_path, "none-s0", dataset="photos")
    rows, _, _ = read_rows([tmp_path], pictures=False, quiet=True)
    assert sorted(row.method for row in rows) == ["fcos-none", "none"]
