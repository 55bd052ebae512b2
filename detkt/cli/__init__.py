"""The command ``detkt``: a module a command, found by its name and imported when it is called."""

from __future__ import annotations

import ast
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from detkt.base.commands import COMMANDS, command
from detkt.base.errors import suggestion
from detkt.base.version import __version__


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``detkt COMMAND ...`` and exit as `detkt.cli.shared.run_tool` does; *arguments* default to the process's."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        print(f"detkt {__version__}")
    elif name not in COMMANDS:
        near = suggestion(name, COMMANDS)
        print(f"error: unknown command '{name}'{near}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    else:
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))  # while we import, which takes seconds
        module = importlib.import_module(_module(name))
        shared = importlib.import_module("detkt.cli.shared")
        shared.run_tool(lambda _: module.main(rest), getattr(module, "TO_GO_ON", shared.RESUME))


def _module(name: str) -> str:
    return f"{__name__}.{name.replace('-', '_')}"


def _help() -> str:
    """The commands with the first sentence of each module, which is read, not imported: torch takes seconds."""
    lines = ["usage: detkt COMMAND ...   (detkt COMMAND --help tells more)", ""]
    for name in COMMANDS:
        source = Path(__file__).with_name(f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
        lines.append(f"  {name:<10} {ast.get_docstring(ast.parse(source))}")
    return "\n".join([*lines, "", f"example:\n  {command('train-det')} --method ktan"])
