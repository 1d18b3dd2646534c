"""What params.yaml names and code is found by: generators, encoders, metrics.

Each kind is a table of names and places, `name: "module:attribute"`. Ours stand below, a line each. An installed package adds
its own by entry point, without a change to any file here:

    [project.entry-points."tailforge.generators"]
    my_family = "my_package.my_module:MyFamily"

Nothing is imported before it is asked for by its name, so that settings are checked without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pipeline.errors import ConfigError


class Registry:
    """The things of one kind by name. `group` is that of the entry points, `noun` what an error calls one of them."""

    def __init__(self, group: str, noun: str, ours: Mapping[str, str]) -> None:
        self.group, self.noun, self.ours = group, noun, dict(ours)

    @cached_property
    def outside(self) -> Mapping[str, EntryPoint]:
        """Those of installed packages. Raises ConfigError for a name that is ours or that two packages have."""
        found: dict[str, EntryPoint] = {}
        for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
            if point.name in self.ours or point.name in found:
                raise ConfigError(
                    f"{self.noun} {point.name} of {_package(point)} is there twice",
                    expected="one of each name",
                    remedy=f"rename it, or uninstall {_package(point)}",
                )
            found[point.name] = point
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Ours in the order of the table, then those of other packages by name."""
        return (*self.ours, *self.outside)

    def place(self, name: str) -> str:
        """`module:attribute` of `name`. Raises ConfigError for an unknown one."""
        if name in self.ours:
            return self.ours[name]
        if name in self.outside:
            return self.outside[name].value
        raise ConfigError(f"{self.noun} {name!r}", expected=f"one of {', '.join(self.names)}")

    def origin(self, name: str) -> str:
        """`tailforge`, or the package that brings `name`, with its version."""
        return "tailforge" if name in self.ours else _package(self.outside[name])

    def load(self, name: str) -> Any:
        """What `name` stands for. Raises ConfigError for an unknown one, or one whose package lacks it."""
        module, _, attribute = self.place(name).partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            if name in self.ours:
                raise
            raise ConfigError(
                f"{self.noun} {name} of {self.origin(name)} cannot be imported: {error}",
                expected=self.place(name),
                remedy=f"install {self.origin(name).partition(' ')[0]} anew, or take {name} out of params.yaml",
            ) from error


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.module


GENERATORS = Registry(
    "tailforge.generators",
    "generator",
    {
        "naive": "pipeline.generators.naive:Naive",
        "vae": "pipeline.generators.vae:Vae",
        "normalizing_flow": "pipeline.generators.normalizing_flow:NormalizingFlow",
        "autoregressive": "pipeline.generators.autoregressive:Autoregressive",
        "energy_based": "pipeline.generators.energy_based:EnergyBased",
        "gan": "pipeline.generators.gan:Gan",
        "stylegan2": "pipeline.generators.stylegan2:StyleGan2",
        "diffusion": "pipeline.generators.diffusion:Diffusion",
        "flow_matching": "pipeline.generators.flow_matching:FlowMatching",
        "external": "pipeline.generators.external:External",
    },
)
