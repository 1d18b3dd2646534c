"""Prepared: the output of the stage `prepare`, and the only way to open it.

train.parquet  val.parquet  test.parquet    real rows (Manifest)
reserve.parquet                             real rows that scarcity left out (Manifest), often none
external.parquet                            synthetic rows made elsewhere (Manifest), often none
dataset.json                                classes in order, image_size, channels, counts, images set aside
sides.parquet                               the side of each real row, now and before (pipeline/datasets/past.py)
inputs.json                                 per family, the hash of its outside input, or null
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.core.manifest import Manifest
from pipeline.errors import DataError


@dataclass(frozen=True)
class Prepared:
    """The folder data/prepared."""

    folder: Path

    @cached_property
    def info(self) -> dict[str, Any]:
        """The contents of dataset.json. Raises DataError if it is missing or torn."""
        try:
            return dict(json.loads((self.folder / "dataset.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{self.folder}/dataset.json: {error}", remedy="run the stage prepare") from error

    def input_of(self, family: str) -> str | None:
        """Hash of what `family` reads besides the train rows; None if it reads nothing else."""
        value: str | None = json.loads((self.folder / "inputs.json").read_text(encoding="utf-8"))[family]
        return value

    @property
    def classes(self) -> list[str]:
        """Class names; a target is an index into them."""
        return list(self.info["classes"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of every image."""
        size = int(self.info["image_size"])
        return int(self.info["channels"]), size, size

    def train(self) -> Manifest:
        """The real rows that everything is fitted on."""
        return Manifest.read(self.folder / "train.parquet")

    def val(self) -> Manifest:
        """The real rows on which choices are made."""
        return Manifest.read(self.folder / "val.parquet")

    def test(self) -> Manifest:
        """The real rows that only the stage `evaluate` opens, once."""
        return Manifest.read(self.folder / "test.parquet")

    def reserve(self) -> Manifest:
        """Real rows that scarcity left out, of groups that are in neither val nor test. Only the learning curve uses them.

        Their split is `reserve`, so every other fit refuses them.
        """
        return Manifest.read(self.folder / "reserve.parquet")

    def external(self) -> Manifest:
        """Synthetic rows that were made elsewhere."""
        return Manifest.read(self.folder / "external.parquet")
