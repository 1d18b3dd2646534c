"""`python -m benchmarks.rejected [DATASET …]`: which share of images the gate rejects that are wrong in a known way.

Of the real train rows of a data set two thirds are what judges and thresholds know of, and the others play new images: as they
are, which should pass, and spoilt. Copies are of the two thirds. The table goes into docs/validation.md, between the marks.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import marks
from benchmarks.command import errors_in_a_line
from benchmarks.prepared import prepared
from pipeline import config
from pipeline.core.images import at_resolution, to_float, to_uint8
from pipeline.core.prepared import Prepared
from pipeline.core.seeds import numpy_rng
from pipeline.encoders.base import LEVELS
from pipeline.encoders.judges import Judges
from pipeline.encoders.pixels import Pixels
from pipeline.validation.checks import Checks

PAGE, MARK = Path("docs/validation.md"), "rejected"
SMALL = {"encoder.name": "none", "judges.encoder": "small"}
ENCODED = {"encoder.name": "tf_efficientnet_lite0.in1k", "judges.encoder": "pretrained"}


@dataclass(frozen=True)
class Case:
    """A column of the table: a data set and the settings that differ from those that `tailforge init` proposes."""

    dataset: str
    changes: Mapping[str, object]


CASES = {
    "digits": Case("digits", {}),
    "mnist": Case("mnist", {}),
    "blood cells": Case("wbc_bccd", {**SMALL, "data.image_size": 64}),
    "blood cells, encoder": Case("wbc_bccd", {**ENCODED, "data.image_size": 64}),
    "waste, encoder": Case("trashnet", {**ENCODED, "data.image_size": 64}),
}


def _affine(images: Tensor, degrees: float = 0.0, side: float = 1.0) -> Tensor:
    """Turned by so many degrees, or the corner of so many sides, brought to the whole; the border's pixels continue."""
    cos, sin = np.cos(np.deg2rad(degrees)) * side, np.sin(np.deg2rad(degrees)) * side
    theta = torch.tensor([[cos, -sin, side - 1], [sin, cos, side - 1]], dtype=torch.float32)
    grid = F.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return to_uint8(F.grid_sample(to_float(images), grid, padding_mode="border", align_corners=False))


def _noisy(images: Tensor) -> Tensor:
    noise = torch.from_numpy(numpy_rng(0, "noise").normal(0, 6, images.shape))
    return (images + noise).clamp(0, 255).round().byte()


Spoil = Callable[[Tensor], Tensor]  # uint8 (n, c, h, w) -> the same
COPIES: Mapping[str, Spoil] = {
    "copies": torch.clone,
    "– with noise": _noisy,
    "– with another contrast": lambda x: (x * 0.7 + 20).round().byte(),
    "– mirrored": lambda x: x.flip(3),
    "– turned by 90 degrees": lambda x: torch.rot90(x, 1, (2, 3)),
    "– turned by 12 degrees": lambda x: _affine(x, degrees=12),
    "– moved by a sixteenth of the side": lambda x: x.roll(max(1, x.shape[-1] // 16), 3),
    "– a corner of 85 % of the side": lambda x: _affine(x, side=0.85),
}
SPOILT: Mapping[str, Spoil] = {
    "new real images": torch.clone,
    "noise": lambda x: torch.from_numpy(numpy_rng(0, "levels").integers(0, 256, x.shape, dtype=np.uint8)),
    "permuted pixels": lambda x: x.flatten(2)[:, :, numpy_rng(0, "pixels").permutation(x[0, 0].numel())].view(x.shape),
    "inverted": lambda x: 255 - x,
    "blurred, to a quarter of the side": lambda x: at_resolution(x, x.shape[-1] // 4),
    "mean of two random images": lambda x: ((x.int() + x[numpy_rng(0, "pairs").permutation(len(x))].int()) // 2).byte(),
    "blank": lambda x: torch.full_like(x, 77),
}


def measured(case: Case) -> dict[str, float]:
    """Share rejected, by what was done to the images."""
    with prepared(case.dataset, case.changes) as (params, data):
        return _shares(params, data)


def _shares(params: config.Params, data: Prepared) -> dict[str, float]:
    rows, classes = data.train(), data.classes
    targets, known = rows.targets(classes).numpy(), np.zeros(len(rows), bool)
    for c in range(len(classes)):
        own = numpy_rng(params.seed, "known", c).permutation(np.flatnonzero(targets == c))
        known[own[: -(-2 * len(own) // 3)]] = True
    train, new = (rows.take(np.flatnonzero(mask)) for mask in (known, ~known))
    folder = Path("judges")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    judges = Judges.fit(
        train, classes, settings=params.judges, encoder=params.encoder, flips=params.data.flips, seed=params.seed, folder=folder
    )
    near = Pixels(judges.shape, LEVELS)
    checks = Checks(train, judges, near, classes, settings=params.validate_, seed=params.seed)

    def rejected(images: Tensor, labels: np.ndarray) -> float:
        seen = checks.measure(images.contiguous(), labels)
        passed = [band.passes(seen.values[name], labels) for name, band in checks.bands.items() if name in seen.values]
        return 1 - float(np.all(passed, axis=0).mean())

    images, labels = new.images(), new.targets(classes).numpy()
    found = {what: rejected(spoil(images), labels) for what, spoil in SPOILT.items()}
    wrong = (labels + numpy_rng(0, "wrong").integers(1, len(classes), len(labels))) % len(classes)
    found["wrong label"] = rejected(images, wrong)
    copies, own = train.images(), train.targets(classes).numpy()
    return found | {what: rejected(spoil(copies), own) for what, spoil in COPIES.items()}


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """The lines between the marks."""
    lines = [f"| images | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for what in next(iter(found.values())):
        lines.append(f"| {what} | {' | '.join(f'{of[what]:.2f}' for of in found.values())} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the cases whose data sets are named, or all, and write the table for all."""
    parser = argparse.ArgumentParser(description="Share of spoilt images that the gate rejects.")
    parser.add_argument("datasets", nargs="*", metavar="DATASET", help="all, if none")
    given = parser.parse_args()
    found = dict[str, dict[str, float]]()
    with errors_in_a_line():
        for name, case in CASES.items():
            if not given.datasets or case.dataset in given.datasets:
                found[name] = measured(case)
        if given.datasets:
            print(table(found))
        else:
            marks.replace(PAGE, MARK, table(found))


if __name__ == "__main__":
    main()
