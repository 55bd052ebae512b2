"""Methods from outside this folder: of a file, ``path/to/file.py:Class``, or of an installed package.

A package offers its methods as entry points of the group ``detkt.methods``, each under its class's ``name``::

    [project.entry-points."detkt.methods"]
    sp = "my_package.similarity:Similarity"
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import traceback
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

from detkt.base.errors import InputError, first_line, suggestion
from detkt.methods.base import Method

GROUP = "detkt.methods"


def names_file(method: str) -> bool:
    """Whether *method* is meant as ``path/to/file.py:Class``."""
    return method.endswith(".py") or method.rpartition(":")[0].endswith(".py")


def absolute(method: str) -> str:
    """*method* with the path of its file, if it names one, from the root on: so it is found from any folder."""
    if not names_file(method):
        return method
    path, name = _split(method)
    return f"{os.path.abspath(path)}:{name}"


def class_of_file(method: str) -> type[Method]:
    """The class that ``path/to/file.py:Class`` names; the file is run once.

    Raises:
        InputError: no such file or class, the file cannot be run, or the class is no method with a usable ``name``.
    """
    path, name = _split(method)
    if not path.is_file():
        raise InputError(f"method '{method}': there is no file {path}")
    module = _run(path.resolve())
    found = {key for key, value in vars(module).items() if _is_method(value)} - {"Method"}
    if name not in found:
        raise InputError(
            f"method '{method}': {path} has no class '{name}' derived from detkt.Method{suggestion(name, found)}; it "
            f"has: {', '.join(sorted(found)) or 'none'}"
        )
    return _checked(getattr(module, name), f"class {name} of {path}")


def offered() -> list[str]:
    """The names under which installed packages offer methods; none of them is imported for it."""
    return [point.name for point in _entry_points()]


def class_offered(name: str) -> type[Method]:
    """The class that an installed package offers as *name*.

    Raises:
        InputError: two packages offer one, it cannot be imported, or is no method of this name.
    """
    point, *others = [point for point in _entry_points() if point.name == name]
    where = _origin(point)
    if others:
        raise InputError(f"method '{name}' is offered by {where} and by {_origin(others[0])}; uninstall one of them")
    try:
        found = point.load()
    except Exception as error:
        raise InputError(f"{where} cannot be imported: {type(error).__name__}: {first_line(error)}") from error
    if not _is_method(found):
        raise InputError(f"{where} is no class derived from detkt.Method; mend the package's entry point '{name}'")
    if found.name != name:
        raise InputError(f"{where} is called '{found.name}'; name the package's entry point '{name}' so")
    return _checked(found, where)


@cache
def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=GROUP))


def _origin(point: EntryPoint) -> str:
    return f"{point.value} of the package {point.dist.name if point.dist else '?'}"


def _split(method: str) -> tuple[Path, str]:
    path, colon, name = method.rpartition(":")
    if not colon or not name:
        raise InputError(f"method '{method}' names a file but no class in it; write {path or method}:CLASS")
    return Path(path).expanduser(), name


@cache
def _run(path: Path) -> ModuleType:
    """The file as a module. Its name is its path, which no other module has."""
    spec = importlib.util.spec_from_file_location(str(path), path)
    assert spec is not None and spec.loader is not None, "the path ends in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module.__name__]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{path}, line {line}" if line else f"{path}"
        raise InputError(f"method file {where}: {type(error).__name__}: {first_line(error)}") from error
    return module


def _is_method(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Method)


def _checked(cls: type[Method], where: str) -> type[Method]:
    if not re.fullmatch(r"[\w-]+", cls.name):
        raise InputError(f"{where} has the name '{cls.name}'; set its attribute name to letters, digits, - and _")
    return cls
