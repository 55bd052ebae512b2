"""Every tool refuses bad input with status 2 and one line, makes nothing and changes nothing."""

from __future__ import annotations

import pickle
from fnmatch import fnmatch
from functools import cache

import document
import pytest
from document import SECTIONS
from faults import SPRUNG, Shell

from detkt.cli.shared import run_tool

CASES = [case for cases in SECTIONS.values() for case in cases]
RUNS = [pytest.param(case, name, id=f"{case.id}-{name}") for case in CASES for name in case.tools]


@pytest.fixture(scope="session")
def program(tool):
    """``program(name)``: the tool as a module, loaded once."""
    return cache(tool)


@pytest.mark.parametrize(("case", "name"), RUNS)
def test_bad_input_is_refused_in_one_line(case, name, place, program, monkeypatch, capsys):
    case.change(place)
    flags = place.flags(case.tools[name])
    case.patch(monkeypatch, place)
    before = place.files()
    with pytest.raises(SystemExit) as stopped:
        run_tool(lambda _: program(name).main(flags))
    out, err = capsys.readouterr()
    *warnings, line = place.shorten(err).splitlines()
    assert line.startswith("error: ")
    assert case.pattern().fullmatch(line.removeprefix("error: ")), line
    assert all(warning.startswith("warning: ") for warning in warnings), err
    assert stopped.value.code == 2
    assert not out or name == "compare", "only compare tells what it begins with"
    assert not SPRUNG.exists(), "what was pickled ran"
    after = place.files()
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    allowed = [*case.leaves, "*/events.out.tfevents.*"]  # where TensorBoard is installed
    assert [path for path in sorted(changed) if not any(fnmatch(path, pattern) for pattern in allowed)] == []


def test_ids_are_unique():
    assert len({case.id for case in CASES}) == len(CASES)
    assert len(CASES) >= 60


def test_the_trap_works():
    pickle.loads(pickle.dumps(Shell()))
    assert SPRUNG.exists()
    SPRUNG.unlink()


def test_the_document_shows_these_cases():
    """If it fails: python tests/faults/document.py"""
    assert document.PAGE.read_text(encoding="utf-8") == document.page()
