"""Plain mappings to typed settings, with errors that name the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detkt.base.errors import InputError, first_line, suggestion_or_all

_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def wrong_value(schema: Any, key: str, value: Any, error: Exception) -> str:
    """What to say after a key of the dataclass *schema* whose *value* OmegaConf refused with *error*."""
    hint = get_type_hints(schema).get(key) if is_dataclass(schema) else None
    optional = isinstance(hint, UnionType) and NoneType in get_args(hint)
    kind = _KINDS.get(get_args(hint)[0] if optional else hint)
    if kind is None:
        return f": {first_line(error)}"
    return f" is {'empty' if value is None else repr(value)}: it must be {kind}{' or null' if optional else ''}"


def typed_settings(schema: type, values: Mapping[str, Any], section: str) -> Any:
    """An instance of the dataclass *schema* with *values* over its defaults.

    Raises:
        InputError: a key that *schema* does not have (with a suggestion, or all that it has), or a value of the wrong
            type; *section* is what the message puts before the key.
    """
    settings = OmegaConf.structured(schema)
    for key, value in values.items():
        if key not in settings:
            raise InputError(f"unknown key '{section}.{key}'{suggestion_or_all(key, settings)}")
        try:
            OmegaConf.update(settings, key, value)
        except OmegaConfBaseException as error:
            raise InputError(f"{section}.{key}{wrong_value(schema, key, value, error)}") from None
    return OmegaConf.to_object(settings)
