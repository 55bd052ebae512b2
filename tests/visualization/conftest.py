"""The tools as functions."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from detkt.cli import run_tool

TOOLS = Path(__file__).resolve().parent.parent.parent / "tools"


@pytest.fixture
def run(capsys):
    """``run(tool, *arguments)``: exit status, standard output and error of a tool."""

    def call(tool: str, *arguments) -> tuple[int, str, str]:
        spec = importlib.util.spec_from_file_location(tool, TOOLS / f"{tool}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        status = 0
        try:
            run_tool(lambda _: module.main([str(argument) for argument in arguments]))
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call
