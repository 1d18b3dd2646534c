"""The bake-off's table: a row per data set and family, as CSV, as Markdown, in a terminal; and pictures of samples."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core import work
from pipeline.metrics.registry import installed, primary, title
from pipeline.report import numbers
from pipeline.runtime import costs
from tailforge import tables

Row = Mapping[str, str]

CLOSENESS = (
    "kid", "mmd", "frechet", "sliced_wasserstein", "precision", "recall", "density", "coverage", "c2st", "near_copies",
)  # fmt: skip
COLUMNS = (
    "dataset", "family", "metric", "cas", "cas_low", "cas_high", "bayes", "bits_per_dim", "likelihood", *CLOSENESS, "accepted",
    "parameters", "fit_seconds", "images_per_second", "peak_memory_mb", "machine", "date", "versions", "failed",
)  # fmt: skip
SHOWN = {
    "family": "family", "cas": "CAS", "bayes": "Bayes", "bits_per_dim": "bits/dim", "kid": "KID", "mmd": "MMD",
    "frechet": "Fréchet", "sliced_wasserstein": "sliced W", "precision": "precision", "recall": "recall", "density": "density",
    "coverage": "coverage", "near_copies": "near copies", "accepted": "accepted", "parameters": "numbers stored",
    "fit_seconds": "fit, s", "images_per_second": "images/s", "peak_memory_mb": "memory, MB",
}  # fmt: skip
EACH, REAL = 12, 4  # images of a class in a picture, and real ones before them

PREAMBLE = """# Bake-off of the families of generators

Written by `tailforge bakeoff` (`make bakeoff`, `make bakeoff-mnist`); all figures: [bakeoff.csv](bakeoff.csv). Each family
learned from the same train images with its settings in params.yaml and made as many images of each class. They are measured
before any check, against real *validation* images: no test image was opened.

CAS is the classification accuracy score: the metric named below, on real images, of a classifier that saw synthetic images
alone, mean over seeds with its interval; families stand in its order. Bayes: the same metric of the model's own
p(class | image). Bits/dim: of real images under the model, a star marks a bound. KID, MMD, Fréchet and sliced Wasserstein
distance: 0 is no difference; the last two are above it for few images. [Generators](generators.md) says what each family is.

Each family was fitted once, and intervals do not know how another fit would do; the bits and Bayes accuracy of `diffusion` and
`flow_matching` carry the error of their noise and solver too. The families' settings were chosen on the validation images of
the digits, and some on those of MNIST, so their CAS is a little flattered there. CAS rewards copies: read it beside the near
copies.
"""


def row(dataset: str, family: str, place: Path, failed: str | None) -> dict[str, str]:
    """The row of a family from its measures.json in the project `place`, or one that says why it failed."""
    cells = dict.fromkeys(COLUMNS, "") | {"dataset": dataset, "family": family, "failed": failed or ""}
    if failed is not None:
        return cells
    found = json.loads((place / "data/measures" / family / "measures.json").read_text(encoding="utf-8"))
    found |= costs.read(*(place / "data/costs" / verb / f"{family}.json" for verb in ("fit", "sample")))
    values: dict[str, Any] = {name: found.get(name) for name in COLUMNS if name in found}
    values |= {name: (found[name] or {}).get("estimate") for name in ("cas", "bayes", "bits_per_dim")}
    values |= {f"cas_{end}": (found["cas"] or {}).get(end) for end in ("low", "high")}
    values |= {name: found["closeness"].get(name, {}).get("estimate") for name in CLOSENESS}
    values["versions"] = " ".join(f"{name} {version}" for name, version in sorted(found["versions"].items()))
    return cells | {name: _text(value) for name, value in values.items()}


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV that `write` wrote; none where there is no file."""
    if not file.is_file():
        return []
    with open(file, encoding="utf-8", newline="") as stream:
        return [dict.fromkeys(COLUMNS, "") | row for row in csv.DictReader(stream)]


def write(rows: Sequence[Row], out: Path) -> None:
    """bakeoff.csv and bakeoff.md in folder `out`: these rows, and those of other families and data sets that were there."""
    file = out / "bakeoff.csv"
    new = {(row["dataset"], row["family"]) for row in rows}
    kept = [row for row in read(file) if (row["dataset"], row["family"]) not in new]
    every = sorted([*kept, *rows], key=merit, reverse=True)
    every.sort(key=lambda row: row["dataset"])
    work.write(file, _csv(every))
    work.write(out / "bakeoff.md", _page(every))


def merit(row: Row) -> float:
    """The CAS of a row, negated where low is good; a failed family comes last."""
    if not row["cas"]:
        return -math.inf
    metric = installed(row["metric"] or primary({}))  # rows of older versions name none
    return metric.merit(float(row["cas"])) if metric else float(row["cas"])


def _csv(rows: Sequence[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _cells(row: Row) -> list[str]:
    """The shown columns as they are printed: CAS with its interval, a star at a bound, three digits elsewhere."""
    cells = []
    for name in SHOWN:
        value = row[name]
        if name == "family" or not value:
            cells.append(value or "–")
        elif name == "cas":
            ends = (float(value), float(row["cas_low"]), float(row["cas_high"]))
            cells.append(numbers.score(dict(zip(("estimate", "low", "high"), ends, strict=True))))
        elif name == "bits_per_dim" and row["likelihood"] == "bound":
            cells.append(f"{float(value):.2f}*")
        else:
            number = float(value)
            cells.append(f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}")
    return cells


def table(rows: Sequence[Row]) -> str:
    """Rows in columns, for a terminal."""
    lines = [list(SHOWN.values()), *(_cells(row) for row in rows if not row["failed"])]
    return "\n".join([tables.table(lines), *(f"{row['family']} failed: {row['failed']}" for row in rows if row["failed"])])


def _page(rows: Sequence[Row]) -> str:
    """The tables as Markdown, one per data set."""
    parts = [PREAMBLE]
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        mine = [row for row in rows if row["dataset"] == dataset]
        done = [row for row in mine if not row["failed"]]
        parts.append(f"## {dataset}\n")
        if done:
            names = dict.fromkeys(title(row["metric"] or primary({})) for row in done)
            parts.append(f"CAS and Bayes: {', '.join(names)}.\n")
            header = [*SHOWN.values()]
            lines = [header, ["---"] * len(header), *(_cells(row) for row in done)]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
            pictures = [f"[{row['family']}](bakeoff/{dataset}-{row['family']}.png)" for row in done]
            parts.append(f"Samples, {REAL} real images before {EACH} made ones a class: {', '.join(pictures)}.\n")
            made = dict.fromkeys(f"{row['machine']}, {row['date']}, {row['versions']}" for row in done)
            parts.append("".join(f"- {line}\n" for line in made))
            control = next((merit(row) for row in done if row["family"] == "naive"), -math.inf)
            if worse := [row["family"] for row in done if merit(row) < control]:
                parts.append(f"Worse than the control `naive` in CAS: {', '.join(worse)}.\n")
        parts += [f"`{row['family']}` could not be measured: {row['failed']}\n" for row in mine if row["failed"]]
    return "\n".join(parts)


def picture(place: Path, family: str, file: Path) -> None:
    """A PNG with a row per class: REAL train images, a gap, EACH images of the pool."""
    import numpy as np
    from PIL import Image

    from pipeline.core.manifest import Manifest
    from pipeline.core.prepared import Prepared

    data = Prepared(place / "data/prepared")
    c, h, w = data.shape
    train, pool = data.train(), Manifest.read(place / "data/pools" / family)
    rows = []
    for label in data.classes[:20]:
        tiles = np.full((REAL + 1 + EACH, c, h, w), 255, np.uint8)
        for manifest, start, n in ((train, 0, REAL), (pool, REAL + 1, EACH)):
            own = manifest.take(np.flatnonzero(manifest.column("label") == label)[:n])
            if len(own):
                tiles[start : start + len(own)] = own.images().numpy()
        rows.append(tiles)
    grid = np.stack(rows).transpose(0, 3, 1, 4, 2).reshape(len(rows) * h, -1, c)
    grid = grid.repeat(max(1, 24 // h), 0).repeat(max(1, 24 // h), 1)  # small images enlarged
    buffer = io.BytesIO()
    Image.fromarray(grid[..., 0] if c == 1 else grid).save(buffer, "PNG", optimize=True)
    work.write(file, buffer.getvalue())
