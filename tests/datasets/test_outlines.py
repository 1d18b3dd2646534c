"""Outlines of annotated objects: what is drawn of them in a crop that is known, in each form that tells them, or their box."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from helpers.annotated import HEIGHT, WIDTH, coco_file, coordinates, labelme_file, photograph, shape, written
from helpers.making import params
from pipeline.core import images
from pipeline.datasets import coco, intake, outlines, rows
from pipeline.encoders.thumbnails import Thumbnails

WHOLE = (0, 0, WIDTH, HEIGHT)
CORNER = [(4, 6), (8, 6), (8, 10), (12, 10), (12, 14), (4, 14)]  # a square of 8 pixels without its upper right quarter
BOX = [4, 6, 8, 8]  # around it, as COCO says it
RUNS = [126, 8, 22, 8, 22, 8, 22, 8, 26, 4, 26, 4, 26, 4, 26, 4, 856]  # of CORNER in a photograph of 40 x 30
PACKED = "n38f0000004L000000ni0"  # RUNS as COCO's own tool (pycocotools 2.0) writes them
DISC = "g96f04L4M2O0O2O0O2O0000000001N101N101N3L4LS9"  # and the pixels whose middle is less than 10 from (20, 14)


def flat(points: list[tuple[float, float]]) -> list[float]:
    return [value for point in points for value in point]


def square(crop: tuple[int, int, int, int]) -> np.ndarray:
    """CORNER in a crop, bool (h, w)."""
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[6:14, 4:12], inside[6:10, 8:12] = True, False
    return inside[crop[1] : crop[3], crop[0] : crop[2]]


def taken(source: str, root: Path, size: int = 8, **data: Any) -> list[dict[str, Any]]:
    """The records of all objects of a set, cut without a margin unless `data` says one."""
    given = params(
        data={"source": source, "path": str(root), "image_size": size, "channels": 3, "margin": 0.0, **data},
    ).data
    made = Thumbnails((3, size, size))
    shards = intake.take_in(rows.rows(given), given, made, root.parent / f"shards{len([*root.parent.iterdir()])}", "test")
    return [record for shard in shards for record in pa.parquet.read_table(shard).to_pylist()]


def region(record: dict[str, Any]) -> np.ndarray:
    """bool (s, s)"""
    return images.decode_png(record["region"])[0] > 0


def coco_set(root: Path, *segmentations: object, **changes: object) -> Path:
    """A COCO set of one photograph whose objects have these segmentations and the box around CORNER."""
    values = coco_file({"a.png": [("x", 4, 6, 12, 14)] * len(segmentations)})
    for one, said in zip(values["annotations"], segmentations, strict=True):
        one |= {"segmentation": said, **changes}
    photograph(root / "a.png")
    written(root / "a.json", values)
    return root


def one_corner(source: str, root: Path) -> Path:
    """A set of one photograph with CORNER in it."""
    if source == "labelme":
        written(root / "a.json", labelme_file("a.png", [shape("x", [list(point) for point in CORNER], "polygon")]))
    elif source == "yolo":
        written(root / "a.txt", " ".join(["0", *(f"{x / WIDTH} {y / HEIGHT}" for x, y in CORNER)]))
        written(root / "data.yaml", "names: [x]\ntrain: .")
    else:
        counts = {"runs": RUNS, "packed": PACKED}.get(source.partition("-")[2])
        coco_set(root, {"counts": counts, "size": [HEIGHT, WIDTH]} if counts else [flat(CORNER)])
    photograph(root / "a.png")
    return root


@pytest.mark.parametrize("source", ["coco", "coco-runs", "coco-packed", "yolo", "labelme"])
@pytest.mark.parametrize(("margin", "crop"), [(0.0, (4, 6, 12, 14)), (0.5, (0, 2, 16, 18)), (3.0, (0, 0, 30, 30))])
def test_the_outline_of_an_object_is_its_region(tmp_path, source, margin, crop):
    root = one_corner(source, tmp_path / "set")
    (record,) = taken(source.partition("-")[0], root, crop[2] - crop[0], margin=margin)
    assert images.decode_png(record["image"])[:2, 0, 0].tolist() == [*crop[:2]]
    assert record["region_origin"] == "given" and record["region_reason"] is None
    assert (region(record) == square(crop)).all()


def test_a_region_is_reduced_as_a_mask_is(tmp_path):
    """Two of four pixels of the crop in each direction: a quarter of CORNER's crop stays empty, and a hair is seen."""
    root = coco_set(tmp_path / "set", [flat(CORNER)], [[4, 9, 12, 9, 12, 9.3, 4, 9.3]])
    corner, hair = taken("coco", root, 4)
    assert region(corner).tolist() == [[True, True, False, False]] * 2 + [[True] * 4] * 2
    assert hair["region_origin"] == "given" and region(hair).tolist() == [[i == 1] * 4 for i in range(4)]


def test_an_object_in_several_parts(tmp_path):
    parts = [[4, 6, 6, 6, 6, 14, 4, 14], [10, 6, 12, 6, 12, 14, 10, 14], [4, 6, 12, 14]]  # and a line, which is passed over
    (record,) = taken("coco", coco_set(tmp_path / "set", parts))
    assert record["region_origin"] == "given"
    assert region(record).tolist() == [[True, True, False, False, False, False, True, True]] * 8


def test_labelme_circles_and_rectangles(tmp_path):
    shapes = [shape("x", [[20, 14], [20, 4]], "circle"), shape("x", [[12, 14], [4, 6]]), shape("x", [[4, 6], [12, 14]], "line")]
    written(tmp_path / "set/a.json", labelme_file("a.png", shapes))
    photograph(tmp_path / "set/a.png")
    circle, *_ = taken("labelme", tmp_path / "set", 20)
    y, x = np.mgrid[:20, :20] + 0.5
    apart = np.hypot(x - 10, y - 10)
    assert region(circle)[apart < 9.5].all() and not region(circle)[apart > 10.5].any()
    _, rectangle, line = taken("labelme", tmp_path / "set")
    assert [record["region_origin"] for record in (circle, rectangle, line)] == ["given", "given", "box"]
    assert region(rectangle).all() and region(line).all()


def test_what_cannot_be_drawn_leaves_the_box(tmp_path):
    said: list[Any] = [
        [[20, 20, 30, 20, 30, 29]],  # outside of the crop
        [[4, 6, 8, 10, 12, 14]],  # of no area
        [[4, 6, 12, 14]],  # two points
        [[4, 6, 12, 6, 12]],  # half a point
        *([[4, 6, 12, 6, value, 14]] for value in ("12", None, float("nan"), 1e300)),
        *([7], "x", 7, {}, []),
        *({"counts": RUNS, "size": size} for size in ([WIDTH, HEIGHT], [HEIGHT], "no", None)),
    ]
    counts = [RUNS[:-1], [], [1.5], [-1], [1 << 40], None, [WIDTH * HEIGHT]]
    counts += [PACKED[:-1], PACKED + "o", "", "é", " ", "oooooooo0"]
    said += [{"counts": one, "size": [HEIGHT, WIDTH]} for one in counts]
    for one, record in zip(said, taken("coco", coco_set(tmp_path / "set", *said)), strict=True):
        assert record["region_origin"] == "box" and region(record).all(), one
        assert record["reason"] is None and record["region_reason"] is None, one


def test_an_outline_counts_by_the_box_around_it_where_there_is_no_other(tmp_path):
    runs = [{"counts": counts, "size": [HEIGHT, WIDTH]} for counts in (RUNS, PACKED, [1200])]
    *found, none = taken("coco", coco_set(tmp_path / "set", *runs, bbox=None))
    for record in found:
        assert (
            images.decode_png(record["image"])[:2, 0, 0].tolist() == [4, 6] and (region(record) == square((4, 6, 12, 14))).all()
        )
    assert none["reason"] == "a box that is not four numbers"
    goes_on = outlines.Runs([29, 2, 1200 - 31], (WIDTH, HEIGHT))  # type: ignore[arg-type]
    assert outlines.around(goes_on) == (0, 0, 2, HEIGHT)


def test_an_image_that_does_not_show_its_object_is_kept(tmp_path):
    """`crop` takes the middle of a long crop: there is nothing of the first outline, and nothing of the second box."""
    ends = [[0, 2, 10, 2, 10, 8, 0, 8], [50, 2, 60, 2, 60, 8, 50, 8]]
    values = coco_file({"a.png": [("x", 0, 2, 60, 8), ("x", 0, 4, 11, 6)]})
    values["annotations"][0]["segmentation"] = ends
    values["images"][0] |= {"width": 80, "height": 10}
    photograph(tmp_path / "set/a.png", coordinates(80, 10))
    written(tmp_path / "set/a.json", values)
    long, gone = taken("coco", tmp_path / "set", 10, resize="crop", margin=3.0)
    assert long["region_origin"] == "box" and region(long).tolist() == [[2 <= y < 8] * 10 for y in range(10)]
    assert gone["image"] and gone["reason"] is None and gone["region_origin"] is None
    assert gone["region_reason"] == "empty: no pixel belongs to the object"


def test_only_objects_that_can_be_images_keep_an_outline(tmp_path):
    root = coco_set(tmp_path / "set", [flat(CORNER)], [flat(CORNER)], [flat(CORNER)], {"counts": RUNS, "size": [30, 40]})
    values = json.loads((root / "a.json").read_text())
    values["annotations"][1]["category_id"] = 99
    values["annotations"][2]["bbox"] = [0, 0, 0, 9]
    values["annotations"][3]["iscrowd"] = 1
    written(root / "a.json", values)
    (found,) = coco._photographs(root, [root / "a.json"])
    assert [one.outline is not None for one in found.objects] == [True, False, False, False]


# Drawing


def test_a_pixel_that_an_outline_crosses_is_covered_in_part():
    drawn = outlines.drawn(outlines.polygons([[1.5, 1, 3.5, 1, 3.5, 3, 1.5, 3]]) or (), (1, 1), (0, 0, 5, 4), (5, 4))
    assert drawn is not None and (np.abs(drawn[1:3] / 255 - [0, 0.5, 1, 0.5, 0]) <= 0.26).all()
    assert (drawn[1:3, 2] == 255).all() and not drawn[0].any() and not drawn[:, [0, 4]].any()


def test_corners_far_from_the_photograph():
    far = outlines.polygons([[-1e9, -1e9, 1e9, -1e9, 1e9, 1e9, -1e9, 1e9]])
    assert far and (outlines.drawn(far, (1, 1), WHOLE, (WIDTH, HEIGHT)) == 255).all()


def test_a_large_crop_is_drawn_in_its_own_pixels():
    drawn = outlines.drawn(
        outlines.polygons([[0, 0, 3000, 0, 3000, 1000, 0, 1000]]) or (), (1, 1), (0, 0, 3000, 2000), (4000, 3000)
    )
    assert drawn is not None and drawn.shape == (2000, 3000) and (drawn[:1000] == 255).all() and not drawn[1001:].any()


def test_run_lengths_of_a_disc():
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    disc = np.hypot(x - 20, y - 14) < 10
    found = outlines.Runs(DISC, (WIDTH, HEIGHT))
    for left, top, right, bottom in (WHOLE, (10, 4, 30, 24), (17, 9, 18, 28), (0, 0, 3, 3)):
        drawn = outlines.drawn(found, (1, 1), (left, top, right, bottom), (WIDTH, HEIGHT))
        assert drawn is not None and (drawn == 255 * disc[top:bottom, left:right]).all()
    assert outlines.around(found) == (10, 4, 30, 24)
