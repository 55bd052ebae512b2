"""The notebook is run: as it stands, by a kernel of its own; and, here, on a folder that stands for the reader's."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny import TINY_OPTIONS

from detkt.cli import main as detkt

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs/guides/own_photographs.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_outputs(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_as_it_stands_it_shows_what_the_distilled_student_finds(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    text = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    runs = tmp_path / "runs/notebook"
    check_what_it_tells(runs, text)
    scores = {run: json.loads((runs / run / "metrics.json").read_text()) for run in ("none", "pkd")}
    assert {run: score["updates"] for run, score in scores.items()} == {"none": 24, "pkd": 24}, "4 epochs of 6 batches"
    assert all(score["map_voc07"] > 0.2 for score in scores.values()), "they have learnt something"


def test_on_a_folder_of_the_readers_it_trains_a_teacher(notebook, voc_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = ["data.train=trainval", "data.test=test"]
    detkt(["prepare", str(voc_folder), "--convert", "coco", "--output", "data/own", *names])
    tiny = [f"{net}.{key}" for net in ("student", "teacher") for key in (f"options={json.dumps(TINY_OPTIONS)}",)]
    tiny += ["student.architecture=fasterrcnn_resnet10x0.125_c4", "teacher.architecture=fasterrcnn_resnet10x0.25_c4"]
    tiny += ["student.weights=null", "teacher.weights=null", "train.epochs=1", "train.workers=0", "train.device=cpu"]
    space: dict = {}
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        exec(compile(cell.source, f"cell {number}", "exec"), space)
        if number == 0:
            space |= {"FOLDER": "data/own", "TRAIN": "trainval", "TEST": "test", "MORE": tiny}
    config = (tmp_path / "runs/notebook/pkd/config.yaml").read_text()
    assert "checkpoint: runs/notebook/teacher" in config and "root: data/own" in config
    assert re.search(r"pkd:\n(    .*\n)*    balance: 0.5\n", config)
    check_what_it_tells(tmp_path / "runs/notebook", capsys.readouterr().out)


def check_what_it_tells(runs: Path, text: str) -> None:
    """The gain, and a line an object that was gained."""
    assert re.search(r"^gain of the distilled over the student: [+-]", text, re.MULTILINE)
    changes = json.loads((runs / "pkd/diff/changes.json").read_text())["pictures"]
    gained = [f"{name}: {one['label']} at " for name, change in changes.items() for one in change["gained"]]
    assert [line for line in re.findall(r"^(\S+: \S+ at )\[", text, re.MULTILINE)] == gained
    assert (runs / "pkd/diff/report/index.html").is_file()
