"""The tools as functions."""

from __future__ import annotations

import pytest

from detkt.cli.shared import run_tool


@pytest.fixture
def run(tool, capsys):
    """``run(name, *arguments)``: exit status, standard output and error of a program of tools/."""

    def call(name: str, *arguments) -> tuple[int, str, str]:
        status = 0
        try:
            run_tool(lambda _: tool(name).main([str(argument) for argument in arguments]))
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call
