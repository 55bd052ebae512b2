"""detkt budget: what fits is measured and printed with the settings that build it."""

from __future__ import annotations

import json
import shlex

import pytest

from detkt.base.errors import InputError
from detkt.cli import budget
from detkt.config import load_config
from detkt.export import budget as budgeting
from detkt.export.budget import Candidate, candidates, megabytes, search
from detkt.export.measuring import Latency
from detkt.models import build_detector

NAME = "fasterrcnn_resnet10x0.125_c4"


def test_megabytes_are_those_of_the_weights():
    candidate = Candidate(NAME, {"min_size": 64, "max_size": 96})
    model = build_detector(NAME, 4)
    held, parameters = megabytes(candidate, 3)
    assert held == pytest.approx(sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1e6)
    assert parameters == sum(parameter.numel() for parameter in model.parameters())


def test_search_leaves_out_what_need_not_be_timed(monkeypatch):
    timed = []

    def measure(candidate, *_):
        timed.append((candidate.architecture, candidate.options["min_size"]))
        median = candidate.options["min_size"] / 10
        return Latency(1, median, median, median, 5)

    monkeypatch.setattr(budgeting, "_measure", measure)
    options = candidates([NAME, "fasterrcnn_resnet50_c4"], [64, 96, 128, 160])
    found, skipped = search(options, milliseconds=10, size=5, classes=3, clock=lambda: 0.0)
    # The large one has over 100 MB; at 160 px it would be slower than at 128, which is too slow.
    assert timed == [(NAME, 64), (NAME, 96), (NAME, 128)]
    assert [one.candidate.options["min_size"] for one in found] == [96, 64]
    assert skipped == 0
    times = iter(range(0, 1000, 50))
    found, skipped = search(options, milliseconds=10, size=5, classes=3, limit=60, clock=lambda: next(times))
    assert (len(found), skipped) == (1, 3)


def test_the_config_line_makes_the_student(tiny_file):
    (candidate,) = candidates([NAME], [96])
    config = load_config(tiny_file, shlex.split(candidate.config_line()))
    assert config.student.architecture == NAME
    assert config.student.options["min_size"] == 96
    assert config.student.options["anchor_sizes"] == [20, 41, 82]
    candidate.build(3)


def test_command(tmp_path, capsys):
    limits = ["--latency-ms", "100000", "--size-mb", "5", "--candidates", NAME, "--sides", "64"]
    budget.main([*limits, "--json", str(tmp_path / "b.json"), "--quiet"])
    out = capsys.readouterr().out
    assert f"    student.architecture={NAME} student.options.min_size=64 student.options.max_size=107" in out
    (fitting,) = json.loads((tmp_path / "b.json").read_text())["fitting"]
    assert fitting["architecture"] == NAME
    assert fitting["milliseconds"]["calls"] >= 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--latency-ms", "0", "--size-mb", "5"], "must be above 0"),
        (["--latency-ms", "5", "--size-mb", "5", "--candidates", "fasterrcn_resnet18_c4"], "did you mean"),
        (["--latency-ms", "5", "--size-mb", "5", "--sides", "many"], "--sides many: give whole numbers"),
        (["--latency-ms", "5", "--size-mb", "0.01", "--candidates", NAME], "no candidate of 5 fits 5 ms and 0.01 MB"),
    ],
)
def test_refuses(flags, message):
    with pytest.raises(InputError, match=message):
        budget.main(flags)
