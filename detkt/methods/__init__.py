"""Distillation methods, one paper a file. ``available()`` lists them, ``build("a+b", ...)`` makes one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detkt.errors import InputError, suggestion
from detkt.knowledge import Spec
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
    """Names accepted by ``--method``; any two can be summed as ``a+b``."""
    return list(_classes())


def method_class(name: str) -> type[Method]:
    """The class called *name*; InputError with a suggestion where there is none."""
    return _classes()[choose(name, available(), "method")]


def method_config(name: str, settings: Mapping[str, Any] | None = None) -> MethodConfig:
    """The typed settings of one method: its preset's, then *settings* over them.

    Raises:
        InputError: unknown key (with a suggestion), unknown preset, or a value of the wrong type.
    """
    cls, settings = method_class(name), dict(settings or {})
    preset = choose(settings.get("preset") or "default", cls.presets, f"preset of method '{name}'")
    config = OmegaConf.structured(cls.Config)
    for key, value in {**cls.presets[preset], **settings}.items():
        if key not in config:
            raise InputError(f"unknown key 'methods.{name}.{key}'{suggestion(key, config)}")
        try:
            config[key] = value
        except OmegaConfBaseException as error:
            raise InputError(f"methods.{name}.{key}: {str(error).splitlines()[0]}") from None
    return OmegaConf.to_object(config)


def parse(name: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, MethodConfig]:
    """``a`` or ``a+b`` -> the configs of its parts by name; *settings* holds a section a method."""
    parts = [part.strip() for part in name.split("+")]
    if len(set(parts)) != len(parts):
        raise InputError(f"method '{name}' names a method twice")
    if len(parts) > 1 and "none" in parts:
        raise InputError(f"method '{name}': 'none' adds nothing to a sum; leave it out")
    return {part: method_config(part, (settings or {}).get(part)) for part in parts}


def required_layers(configs: Mapping[str, MethodConfig]) -> list[LayerPair]:
    """The layers that the methods of *configs* read beside the backbone outputs."""
    pairs = [pair for name, config in configs.items() for pair in method_class(name).layer_pairs(config)]
    return list(dict.fromkeys(pairs))


def build(configs: Mapping[str, MethodConfig], student: Spec, teacher: Spec | None) -> Method:
    """The method of *configs* (from :func:`parse`) for two probed networks; several are summed."""
    methods = [method_class(name)(config, student, teacher) for name, config in configs.items()]
    return methods[0] if len(methods) == 1 else Sum(methods)


__all__ = ["Method", "MethodConfig", "available", "build", "choose", "method_class", "method_config", "parse", "required_layers"]
