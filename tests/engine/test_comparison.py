"""Which runs a table may hold."""

from __future__ import annotations

import json

import pytest
import yaml

from detkt.base.errors import InputError
from detkt.config import save_config
from detkt.engine.comparison import collect, run_folder
from detkt.engine.run import resolve_config


@pytest.fixture
def finished(tiny_config, tmp_path):
    """A config, and the folder of a finished run of it."""
    config = tiny_config("method=ktan", "train.seed=0")
    folder = run_folder(tmp_path, config, "ktan", 0)
    folder.mkdir()
    save_config(resolve_config(config), folder / "config.yaml")
    scores = {"map_voc07": 0.5, "map_area": 0.5, "map_coco": 0.25, "updates": 7, "seconds": 8.0}
    (folder / "metrics.json").write_text(json.dumps(scores))
    return config, folder


def test_a_run_with_the_same_settings_is_taken(finished, tiny_config, tmp_path):
    config, _ = finished
    for again in (config, tiny_config("method=none", "train.workers=3")):  # neither changes a result
        (row,) = collect(again, ["ktan"], [0], tmp_path)
        assert (row.method, row.mean("map_voc07")) == ("ktan", 0.5)


def test_a_run_older_than_a_setting_is_refused(finished, tmp_path):
    """It had no such value, whatever today's default is."""
    config, folder = finished
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    del kept["methods"]["ktan"]["label_smoothing"]  # the config has the default
    (folder / "config.yaml").write_text(yaml.safe_dump(kept))
    with pytest.raises(InputError, match=r"holds a run with other settings \(methods\)"):
        collect(config, ["ktan"], [0], tmp_path)
