"""Families by name, imported when they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config import Params, Section, parse
from pipeline.registry import GENERATORS

if TYPE_CHECKING:
    from pipeline.generators.shared.base import GenerativeModel


def family(name: str) -> type[GenerativeModel]:
    """The class of the family `name`. Raises ConfigError for an unknown one, or one whose package lacks it."""
    model: type[GenerativeModel] = GENERATORS.load(name)
    return model


def settings(params: Params, name: str) -> Section:
    """The section of the family `name`, checked, what params.yaml does not say at its default. Raises ConfigError."""
    return parse(family(name).Config, dict(params.families.get(name, {})), name)


def resolved(params: Params) -> Params:
    """`params` with the whole section of each family in use, and no other. Raises ConfigError."""
    families = {name: settings(params, name).model_dump(mode="json") for name in dict.fromkeys(params.generators)}
    return params.model_copy(update={"families": families})
