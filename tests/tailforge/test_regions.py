"""The sheet of `tailforge regions`: which images it shows, where their outlines are, what is counted, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageColor
from typer.testing import CliRunner

from helpers.annotated import coco_file, photograph, written
from helpers.making import params, picture
from pipeline.core import images, work
from pipeline.core.manifest import Manifest
from pipeline.errors import DataError, InputError, LeakError
from pipeline.stages import prepare
from tailforge import regions
from tailforge.cli import app

SIZE = 16
SIDE = 14 * SIZE + 2 * regions.GAP  # of a tile: enlarged 14 times
WHITE = np.full((1, SIZE, SIZE), 255, np.uint8)


def project(folder: Path, split: str = "train", **classes: list[str | None]) -> Path:
    """A prepared project whose train images of each class have regions of these origins: a square of 4 pixels at (4, 8)."""
    mask = np.zeros((1, SIZE, SIZE), np.uint8)
    mask[:, 8:12, 4:8] = 255
    labels = [(name, origin) for name, origins in classes.items() for origin in origins]
    n = len(labels)
    manifest = Manifest.from_columns(
        sample_id=[f"{name}/{i}" for i, (name, _) in enumerate(labels)], image=[images.encode_png(WHITE)] * n,
        label=[name for name, _ in labels], split=[split] * n, group=[""] * n, origin=["real"] * n, generator=[None] * n,
        seed=[None] * n, sources=[[]] * n, pixel_hash=[""] * n,
        region=[origin and images.encode_png(mask) for _, origin in labels], region_origin=[origin for _, origin in labels],
    )  # fmt: skip
    work.write_json(folder / "data/prepared/dataset.json", {"classes": list(classes), "image_size": SIZE, "channels": 1})
    pq.write_table(manifest.table, folder / "data/prepared/train.parquet")
    return folder


def sheet(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def colours(pixels: np.ndarray) -> set[str]:
    """The origins whose colours are there."""
    found = {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()}
    return {origin for origin, (_, colour) in regions.COLOURS.items() if ImageColor.getrgb(colour) in found}


def test_outlines_of_each_origin_lie_around_the_object(tmp_path, capsys):
    project(tmp_path, few=["found"], many=["given", "given", None], odd=["box", "box", "box", "box"], none=[None])
    regions.run(tmp_path, tmp_path / "out/sheet.png", (), 2)
    found = sheet(tmp_path / "out/sheet.png")
    lines = [found[i * (regions.TEXT + SIDE) + regions.TEXT :][:SIDE] for i in range(3)]
    assert found.shape == (3 * (regions.TEXT + SIDE), 2 * SIDE, 3)
    assert [colours(line) for line in lines] == [{"found"}, {"given"}, {"box"}]  # the rarest class first
    top, left = regions.GAP + 14 * 8, regions.GAP + 14 * 4
    coloured = (lines[1][:, :SIDE] == ImageColor.getrgb(regions.COLOURS["given"][1])).all(2)
    around = np.zeros((SIDE, SIDE), bool)
    around[top - 2 : top + 58, left - 2 : left + 58] = True
    around[top : top + 56, left : left + 56] = False
    assert (coloured == around).all()
    assert capsys.readouterr().out.splitlines() == [
        "class  images  given  box  found  none",
        "few    1       0      0    1      0",
        "many   3       2      0    0      1",
        "odd    4       0      4    0      0",
        "none   1       0      0    0      1",
        "green: given, orange: box, blue: found",
        f"{tmp_path}/out/sheet.png shows 5 images",
    ]


def test_classes_that_are_named_and_classes_that_are_too_many(tmp_path, capsys, monkeypatch):
    project(tmp_path, a=["box"] * 3, b=["box"] * 2, c=["box"])
    regions.run(tmp_path, tmp_path / "x.png", ["b", "b"], 8)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "b      2       0      2    0      0", "green: given, orange: box, blue: found", f"{tmp_path}/x.png shows 2 images"
    ]  # fmt: skip
    monkeypatch.setattr(regions, "CLASSES", 2)
    regions.run(tmp_path, tmp_path / "x.png", (), 8)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"{tmp_path}/x.png shows 3 images; classes left out: 1 (name them with --class)"


def test_a_region_at_the_edge_and_a_large_image():
    large = np.full((3, 300, 300), 255, np.uint8)
    row = {"sample_id": "a", "image": images.encode_png(large), "region": images.encode_png(large[:1]), "region_origin": "box"}
    tile = np.asarray(regions._tile(row))
    assert tile.shape[0] == regions.SIDE + 2 * regions.GAP and colours(tile) == {"box"}
    assert colours(tile[regions.GAP : -regions.GAP, regions.GAP : -regions.GAP]) == set()


def test_the_command_on_a_set_of_outlines(tmp_path, monkeypatch):
    values = coco_file({f"{i}.png": [("ab"[i % 2], 4, 6, 12, 14)] for i in range(24)})
    for one in values["annotations"]:
        one["segmentation"] = [[4, 6, 12, 6, 12, 14]]
    for i in range(24):
        photograph(tmp_path / f"set/{i}.png", picture(i, 40).crop((0, 0, 40, 30)))
    written(tmp_path / "set/a.json", values)
    prepare.run(params(data={"source": "coco", "path": str(tmp_path / "set"), "image_size": 8}), tmp_path / "data/prepared")
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(app, ["regions", "--per-class", "3", "--class", "a", "--class", "b"], catch_exceptions=False)
    assert said.exit_code == 0 and said.output.endswith("regions.png shows 6 images\n")
    assert colours(sheet(tmp_path / "regions.png")) == {"given"}


def test_what_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data/prepared.*dvc repro"):
        regions.run(tmp_path, tmp_path / "x.png", (), 8)
    project(tmp_path, a=[None], b=["box"])
    with pytest.raises(InputError, match="--class c; expected classes among a, b"):
        regions.run(tmp_path, tmp_path / "x.png", ["c"], 8)
    for out in ("x.jpg", "."):
        with pytest.raises(InputError, match=r"expected a file \*\.png"):
            regions.run(tmp_path, tmp_path / out, (), 8)
    with pytest.raises(DataError, match="no train image of a has a region"):
        regions.run(tmp_path, tmp_path / "x.png", ["a"], 8)
    project(tmp_path, a=[None])
    with pytest.raises(DataError, match=r"no train image of any class has a region.*set data\.regions") as caught:
        regions.run(tmp_path, tmp_path / "x.png", (), 8)
    assert caught.value.exit_status == 2 and "\n" not in str(caught.value)
    with pytest.raises(LeakError):
        regions.run(project(tmp_path, split="test", a=["box"]), tmp_path / "x.png", (), 8)
    with pytest.raises(DataError, match="a: "):
        regions._tile({"sample_id": "a", "image": b"torn", "region": None, "region_origin": "box"})
    assert not (tmp_path / "x.png").exists()
