"""Metrics by name. The name of the one that decides stands in params.yaml and in what was written under it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigError
from pipeline.metrics.base import Metric
from pipeline.metrics.standard import BalancedAccuracy
from pipeline.registry import METRICS


def named(name: str) -> Metric:
    """The metric of this name. Raises ConfigError where there is none, or where what a package registers is none."""
    kind = METRICS.load(name)
    if not (isinstance(kind, type) and issubclass(kind, Metric) and kind.name == name):
        raise ConfigError(
            f"metric {name} of {METRICS.origin(name)} is {METRICS.place(name)}",
            expected=f"a subclass of pipeline.metrics.Metric whose name is {name}",
        )
    return kind()


def primary(metrics: Mapping[str, Any]) -> str:
    """The name of the metric that decided the results in a metrics.json or release.json.

    It stands there where it is not balanced accuracy, which alone decided before others could.
    """
    return str(metrics.get("metric", BalancedAccuracy.name))


def installed(name: str) -> Metric | None:
    """The metric of this name; None where the package that brought it is not here. Raises ConfigError as `named` does."""
    return named(name) if name in METRICS.ours or name in METRICS.outside else None


def title(name: str) -> str:
    """What a sentence calls a metric: its title, or its name where it is not installed."""
    known = installed(name)
    return known.title if known else name.replace("_", " ")
