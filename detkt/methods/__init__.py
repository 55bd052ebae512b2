"""Distillation methods, one paper a file. ``available()`` lists them, ``build(parse("a+b"), ...)`` makes one.

Methods defined elsewhere are found by the name under which an installed package offers them, or as
``path/to/file.py:Class`` (:mod:`detkt.methods.outside`). A library call takes a subclass of :class:`Method`, too.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from detkt.base.errors import InputError
from detkt.base.settings import typed_settings
from detkt.knowledge import Spec
from detkt.methods import outside
from detkt.methods.base import LayerPair, Method, MethodConfig, choose
from detkt.methods.sum import Sum


@cache
def _classes() -> dict[str, type[Method]]:
    """Every named Method subclass defined by a file of this folder."""
    found = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, Method) and cls.name and cls.__module__ == module.__name__:
                found[cls.name] = cls
    return dict(sorted(found.items()))


def available() -> list[str]:
    """Names accepted by ``--method``, beside ``path/to/file.py:Class``; any two can be summed as ``a+b``."""
    return sorted({*_classes(), *outside.offered()})


def method_class(method: str | type[Method]) -> type[Method]:
    """The class called *method*; a class is returned as it is.

    Raises:
        InputError: there is none (with a suggestion), two have one name, or one from outside cannot be used.
    """
    if isinstance(method, type) and issubclass(method, Method):
        return method
    own, offered = _classes(), outside.offered()
    if outside.names_file(method):
        cls = outside.class_of_file(method)
        if cls.name in own or cls.name in offered:
            raise InputError(f"method '{method}' is called '{cls.name}', as another is: set its name to a new one")
        return cls
    if method not in offered:
        return own[choose(method, available(), "method")]
    cls = outside.class_offered(method)
    if method in own:
        raise InputError(f"method '{method}' is detkt's own, but {cls.__module__} is installed under that name, too")
    return cls


def absolute(method: str) -> str:
    """*method* with every ``path/to/file.py:Class`` in it from the root on."""
    return "+".join(outside.absolute(part.strip()) for part in method.split("+"))


def classes(method: str | type[Method]) -> list[type[Method]]:
    """The classes of ``a``, ``a+b`` or a class. InputError: an unknown method, or a sum that is none."""
    parts = method.split("+") if isinstance(method, str) else [method]
    found = [method_class(part.strip() if isinstance(part, str) else part) for part in parts]
    if len({cls.name for cls in found}) != len(found):
        raise InputError(f"method '{method}' names a method twice")
    if len(found) > 1 and any(cls.name == "none" for cls in found):
        raise InputError(f"method '{method}': 'none' adds nothing to a sum; leave it out")
    return found


def method_config(method: str | type[Method], settings: Mapping[str, Any] | None = None) -> MethodConfig:
    """The typed settings of one method: its preset's, then *settings* over them.

    Raises:
        InputError: unknown key (with a suggestion), unknown preset, a value of the wrong type, a number that is not
            finite, or a negative weight.
    """
    cls = method_class(method)
    name, settings = cls.name, {} if settings is None else settings
    if not isinstance(settings, Mapping):
        raise InputError(f"methods.{name} must hold 'key: value' settings, got {settings!r}")
    preset = choose(settings.get("preset") or "default", cls.presets, f"methods.{name}.preset")
    config = typed_settings(cls.Config, {**cls.presets[preset], **settings}, f"methods.{name}")
    for key, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"methods.{name}.{key} is {value}: it must be a finite number")
        if key == "weight" and isinstance(value, float) and value < 0:
            raise InputError(f"methods.{name}.weight is {value}: it must be 0 or more")
    return config


def parse(
    method: str | type[Method], settings: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[type[Method], MethodConfig]:
    """``a``, ``a+b`` or a class -> the configs of its parts by class; *settings* holds a section a method.

    Raises:
        InputError: unknown method or section, one named twice, or bad settings (see :func:`method_config`).
    """
    found, settings = classes(method), settings or {}
    for section in settings:
        choose(section, dict.fromkeys([*available(), *(cls.name for cls in found)]), "method in the settings")
    return {cls: method_config(cls, settings.get(cls.name)) for cls in found}


def required_layers(configs: Mapping[type[Method], MethodConfig]) -> list[LayerPair]:
    """The layers that the methods of *configs* read beside the backbone outputs."""
    return list(dict.fromkeys(pair for cls, config in configs.items() for pair in cls.layer_pairs(config)))


def build(configs: Mapping[type[Method], MethodConfig], student: Spec, teacher: Spec | None) -> Method:
    """The method of *configs* (from :func:`parse`) for two probed networks; several are summed."""
    methods = [cls(config, student, teacher) for cls, config in configs.items()]
    return methods[0] if len(methods) == 1 else Sum(methods)


__all__ = [
    "Method",
    "MethodConfig",
    "absolute",
    "available",
    "build",
    "choose",
    "classes",
    "method_class",
    "method_config",
    "parse",
    "required_layers",
]
