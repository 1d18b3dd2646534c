"""What params.yaml names and code is found by: generators, encoders, metrics.

Each kind is a table of names and places, `name: "module:attribute"`. Ours stand below, a line each. An installed package adds
its own by entry point, without a change to any file here:

    [project.entry-points."tailforge.generators"]
    my_family = "my_package.my_module:MyFamily"

Nothing is imported before it is asked for by its name, so that settings are checked without torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
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
            if not point.name.isidentifier():  # it names folders, stages and a section
                raise ConfigError(
                    f"{self.noun} {point.name!r} of {_package(point)}",
                    expected="a name of letters, digits and _",
                    remedy=f"rename it, or uninstall {_package(point)}",
                )
            found[point.name] = point
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Ours in the order of the table, then those of other packages by name."""
        return (*self.ours, *self.outside)

    def __contains__(self, name: object) -> bool:
        return name in self.ours or name in self.outside

    def expected(self, name: object) -> str:
        """What to say where `name` is none of them."""
        close = get_close_matches(str(name), self.names, n=1)
        return f"one of {', '.join(self.names)}{f' (did you mean {close[0]}?)' if close else ''}"

    def place(self, name: str) -> str:
        """`module:attribute` of `name`. Raises ConfigError for an unknown one."""
        if name in self.ours:
            return self.ours[name]
        if name in self.outside:
            return self.outside[name].value
        raise ConfigError(f"{self.noun} {name!r}", expected=self.expected(name))

    def origin(self, name: str) -> str:
        """`tailforge`, or the package that brings `name`, with its version."""
        return "tailforge" if name in self.ours else _package(self.outside[name])

    def code(self, name: str) -> str:
        """Hash of the source that defines `name`: of ours its module, of another package all modules and the version.

        Nothing of it is imported. Raises ConfigError for an unknown name, or one whose package is not there.
        """
        module, digest = self.place(name).partition(":")[0], hashlib.blake2b(digest_size=16)
        if name in self.ours:
            found: list[Path] = [Path(__file__).parents[1].joinpath(*module.split("."))]
        else:
            digest.update(self.origin(name).encode())
            spec = find_spec(module.partition(".")[0])
            if spec is None or not (spec.submodule_search_locations or spec.has_location):
                raise self._absent(name, f"there is no {module}")
            found = list(map(Path, spec.submodule_search_locations or [str(spec.origin)]))
        for place in found:
            alone = place if place.is_file() else place.with_suffix(".py")
            for file in [alone] if alone.is_file() else sorted(place.rglob("*.py")):
                text = file.read_bytes()
                digest.update(f"{file.relative_to(place.parent)} {len(text)}\n".encode() + text)
        return digest.hexdigest()

    def load(self, name: str) -> Any:
        """What `name` stands for. Raises ConfigError for an unknown one, or one whose package lacks it."""
        module, _, attribute = self.place(name).partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            if name in self.ours:
                raise
            raise self._absent(name, str(error)) from error

    def _absent(self, name: str, why: str) -> ConfigError:
        return ConfigError(
            f"{self.noun} {name} of {self.origin(name)} cannot be imported: {why}",
            expected=self.place(name),
            remedy=f"install {self.origin(name).partition(' ')[0]} anew, or take {name} out of params.yaml",
        )


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
        "compose": "pipeline.generators.compose:Compose",
        "external": "pipeline.generators.external:External",
    },
)

ENCODERS = Registry(
    "tailforge.encoders",
    "encoder",
    {
        "small": "pipeline.encoders.small:Small",
        "statistics": "pipeline.encoders.statistics:Statistics",
        "pixels": "pipeline.encoders.pixels:Pixels",
        "thumbnails": "pipeline.encoders.thumbnails:Thumbnails",
        "pretrained": "pipeline.encoders.pretrained:Pretrained",
    },
)

METRICS = Registry(
    "tailforge.metrics",
    "metric",
    {
        "balanced_accuracy": "pipeline.metrics.standard:BalancedAccuracy",
        "macro_f1": "pipeline.metrics.standard:MacroF1",
        "worst_class_recall": "pipeline.metrics.standard:WorstClassRecall",
        "average_precision": "pipeline.metrics.standard:AveragePrecision",
    },
)
