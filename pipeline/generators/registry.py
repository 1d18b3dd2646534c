"""Families by name, imported when they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config import Params, Section, parse
from pipeline.registry import GENERATORS

if TYPE_CHECKING:
    from pipeline.generators.shared.base import GenerativeModel


def family(name: str) -> type[GenerativeModel]:
    """The class of the family `name`. Raises ConfigError for an unknown one."""
    model: type[GenerativeModel] = GENERATORS.load(name)
    return model


def settings(params: Params, name: str) -> Section:
    """The checked section of the family `name`. Raises ConfigError."""
    return parse(family(name).Config, dict(params.families[name]), name)
