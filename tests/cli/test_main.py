"""The command ``detkt``: what it calls, how fast it answers, how it is called by tools/ and ``python -m detkt``."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import detkt
from detkt.base.commands import COMMANDS, command
from detkt.base.errors import InputError
from detkt.base.paths import INSTALLED
from detkt.cli import main

PROJECT = Path(__file__).resolve().parents[2]


def python(*arguments: str, folder: Path = PROJECT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
    )


def module_of(name: str):
    return importlib.import_module(f"detkt.cli.{name.replace('-', '_')}")


def test_help_names_every_command_with_the_first_line_of_its_module(capsys):
    main(["--help"])
    told = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        assert f"  {name:<10} {module_of(name).__doc__}" in told
    main([])
    assert capsys.readouterr().out.splitlines() == told
    main(["--version"])
    assert capsys.readouterr().out == f"detkt {detkt.__version__}\n"
    files = {path.stem for path in (PROJECT / "detkt" / "cli").glob("*.py")} - {"__init__", "shared"}
    assert files == {name.replace("-", "_") for name in COMMANDS}


def test_an_unknown_command_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["trian-det", "--method", "ktan"])
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert err.startswith("error: unknown command 'trian-det' (did you mean 'train-det'?); there are: train-det, ")
    assert err.count("\n") == 1


def test_a_command_ends_as_the_tools_do(capsys, monkeypatch):
    def refuse(arguments):
        raise InputError(f"got {arguments}")

    monkeypatch.setattr(module_of("predict"), "main", refuse)
    with pytest.raises(SystemExit) as stopped:
        main(["predict", "a.jpg", "--quiet"])
    assert (stopped.value.code, capsys.readouterr().err) == (2, "error: got ['a.jpg', '--quiet']\n")


def test_compare_tells_how_it_goes_on_after_a_stop(capsys, monkeypatch):
    from detkt.engine.trainer import Interrupted

    def stop(arguments):
        raise Interrupted(2, Path("runs/a"))

    for name, advice in (("compare", "run the same command again to go on"), ("train-det", "--resume runs/a")):
        monkeypatch.setattr(module_of(name), "main", stop)
        with pytest.raises(SystemExit) as stopped:
            main([name])
        assert stopped.value.code == 130
        assert capsys.readouterr().err.endswith(f"{advice}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_names_it_as_it_is_called(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    assert out.startswith(f"usage: {command(name)} ")
    assert f"{command(name)} " in out.partition("\nexample")[2]
    assert "%(prog)s" not in out
    assert module_of(name).__doc__.split()[-1] in out


def test_every_tool_is_a_command():
    tools = {path.stem for path in (PROJECT / "tools").glob("*.py")} - {"benchmark"}
    assert tools == {tool for tool in COMMANDS.values() if tool}
    assert not INSTALLED
    for name, tool in COMMANDS.items():
        if tool is None:
            assert command(name) == f"python -m detkt {name}"
            continue
        assert command(name) == f"python tools/{tool}.py"
        assert f'main(["{name}", *sys.argv[1:]])' in (PROJECT / "tools" / f"{tool}.py").read_text()


def test_the_command_and_its_tool_say_the_same():
    """From another folder, and with the tool's own exit status."""
    answers = [
        python(*called, "--data-root", "nowhere", "--detections", "nowhere", folder=PROJECT / "docs")
        for called in (["-m", "detkt", "eval"], [str(PROJECT / "tools" / "eval_voc.py")])
    ]
    assert [answer.returncode for answer in answers] == [2, 2]
    assert answers[0].stderr == answers[1].stderr
    assert answers[0].stderr.startswith("error: ")
    assert "nowhere" in answers[0].stderr


SLOW = "{name for name in sys.modules if name.partition('.')[0] in ('torch', 'numpy', 'omegaconf', 'matplotlib')}"


@pytest.mark.parametrize("program", ["import detkt", "from detkt.cli import main; main(['--help'])"])
def test_what_takes_time_is_not_imported(program):
    answer = python("-c", f"{program}\nimport sys\nassert not {SLOW}, {SLOW}\nassert 'torch' not in sys.modules")
    assert answer.returncode == 0, answer.stderr


def test_the_face_gives_what_it_names():
    homes = {"Distiller": "distiller", "train": "engine.run", "load_model": "models.weights", "Needs": "methods.base"}
    for name in detkt.__all__:
        assert getattr(detkt, name) is not None
        assert name in dir(detkt)
    for name, home in homes.items():
        assert getattr(detkt, name) is getattr(importlib.import_module(f"detkt.{home}"), name)
    assert detkt.InputError is InputError
    assert detkt.evaluation.__name__ == "detkt.evaluation"
    with pytest.raises(AttributeError, match="module 'detkt' has no attribute 'Distillr'"):
        detkt.Distillr  # noqa: B018
