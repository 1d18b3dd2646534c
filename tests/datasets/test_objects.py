"""Photographs with annotated objects: what is cut out, its class and split, and what is set aside with which reason."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from helpers.annotated import HEIGHT, WIDTH, coco_file, labelme_file, made, photograph, shape, written, xml
from helpers.making import params, picture
from pipeline.core.prepared import Prepared
from pipeline.datasets import decode, intake, objects, rows
from pipeline.datasets.rows import Row
from pipeline.encoders.thumbnails import Thumbnails
from pipeline.errors import DataError
from pipeline.stages import prepare

SOURCES = ("coco", "voc", "yolo", "labelme")


def listed(source: str, path: Path, **data: Any) -> list[Row]:
    return list(rows.rows(params(data={"source": source, "path": str(path), **data}).data))


def taken(source: str, path: Path, **data: Any) -> list[dict[str, Any]]:
    """The records of all rows, with 8 x 8 images."""
    given = params(data={"source": source, "path": str(path), "image_size": 8, "channels": 3, **data}).data
    shards = intake.take_in(
        rows.rows(given), given, Thumbnails((3, 8, 8)), path.parent / f"shards{len([*path.parent.iterdir()])}", "test"
    )
    return [record for shard in shards for record in pa.parquet.read_table(shard).to_pylist()]


def reasons(source: str, path: Path, **data: Any) -> list[str | None]:
    return [record["reason"] for record in taken(source, path, **data)]


def cut(row: Row) -> np.ndarray:
    """The pixels of a part (h, w, 3), as it is in the photograph."""
    assert row.part is not None
    with row.read() as image:
        shown = decode._shown(image, "RGB", row.part.size)
        box = row.part.box(*shown.size)
        assert not isinstance(box, str), box
        return np.asarray(shown.crop(box))


def corners(row: Row) -> tuple[int, int, int, int]:
    """Where a part of `coordinates` was cut, read off its pixels."""
    pixels = cut(row)
    return (*pixels[0, 0, :2].tolist(), *(pixels[-1, -1, :2] + 1).tolist())


def refused(told: str, source: str, path: Path, **data: Any) -> None:
    with pytest.raises(DataError, match=told) as caught:
        listed(source, path, **data)
    assert "\n" not in str(caught.value) and "expected" in str(caught.value)


TWO = {"a": [("cell", 4, 6, 12, 10), ("crack", 20, 10, 30, 20)], "b": [("cell", 0, 0, 6, 6)]}


@pytest.mark.parametrize("source", SOURCES)
def test_each_object_becomes_an_image(tmp_path, source):
    found = listed(source, made(source, tmp_path / "set", TWO), margin=0.25)
    a, b = (f"{ {'voc': 'JPEGImages/', 'labelme': ''}.get(source, 'images/') }{name}.png" for name in "ab")
    assert [(row.path, row.name, row.label, row.group, row.split) for row in found] == [
        (f"{a}#000", "a#000", "cell", a, None), (f"{a}#001", "a#001", "crack", a, None), (f"{b}#000", "b#000", "cell", b, None)
    ]  # fmt: skip
    assert [corners(row) for row in found] == [(2, 2, 14, 14), (18, 8, 33, 23), (0, 0, 9, 9)]


# The crop


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        ((10, 10, 18, 14), 0.0, (10, 8, 18, 16)),  # a square around the middle
        ((10, 10, 18, 14), 0.25, (8, 6, 20, 18)),  # a quarter of the longer side more on each side
        ((0, 0, 4, 8), 0.0, (0, 0, 8, 8)),  # moved inside at the left
        ((36, 26, 40, 30), 0.5, (32, 22, 40, 30)),  # and at the right and below
        ((5, 2, 25, 28), 0.15, (0, 0, 30, 30)),  # at most the shorter side
        ((2, 12, 36, 20), 0.0, (2, 12, 36, 20)),  # longer than the shorter side: the box
        ((2, 12, 36, 20), 0.1, (0, 8, 40, 24)),  # with its margin, as far as there is a photograph
        ((-10, -10, 8, 8), 0.0, (0, 0, 8, 8)),  # partly outside
        ((10.2, 10.2, 10.4, 10.3), 0.0, (10, 10, 11, 11)),  # less than a pixel
    ],
)
def test_the_crop_in_closed_form(box, margin, expected):
    assert objects.crop(box, margin, WIDTH, HEIGHT) == expected


def test_the_crop_of_any_box_is_inside_and_holds_its_middle():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        width, height = (int(side) for side in rng.integers(1, 60, 2))
        box = tuple(np.sort(rng.uniform(-10, 70, (2, 2)), axis=0).ravel().tolist())
        found = objects.crop(box, float(rng.uniform(0, 1)), width, height)
        if isinstance(found, str):
            assert box[2] <= 0 or box[3] <= 0 or box[0] >= width or box[1] >= height
        else:
            left, top, right, bottom = found
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            assert left - 1 <= (max(box[0], 0) + min(box[2], width)) / 2 <= right + 1


def test_parts_pass_through_what_all_images_pass_through(tmp_path):
    pixels = (np.arange(HEIGHT * WIDTH) * 50).astype(np.uint16).reshape(HEIGHT, WIDTH)
    written(tmp_path / "set/a.json", labelme_file("a.png", [shape("x", [[0, 0], [8, 8]]), shape("x", [[8, 8], [16, 16]])]))
    photograph(tmp_path / "set/a.png", Image.fromarray(pixels))
    first, second = taken("labelme", tmp_path / "set", margin=0.0)
    for record, part in ((first, pixels[:8, :8]), (second, pixels[8:16, 8:16])):
        with Image.open(pa.BufferReader(record["image"])) as image:
            assert (np.asarray(image)[..., 0] == np.rint(part / 257)).all()


def test_a_photograph_is_decoded_once_for_all_its_parts(tmp_path, monkeypatch):
    root, opened = made("voc", tmp_path / "set", TWO), []
    monkeypatch.setattr(objects, "opened", lambda file: opened.append(file.name) or decode.opened(file))
    assert reasons("voc", root) == [None, None, None] and opened == ["a.png", "b.png"]


def test_parts_are_decoded_within_the_same_room(tmp_path, monkeypatch):
    root, held = made("voc", tmp_path / "set", TWO), []
    crop = Image.Image.crop
    monkeypatch.setattr(Image.Image, "crop", lambda *a: held.append(decode.MAX_PIXELS - decode.ROOM.free) or crop(*a))
    reasons("voc", root)
    assert held == [WIDTH * HEIGHT] * 3
    monkeypatch.setattr(decode, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    assert reasons("voc", root, margin=0.5) == ["40 x 30 pixels, more than 1,199"] * 3


# EXIF


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_annotated_size_tells_which_way_up_boxes_are_meant(tmp_path, suffix, orientation):
    """The same photograph, annotated upright and as it is stored: both cut the object, and nothing else."""
    stored = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stored[2:10, 4:12] = 255
    exif = Image.Exif()
    exif[decode.ORIENTATION] = orientation
    photograph(
        tmp_path / f"set/a{suffix}", Image.fromarray(stored), exif=exif, **({"quality": 100} if suffix == ".jpg" else {})
    )
    with decode.opened(tmp_path / f"set/a{suffix}") as image:
        upright = np.asarray(decode._shown(image, "L", None)) > 128
    top, left = (int(np.flatnonzero(upright.any(axis)).min()) for axis in (1, 0))
    size = upright.shape[::-1]
    assert decode.upright(lambda: decode.opened(tmp_path / f"set/a{suffix}")) == size
    annotated = [labelme_file(f"a{suffix}", [shape("x", [[left, top], [left + 8, top + 8]])], size)]
    if orientation > 4:
        annotated.append(labelme_file(f"a{suffix}", [shape("x", [[4, 2], [12, 10]])]))
    for found in annotated:
        written(tmp_path / "set/a.json", found)
        (row,) = listed("labelme", tmp_path / "set", margin=0.0)
        assert cut(row).shape == (8, 8, 3) and cut(row).min() > 200
    written(tmp_path / "set/a.json", labelme_file(f"a{suffix}", [shape("x", [[4, 2], [12, 10]])], (80, 60)))
    assert reasons("labelme", tmp_path / "set") == [f"{size[0]} x {size[1]} pixels, but 80 x 60 in its annotation"]


# What does not fit


@pytest.mark.parametrize("source", SOURCES)
def test_a_box_that_does_not_fit_is_set_aside_alone(tmp_path, source):
    bad = {"a": [("x", 50, 50, 60, 60), ("x", 5, 5, 5, 9), ("x", 0, 0, 9, 9)]}
    outside, area, good = reasons(source, made(source, tmp_path / "set", bad))
    assert outside is not None and outside.startswith("a box outside of the photograph's 40 x 30 pixels: 50, 50 to 60, 60")
    assert area is not None and area.startswith("a box of no area") and good is None


@pytest.mark.parametrize("source", SOURCES)
def test_objects_of_a_photograph_that_is_not_there(tmp_path, source):
    root = made(source, tmp_path / "set", TWO)
    next(root.rglob("b.png")).unlink()
    *others, last = reasons(source, root)
    assert others == [None, None] and last in ("no such image", "labels without an image")


@pytest.mark.parametrize("source", ["coco", "labelme"])
@pytest.mark.parametrize("name", ["../secret.png", "link.png", "no\0name.png"])
def test_no_annotation_leads_out_of_the_folder(tmp_path, source, name):
    root = made(source, tmp_path / "set", {"a": [("x", 0, 0, 9, 9)]})
    photograph(tmp_path / "secret.png")
    for folder in (root, root / "images"):
        folder.mkdir(exist_ok=True)
        (folder / "link.png").symlink_to(tmp_path / "secret.png")
    for file in root.glob("*.json"):
        file.write_text(file.read_text().replace('"a.png"', json.dumps(name)))
    assert reasons(source, root) == ["a path that leaves data.path"]


def test_voc_files_that_are_none(tmp_path):
    root = made("voc", tmp_path / "set", {"a": [("x", 0, 0, 9, 9)]})
    bomb = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    for name, content in {
        "b": "<annotation><object>",
        "c": f'<!DOCTYPE a [<!ENTITY e0 "x">{bomb}]><annotation><filename>&e11;</filename></annotation>',
        "d": "<html/>",
        "e": xml([("x", 0, 0, 9, 9)]).replace("<xmax>9</xmax>", "<xmax>nine</xmax>").replace("<name>x", "<name>", 1),
        "f": "<?xml version='1.0' encoding='no-such'?><annotation/>",
    }.items():
        written(root / f"Annotations/{name}.xml", content)
        photograph(root / f"JPEGImages/{name}.png")
    none, b, c, d, e, f = reasons("voc", root)
    assert none is None and str(b).startswith("no XML: ") and str(f).startswith("no XML: ")
    assert (c, d) == ("an XML file with a DOCTYPE", "an XML file of <html>, not of <annotation>")
    assert e == "a box that is not four numbers"
    refused("holds no XML files", "voc", tmp_path / "set/JPEGImages")


def test_yolo_lines_that_do_not_fit(tmp_path):
    root = made("yolo", tmp_path / "set", {"a": [("x", 0, 0, 8, 9)]})
    lines = ["0 .5 .5 .2", "7 .5 .5 .2 .2", "-1 .5 .5 .2 .2", "0 .5 .5 .2 nan", "0 .1 .1 .2 .1 .2", "", "0 .5 .5 .2 .2"]
    written(root / "labels/a.txt", "\n".join(lines))
    assert reasons("yolo", root) == [
        "a line of 4 fields", "class 7, which names does not hold", "class -1, which names does not hold",
        "a box that is not four numbers", "a line of 6 fields", None,
    ]  # fmt: skip
    (root / "labels/a.txt").write_bytes(b"\xff")
    assert str(reasons("yolo", root, margin=0.1)[0]).startswith("a.txt: ")


def test_yolo_files_that_do_not_fit(tmp_path):
    root = made("yolo", tmp_path / "set", TWO)
    for content, told in (
        ("names: [", "expected YAML"),
        ("train: images", "no YAML file with names"),
        ("names: [x]\ntrain: elsewhere", "train='elsewhere' is no folder in data.path"),
        ("names: [x]\ntrain: ../..", "is no folder in data.path"),
    ):
        written(root / "data.yaml", content)
        refused(told, "yolo", root)
    written(tmp_path / "labels/a.txt", "0 .5 .5 .2 .2")
    photograph(tmp_path / "images/a.png")
    written(root / "list.txt", "../images/a.png\n")
    written(root / "data.yaml", "names: [x]\ntrain: list.txt")
    assert reasons("yolo", root) == ["a.txt: a path that leaves data.path"]
    written(root / "more.yml", "names: [x]")
    written(root / "data.yaml", "names: [x]")
    refused("data.yaml, more.yml", "yolo", root)


def test_coco_files_that_do_not_fit(tmp_path):
    root = made("coco", tmp_path / "set", TWO)
    file, whole = root / "annotations.json", json.loads((root / "annotations.json").read_text())
    crooked = whole | {"annotations": [
        {"image_id": 0, "category_id": 99, "bbox": [0, 0, 9, 9]}, {"image_id": 77, "category_id": 10, "bbox": [0, 0, 9, 9]},
        {"image_id": 0, "category_id": 10, "segmentation": [[0, 0, 9, 9]]}, {"image_id": 0},
        {"image_id": 0, "category_id": 10, "bbox": [0, 0, 9]},
        {"image_id": 0, "category_id": 10, "segmentation": [[0, 0, 9, 0, 9, 9]]},
    ]}  # fmt: skip
    written(file, crooked)
    records = taken("coco", root)
    assert {record["path"]: record["reason"] for record in records} == {
        "annotations.json#001": "an object of image 77, which images does not hold",
        "annotations.json#003": "an annotation without image_id or category_id",
        "images/a.png#000": "category 99, which categories does not hold",
        "images/a.png#001": "an outline of 2 points",
        "images/a.png#002": "a box that is not four numbers",
        "images/a.png#003": None,
    }
    for content, told in (
        (file.read_text()[:-1], "expected JSON"),
        (whole | {"categories": {}}, "has no list categories"),
        (whole | {"images": [{"id": 1}]}, "in images; expected id and file_name"),
        ({"groups": []}, "holds no COCO file"),
    ):
        written(file, content)
        refused(told, "coco", root)


def test_labelme_files_that_do_not_fit(tmp_path):
    root = made("labelme", tmp_path / "set", {"a": []})
    written(root / "b.json", "{")
    written(root / "groups.json", [{"id": "a", "group": 1}])
    shapes = [
        shape("x", [[0, 0], [9, 9]], "polygon"),
        shape("x", [[5, 5]], "point"),
        shape("", [[0, 0], [9, 9]]),
        {"label": "x"},
    ]
    written(root / "a.json", labelme_file("a.png", shapes))
    *found, torn = reasons("labelme", root)
    assert found == ["an outline of 2 points", "an outline of 1 points", "no class", "a shape without points"]
    assert str(torn).startswith("no JSON: ")
    (root / "a.json").unlink()
    (root / "b.json").unlink()
    refused("holds no LabelMe files", "labelme", root)


# What each form may say


def test_labelme_shapes(tmp_path):
    shapes = [
        shape("x", [[20, 10], [20, 14]], "circle"), shape("x", [[9, 9], [2, 2]]),
        shape("x", [[2, 2], [12, 2], [7, 8]], "polygon"),
    ]  # fmt: skip
    written(tmp_path / "json/a.json", labelme_file("..\\pics\\a.png", shapes))
    photograph(tmp_path / "pics/a.png")
    found = listed("labelme", tmp_path, margin=0.0)
    assert found[0].path == "pics/a.png#000"
    assert [corners(row) for row in found] == [(16, 6, 24, 14), (2, 2, 9, 9), (2, 0, 12, 10)]


def test_yolo_outlines_and_names_by_number(tmp_path):
    photograph(tmp_path / "images/a.png")
    written(tmp_path / "labels/a.txt", "3 .1 .1 .3 .1 .3 .3")
    written(tmp_path / "set.yml", "names: {3: three}")
    (row,) = listed("yolo", tmp_path, margin=0.0)
    assert row.label == "three" and corners(row) == (4, 2, 12, 10)


def test_a_crowd_is_no_image(tmp_path):
    root = made("coco", tmp_path / "set", TWO)
    values = json.loads((root / "annotations.json").read_text())
    values["annotations"][0] |= {"iscrowd": 1, "segmentation": {"counts": [0, 9], "size": [HEIGHT, WIDTH]}}
    written(root / "annotations.json", values)
    assert [row.path for row in listed("coco", root)] == ["images/a.png#001", "images/b.png#000"]


def test_splits_of_voc(tmp_path):
    root = made("voc", tmp_path / "set", {name: [("x", 0, 0, 9, 9)] for name in "abcde"})
    for name, content in {"trainval": "a\nb\n", "val": "b 1\n", "test": "c\nz\n"}.items():
        written(root / f"ImageSets/Main/{name}.txt", content)
    assert [(row.name, row.split) for row in listed("voc", root)] == [
        ("a#000", "train"), ("b#000", "val"), ("c#000", "test"), ("d", None), ("e", None), ("z", "test")
    ]  # fmt: skip
    assert reasons("voc", root)[3:] == ["named by no list in ImageSets/Main"] * 2 + [
        "named in ImageSets/Main, but without an XML file"
    ]


@pytest.mark.parametrize("source", ["voc", "labelme"])
def test_splits_by_folders_of_annotations_beside_images(tmp_path, source):
    for part in ("train", "valid", "test"):
        photograph(tmp_path / part / "1.JPG")
        one = xml([("x", 0, 0, 9, 9)]) if source == "voc" else labelme_file("1.JPG", [shape("x", [[0, 0], [9, 9]])])
        written(tmp_path / part / ("1.xml" if source == "voc" else "1.json"), one)
    assert {row.path: row.split for row in listed(source, tmp_path)} == {
        "train/1.JPG#000": "train", "valid/1.JPG#000": "val", "test/1.JPG#000": "test"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "images", "splits"),
    [
        (("annotations/instances_train2017.json", "annotations/instances_val2017.json"), ("train2017", "val2017"),
         ["train", "val"]),
        (("annotations/train.json", "annotations/test.json"), ("images/train", "images/test"), ["train", "test"]),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), ("train", "valid"), ["train", "val"]),
        (("annotations/instances_train.json",), ("images",), [None]),
        (("one.json", "latest.json"), ("images", "images"), [None, None]),
    ],
)  # fmt: skip
def test_splits_and_places_of_coco(tmp_path, files, images, splits):
    for i, (file, folder) in enumerate(zip(files, images, strict=True)):
        photograph(tmp_path / folder / f"{i}.png")
        written(tmp_path / file, coco_file({f"{i}.png": [("x", 0, 0, 9, 9)]}))
        if "instances" in file:
            written(tmp_path / "annotations/captions_train2017.json", {"images": [], "annotations": []})
    written(tmp_path / "groups.json", [{"id": "0", "group": 1}])
    found = sorted(listed("coco", tmp_path), key=lambda row: row.name)
    assert [row.split for row in found] == splits and [corners(row) for row in found] == [(0, 0, 12, 12)] * len(files)


@pytest.mark.parametrize("roboflow", [False, True])
def test_splits_of_yolo(tmp_path, roboflow):
    for part in ("train", "val"):
        folder = tmp_path / (f"{part}/images" if roboflow else f"images/{part}")
        photograph(folder / "deep/1.png")
        photograph(folder / "empty.png")
        written(Path(str(folder).replace("images", "labels")) / "deep/1.txt", "0 .5 .5 .2 .2")
        written(Path(str(folder).replace("images", "labels")) / "classes.txt", "x")
    places = {part: f"../{part}/images" if roboflow else f"images/{part}" for part in ("train", "val")}
    written(tmp_path / "data.yaml", yaml.safe_dump({"path": "" if roboflow else ".", "names": ["x"], **places, "test": None}))
    assert [(row.name, row.split) for row in listed("yolo", tmp_path)] == [("1#000", "train"), ("1#000", "val")]


def test_yolo_lists_of_images(tmp_path):
    root = made("yolo", tmp_path / "set", TWO)
    written(root / "train.txt", "./images/b.png\n")
    written(root / "test.txt", "./images/a.png\n")
    written(root / "data.yaml", yaml.safe_dump({"names": ["cell", "crack"], "train": "train.txt", "test": ["test.txt"]}))
    assert [(row.name, row.split) for row in listed("yolo", root)] == [("b#000", "train"), ("a#000", "test"), ("a#001", "test")]


# Backgrounds and whole photographs


@pytest.mark.parametrize("source", SOURCES)
def test_backgrounds_touch_no_object(tmp_path, source):
    crowded = {f"{i}": [("x", 5 * i, 3, 5 * i + 9, 12), ("y", 2, 18, 9, 25)] for i in range(5)}
    found = listed(source, made(source, tmp_path / "set", crowded), backgrounds=6, margin=0.0)
    backgrounds = [row for row in found if row.label == "background"]
    assert 10 < len(backgrounds) <= 30 and len({row.path for row in found}) == len(found)
    again = listed(source, tmp_path / "set", backgrounds=6, margin=0.0)
    assert [(row.path, corners(row)) for row in found] == [(row.path, corners(row)) for row in again]
    for row in backgrounds:
        left, top, right, bottom = corners(row)
        assert right - left == bottom - top and right - left in (7, 9)
        for _, x, y, x1, y1 in crowded[row.name.partition("#")[0]]:
            assert right <= x or x1 <= left or bottom <= y or y1 <= top


def test_backgrounds_stay_where_they_are_when_photographs_come(tmp_path):
    one = {"a": [("x", 0, 0, 9, 9)]}
    before = [row for row in listed("voc", made("voc", tmp_path / "set", one), backgrounds=3) if row.label == "background"]
    made("voc", tmp_path / "set", {"0": [("x", 0, 0, 9, 9)]})
    after = [row for row in listed("voc", tmp_path / "set", backgrounds=3) if row.label == "background" and row.name[0] == "a"]
    assert [corners(row) for row in before] == [corners(row) for row in after] and len(before) == 3


def test_no_background_where_there_is_no_room(tmp_path):
    full = made("voc", tmp_path / "set", {"a": [("x", 0, 0, 38, 28)]})
    assert [row.label for row in listed("voc", full, backgrounds=2)] == ["x"]
    values = coco_file({"a.png": [("x", 0, 0, 9, 9), ("y", 0, 0, 40, 30)]})
    values["annotations"][1]["iscrowd"] = 1
    photograph(tmp_path / "coco/a.png")
    written(tmp_path / "coco/a.json", values)
    assert [row.label for row in listed("coco", tmp_path / "coco", backgrounds=2)] == ["x"]


def test_a_whole_photograph_has_the_class_of_its_rarest_object(tmp_path):
    x, y, z = (("x", 0, 0, 9, 9), ("y", 0, 0, 9, 9), ("z", 0, 0, 9, 9))
    root = made("yolo", tmp_path / "set", {"a": [x, x, y], "b": [z, y], "c": [x, z], "d": [], "e": [x]})
    written(root / "labels/e.txt", "9 .5 .5 .2 .2")
    found = {row.name: row for row in listed("yolo", root, unit="photograph", backgrounds=1)}
    assert {name: row.label for name, row in found.items()} == {"a": "y", "b": "y", "c": "z", "d": "background", "e": None}
    assert found["a"].path == "images/a.png" and found["a"].part is None and found["a"].group is None
    assert [r for r in reasons("yolo", root, unit="photograph", backgrounds=1) if r] == [
        "none of its objects has a class and a box"
    ]
    assert [row.name for row in listed("yolo", root, unit="photograph")] == ["a", "b", "c", "e"]


# The stage


def cells(root: Path, n: int = 30) -> Path:
    """VOC: n photographs of two classes, with a cell that no other photograph has."""
    for i in range(n):
        photograph(root / f"JPEGImages/{i:02d}.png", picture(i, 32, 3))
        label = "round" if i % 3 else "long"
        written(root / f"Annotations/{i:02d}.xml", xml([(label, 2, 2, 14, 14), ("round", 16, 16, 30, 30)], (32, 32)))
    return root


def prepared(folder: Path, **changes: Any) -> Prepared:
    data = {"source": "voc", "path": str(folder), "image_size": 8, "channels": 3, **changes.pop("data", {})}
    prepare.run(params(data=data, **changes), folder.parent / "prepared")
    return Prepared(folder.parent / "prepared")


def sides(found: Prepared) -> dict[str, str]:
    """The side of each row."""
    named = {"train": found.train(), "val": found.val(), "test": found.test()}
    return {sample: side for side, manifest in named.items() for sample in manifest.column("sample_id")}


def test_prepare_keeps_photographs_on_one_side_and_lists_what_is_set_aside(tmp_path):
    root = cells(tmp_path / "set")
    written(root / "Annotations/torn.xml", "<annotation>")
    found = prepared(root, data={"backgrounds": 1})
    assert found.info["classes"] == ["background", "long", "round"] and found.info["groups_known"]
    assert [row["path"] for row in found.info["set_aside"]] == ["Annotations/torn.xml"]
    by_photograph: dict[str, set[str]] = {}
    for sample, side in sides(found).items():
        by_photograph.setdefault(sample.partition("#")[0], set()).add(side)
    assert len(by_photograph) == 30 and all(len(found) == 1 for found in by_photograph.values())
    assert set(sides(found).values()) == {"train", "val", "test"}


def test_groups_may_name_photographs(tmp_path):
    root = cells(tmp_path / "set")
    entries = [
        {"id": ("{:02d}", "JPEGImages/{:02d}.png", "JPEGImages/{:02d}")[i % 3].format(i), "group": i // 6} for i in range(24)
    ]
    written(root / "groups.json", entries)
    found = sides(prepared(root, data={"groups": "groups.json"}))
    assert len(found) == 60
    for patient in range(4):
        assert len({found[f"{i:02d}#{k:03d}"] for i in range(6 * patient, 6 * patient + 6) for k in (0, 1)}) == 1
    assert all(found[f"{i:02d}#000"] == found[f"{i:02d}#001"] for i in range(30))
    assert not [w for w in Prepared(tmp_path / "prepared").info["warnings"] if "name no image" in w]


@pytest.mark.skipif(
    "TAILFORGE_DATASETS" not in os.environ,
    reason="real data are no part of the project: set TAILFORGE_DATASETS to their folder",
)
def test_photographs_of_blood(tmp_path):
    subprocess.run(["tar", "xf", f"{os.environ['TAILFORGE_DATASETS']}/bccd_voc/bccd_voc.tar"], cwd=tmp_path, check=True)
    found = listed("voc", tmp_path / "bccd_voc")
    assert Counter(row.label for row in found) == {
        "RBC": 4155, "Platelets": 361, "NEUTROPHIL": 202, "EOSINOPHIL": 84, "LYMPHOCYTE": 33, "WBC_unknown": 31, "MONOCYTE": 20,
        "BASOPHIL": 2,
    }  # fmt: skip
    assert len({row.group for row in found}) == 364 and {row.split for row in found} == {"train", "val", "test"}
