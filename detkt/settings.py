"""Plain mappings to typed settings, with errors that name the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detkt.errors import InputError, suggestion


def typed_settings(schema: type, values: Mapping[str, Any], section: str) -> Any:
    """An instance of the dataclass *schema* with *values* over its defaults.

    Raises:
        InputError: a key that *schema* does not have (with a suggestion), or a value of the wrong type; *section* is
            what the message puts before the key.
    """
    settings = OmegaConf.structured(schema)
    for key, value in values.items():
        if key not in settings:
            raise InputError(f"unknown key '{section}.{key}'{suggestion(key, settings)}")
        try:
            OmegaConf.update(settings, key, value)
        except OmegaConfBaseException as error:
            raise InputError(f"{section}.{key}: {str(error).splitlines()[0]}") from None
    return OmegaConf.to_object(settings)
