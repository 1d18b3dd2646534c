"""`tailforge regions`: train images with what is known of where their objects lie, on one sheet for a person to look at.

A line of images for each class, the rarest class first. Which images of a class are shown depends on their sample_ids alone, so
that nobody chose them.
"""

from __future__ import annotations

import heapq
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from pipeline.core import work
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.core.seeds import derive
from pipeline.errors import DataError, InputError
from pipeline.report import album
from tailforge import tables

COLOURS = {"given": ("green", "#00c853"), "box": ("orange", "#ff9100"), "found": ("blue", "#2979ff")}  # by origin
CLASSES = 24  # on one sheet
SIDE = 224  # pixels of an image on the sheet: small ones are enlarged by a whole number to as much or a little more
LINE, GAP, TEXT = 2, 4, 24  # pixels: of an outline, around an image, height of a line of text
PAPER = "#d0d0d0"  # seen beside white images and black ones


def run(folder: Path, out: Path, classes: Sequence[str], per_class: int) -> None:
    """Write the sheet to the file `out` and print how many train images of each class have a region.

    Raises InputError for a class that is not there or a file that is no PNG, DataError where no train image has a region.
    """
    if out.suffix.lower() != ".png" or out.is_dir():
        raise InputError(f"--out {out}", expected="a file *.png")
    data = Prepared(folder / "data/prepared")
    if unknown := [name for name in classes if name not in data.classes]:
        raise InputError(f"--class {', '.join(unknown)}", expected=f"classes among {', '.join(data.classes)}")
    file = data.folder / "train.parquet"
    rows = Manifest.read(file, columns=["sample_id", "label", "split", "region_origin"])
    rows.require_train("tailforge regions")
    counts: dict[str, Counter[str | None]] = {name: Counter() for name in data.classes}
    known: dict[str, list[str]] = {name: [] for name in data.classes}
    columns = (rows.table[name].to_pylist() for name in ("sample_id", "label", "region_origin"))
    for sample_id, label, origin in zip(*columns, strict=True):
        counts[label][origin] += 1
        if origin:
            known[label].append(sample_id)
    wanted = list(dict.fromkeys(classes)) or data.classes
    if not any(known[name] for name in wanted):
        raise DataError(
            f"{file}: no train image of {', '.join(classes) or 'any class'} has a region",
            expected="masks of objects, or photographs with annotated objects",
            remedy="set data.regions, or data.source to coco, voc, yolo or labelme, and run `tailforge run`",
        )
    lines = sorted((name for name in wanted if known[name]), key=lambda name: counts[name].total())
    shown = {name: _drawn(known[name], per_class) for name in lines[:CLASSES]}
    work.write(out, _sheet(file, shown, {name: f"{name}: {_told(counts[name])}" for name in shown}))
    print(tables.table([["class", "images", *COLOURS, "none"], *(_line(name, counts[name]) for name in wanted)]))
    print(", ".join(f"{colour}: {origin}" for origin, (colour, _) in COLOURS.items()))
    beyond = f"; classes left out: {len(lines) - CLASSES} (name them with --class)" if len(lines) > CLASSES else ""
    print(f"{out} shows {sum(map(len, shown.values()))} images{beyond}")


def _line(name: str, counts: Mapping[str | None, int]) -> list[str]:
    return [name, *map(str, (sum(counts.values()), *(counts[origin] for origin in COLOURS), counts[None]))]


def _told(counts: Counter[str | None]) -> str:
    return ", ".join(f"{counts[origin]} {origin or 'none'}" for origin in (*COLOURS, None) if counts[origin])


def _drawn(sample_ids: Sequence[str], n: int) -> list[str]:
    """n of them at random, in a way that depends on the names alone."""
    return heapq.nsmallest(n, sample_ids, key=lambda sample_id: derive(0, "regions", sample_id))


def _sheet(file: Path, shown: Mapping[str, Sequence[str]], told: Mapping[str, str]) -> bytes:
    """A PNG of the images `shown` of each class, each line below what is `told` of its class. Raises DataError."""
    wanted = {sample_id for names in shown.values() for sample_id in names}
    batches = album.batches([file], ["sample_id", "image", "region", "region_origin"], 64)
    tiles = {row["sample_id"]: _tile(row) for part in album.among(batches, wanted) for row in part}
    side = next(iter(tiles.values())).width
    font = ImageFont.load_default(TEXT - 4)
    width = max(side * max(map(len, shown.values())), *(2 * GAP + int(font.getlength(line)) for line in told.values()))
    sheet = Image.new("RGB", (width, (TEXT + side) * len(shown)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (name, sample_ids) in enumerate(shown.items()):
        top = i * (TEXT + side)
        draw.text((GAP, top), told[name], "black", font)
        for j, sample_id in enumerate(sample_ids):
            sheet.paste(tiles[sample_id], (j * side, top + TEXT))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _tile(row: Mapping[str, Any]) -> Image.Image:
    """An image of a manifest with a line around its region: outside of it, so that a small object is seen too."""
    try:
        image, region = (Image.open(io.BytesIO(row[name])).convert(mode) for name, mode in (("image", "RGB"), ("region", "L")))
    except (OSError, SyntaxError, ValueError, TypeError) as error:  # what Pillow raises on torn bytes
        raise DataError(
            f"{row['sample_id']}: {error}", expected="PNGs", remedy="run `dvc repro` to write them again"
        ) from error
    small = image.width < SIDE
    side = image.width * -(-SIDE // image.width) if small else SIDE
    kind = Image.Resampling.NEAREST if small else Image.Resampling.BOX
    tile, inside = (Image.new(mode, (side + 2 * GAP,) * 2, paper) for mode, paper in (("RGB", PAPER), ("L", 0)))
    tile.paste(image.resize((side, side), kind), (GAP, GAP))
    inside.paste(region.resize((side, side), kind).point(lambda level: 255 * (level >= 128)), (GAP, GAP))
    line = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(2 * LINE + 1)), inside)
    tile.paste(COLOURS[row["region_origin"]][1], mask=line)
    return tile
