"""Families by name, imported when they are used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pipeline.config import FAMILIES, Params, Section, parse
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.generators.shared.base import GenerativeModel


def family(name: str) -> type[GenerativeModel]:
    """The class of the family `name`. Raises ConfigError for an unknown one."""
    if name not in FAMILIES:
        raise ConfigError(f"generator {name!r}", expected=f"one of {', '.join(FAMILIES)}")
    model: type[GenerativeModel] = import_module(f"pipeline.generators.{name}").Model
    return model


def settings(params: Params, name: str) -> Section:
    """The checked section of the family `name`. Raises ConfigError."""
    return parse(family(name).Config, dict(params.families[name]), name)
