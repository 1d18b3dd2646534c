"""The stage prepare: what goes in, what comes out, and what a kill leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from helpers.making import ROOT, folders, params, picture
from pipeline.config import Params
from pipeline.core import work
from pipeline.core.images import pixel_hash
from pipeline.core.manifest import SCHEMA, Manifest
from pipeline.core.prepared import Prepared
from pipeline.datasets import assemble, intake
from pipeline.errors import DataError, StorageError
from pipeline.stages import prepare

OUT = Path("data/prepared")


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """Each test stands in a project folder of its own."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def folder_params(path: Path | str = "raw", size: int = 16, **changes: Any) -> Params:
    data = {"source": "folder", "path": str(path), "image_size": size, **changes.pop("data", {})}
    return params(data=data, **changes)


def prepared(settings: Params) -> Prepared:
    prepare.run(settings, OUT)
    return Prepared(OUT)


def sides(made: Prepared) -> dict[str, Manifest]:
    return {"train": made.train(), "val": made.val(), "test": made.test()}


def ids(made: Prepared) -> dict[str, set[str]]:
    return {name: set(rows.column("sample_id")) for name, rows in sides(made).items()}


def test_classes_are_left_out_by_name() -> None:
    folders(Path("raw"), {"a": 12, "b": 1, "c": 12})
    made = prepared(folder_params(data={"leave_out": ["b"]}))
    assert made.classes == ["a", "c"] and made.info["n_set_aside"] == made.info["n_left_out"] == 0
    with pytest.raises(DataError, match=r"data\.leave_out names d, e; expected classes of the data"):
        prepared(folder_params(data={"leave_out": ["e", "b", "d"]}))


def contents() -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(OUT.iterdir())}


def refused(told: str, settings: Params) -> None:
    before = contents() if OUT.exists() else None
    with pytest.raises(DataError, match=told) as caught:
        prepare.run(settings, OUT)
    assert "\n" not in str(caught.value) and "expected" in str(caught.value)
    assert (contents() if OUT.exists() else None) == before


# The default


def test_the_digits_of_the_demo():
    made = prepared(params(scarcity={"kind": "long_tail"}))
    info = made.info
    assert list(info["counts"]["train"].values()) == [60, 43, 30, 22, 15, 11, 8, 5, 4, 3]
    assert sum(sum(side.values()) for side in info["counts"].values()) == 1797
    assert min(info["counts"]["test"].values()) >= 80 and min(info["counts"]["val"].values()) >= 20
    assert made.classes == list("0123456789") and made.shape == (1, 8, 8) and not info["official_test"]
    assert json.loads((OUT / "inputs.json").read_text()) == dict.fromkeys(["flow_matching"])
    assert len(made.external()) == 0 and info["n_left_out"] == 0 and info["warnings"] == []


def test_rows_are_whole_and_sides_are_a_partition():
    made = prepared(params(scarcity={"kind": "long_tail"}))
    found: set[str] = set()
    for name, rows in sides(made).items():
        assert rows.table.schema == SCHEMA
        assert set(rows.column("split")) == {name} and set(rows.column("origin")) == {"real"}
        assert rows.table["generator"].null_count == rows.table["seed"].null_count == len(rows)
        assert rows.table["sources"].to_pylist() == [[]] * len(rows)
        assert [pixel_hash(image) for image in rows.images()] == rows.column("pixel_hash").tolist()
        assert not found & set(rows.column("sample_id"))
        found |= set(rows.column("sample_id"))
        assert made.info["counts"][name] == dict(zip(made.classes, rows.counts(made.classes).tolist(), strict=True))
    assert found == {f"digits-{i:04d}" for i in range(1797)}


def test_the_seed_decides():
    first, again, other = (ids(prepared(params(seed=seed))) for seed in (0, 0, 1))
    assert first == again != other


# Splits, groups and duplicates


def test_names_decide_not_the_order_of_files_on_disk():
    folders(Path("raw"), {"a": 12, "b": 9})
    prepare.run(folder_params(), OUT)
    expected = contents()
    for place in ("b", "a"):
        Path("new", place).mkdir(parents=True)
        for file in sorted(Path("raw", place).iterdir(), reverse=True):
            shutil.copy(file, Path("new", place))
    shutil.rmtree("raw")
    Path("new").rename("raw")
    prepare.run(folder_params(), OUT)
    assert contents() == expected


def test_a_file_format_cannot_give_a_class_away():
    folders(Path("raw"), {"a": 8}, suffix=".png")
    folders(Path("raw"), {"b": 8}, first=100, suffix=".bmp")
    for rows in sides(prepared(folder_params())).values():
        assert {bytes(image)[:4] for image in rows.column("image")} == {b"\x89PNG"}


@pytest.mark.fault(18, "script in the EXIF and the text of images: what is prepared has not a byte of it")
def test_what_a_file_says_of_itself_is_dropped():
    folders(Path("raw"), {"a": 12, "b": 9})
    prepare.run(folder_params(), OUT)
    expected = contents()
    exif, text = Image.Exif(), PngInfo()
    exif[0x010E] = "<script>alert(1)</script>"  # ImageDescription
    text.add_text("Author", "<script>alert(1)</script>")
    for file in Path("raw").rglob("*.png"):
        with Image.open(file) as image:
            image.load()
        image.save(file, exif=exif, pnginfo=text)
    shutil.rmtree(OUT)
    prepare.run(folder_params(), OUT)
    assert contents() == expected


def test_short_names_are_ids_unless_two_images_have_them():
    folders(Path("raw"), {"a": 6, "b": 6})
    picture(99).save("raw/b/0000.png")
    found = set().union(*ids(prepared(folder_params())).values())
    assert {"a/0000.png", "b/0000.png", "0001"} <= found and len(found) == 13


def test_an_official_test_set_stays_as_it_is_and_val_is_carved():
    folders(Path("raw"), {"train/a": 20, "train/b": 10, "test/a": 5, "test/b": 7})
    made = prepared(folder_params())
    assert made.info["official_test"] and made.info["counts"] == {
        "train": {"a": 17, "b": 8}, "val": {"a": 3, "b": 2}, "test": {"a": 5, "b": 7}
    }  # fmt: skip
    assert all(s.startswith("00") and int(s) >= 30 for s in made.test().column("sample_id"))


def test_official_validation_and_no_test():
    folders(Path("raw"), {"train/a": 20, "train/b": 20, "val/a": 5, "val/b": 5})
    made = prepared(folder_params())
    assert made.info["counts"]["val"] == {"a": 5, "b": 5} and made.info["counts"]["test"] == {"a": 10, "b": 10}


def test_groups_stay_on_one_side_whether_json_csv_or_table():
    folders(Path("raw"), {"a": 30, "b": 30})
    entries = [{"id": f"{i:04d}", "cls": "a" if i < 30 else "b", "group": i % 30 // 3} for i in range(60)]
    Path("groups.json").write_text(json.dumps(entries))
    Path("raw/groups.csv").write_text("id,group\n" + "".join(f"{e['id']},{e['group']}\n" for e in entries))
    Path("raw/t.csv").write_text(
        "path,label,group\n" + "".join(f"{e['cls']}/{e['id']}.png,{e['cls']},{e['group']}\n" for e in entries)
    )
    for data in ({"groups": "groups.json"}, {"groups": "groups.csv"}, {"source": "table", "table": "t.csv"}):
        made = prepared(folder_params(data=data))
        found = {name: {int(s) % 30 // 3 for s in rows} for name, rows in ids(made).items()}
        assert made.info["groups_known"] and not made.info["warnings"]
        assert not found["train"] & found["test"] and not found["train"] & found["val"] and not found["val"] & found["test"]
        assert sum(map(len, found.values())) == 10 and all(found.values())
        for rows in sides(made).values():
            assert len(set(rows.column("group"))) == len({int(s) % 30 // 3 for s in rows.column("sample_id")})


def test_near_duplicates_stay_on_one_side():
    folders(Path("raw"), {"a": 20, "b": 20}, suffix=".png")
    for file in sorted(Path("raw").rglob("*.png")):
        picture(int(file.stem)).save(file.with_name(f"copy{file.stem}.jpg"), quality=97)
    made = prepared(folder_params())
    assert made.info["near_duplicates"] == 80 and not made.info["groups_known"]
    for found in ids(made).values():
        assert found and all(f"copy{s}" in found for s in found if not s.startswith("copy"))
        assert sum(s.startswith("copy") for s in found) * 2 == len(found)


def test_near_duplicates_across_an_official_border_leave_train():
    folders(Path("raw"), {"train/a": 10, "train/b": 10, "test/a": 3, "test/b": 3})
    picture(21).save("raw/train/a/near.jpg", quality=97)
    made = prepared(folder_params())
    reason = "near-duplicate of an image of val or test"
    assert made.info["left_out"] == [{"sample_id": "near", "reason": reason}] and made.info["n_left_out"] == 1
    assert made.info["warnings"] == [f"left out of train: 1 images, {reason}"]
    assert len(made.test()) == 6


def test_identical_images_across_an_official_border():
    folders(Path("raw"), {"train/a": 10, "train/b": 10, "test/a": 3, "test/b": 3})
    picture(21).save("raw/train/a/same.bmp")
    refused(r"'train/a/same\.bmp' of train and 'test/a/0021\.png' of test are the same image", folder_params())
    made = prepared(folder_params(split={"on_identical": "drop"}))
    assert [entry["sample_id"] for entry in made.info["left_out"]] == ["same"]
    assert not {"same"} & ids(made)["train"] and "0021" in ids(made)["test"]


def test_a_group_across_an_official_border_leaves_train():
    folders(Path("raw"), {"train/a": 10, "train/b": 10, "test/a": 3, "test/b": 3})
    Path("raw/g.json").write_text(json.dumps([{"id": "0002", "group": "board"}, {"id": "0022", "group": "board"}]))
    made = prepared(folder_params(data={"groups": "g.json"}))
    assert [e["sample_id"] for e in made.info["left_out"]] == ["0002"] and "0022" in ids(made)["test"]


def test_the_same_pixels_under_two_labels_serve_no_training():
    folders(Path("raw"), {"a": 10, "b": 10})
    picture(3).save("raw/b/contradiction.png")
    made = prepared(folder_params())
    assert not {"0003", "contradiction"} & set().union(*ids(made).values())
    assert made.info["left_out"][0]["reason"] == "the same pixels have the labels a and b"
    assert "2 images have the same pixels as an image of another label" in made.info["warnings"][0]


# Scarcity


def test_counts_and_long_tail_are_exact_and_touch_train_alone():
    folders(Path("raw"), {"train/a": 40, "train/b": 40, "train/c": 40, "test/a": 4, "test/b": 4, "test/c": 4})
    before = ids(prepared(folder_params()))
    for scarce, expected in (
        ({"kind": "counts", "counts": {"c": 2, "a": 30}}, [30, 34, 2]),
        ({"kind": "long_tail", "largest": 32, "ratio": 16.0}, [32, 8, 2]),
    ):
        made = prepared(folder_params(scarcity=scarce))
        assert list(made.info["counts"]["train"].values()) == expected
        after = ids(made)
        assert after["test"] == before["test"] and after["val"] == before["val"] and after["train"] < before["train"]
        assert made.info["n_left_out"] == 102 - sum(expected)


def test_fewer_images_than_asked_are_kept_with_a_warning():
    folders(Path("raw"), {"train/a": 20, "train/b": 10, "test/a": 4, "test/b": 4})
    made = prepared(folder_params(scarcity={"kind": "counts", "counts": {"b": 50}}))
    assert made.info["counts"]["train"]["b"] == 8
    assert made.info["warnings"] == ["class 'b' has 8 train images, 50 were requested"]


def test_what_scarcity_drops_goes_to_test_but_never_beside_its_group():
    folders(Path("raw"), {"a": 40, "b": 40})
    pairs = [{"id": f"{i:04d}", "group": i // 2} for i in range(80)]
    Path("raw/g.json").write_text(json.dumps(pairs))
    scarce = {"kind": "counts", "counts": {"a": 5, "b": 3}}
    made = prepared(folder_params(data={"groups": "g.json"}, scarcity=scarce))
    assert list(made.info["counts"]["train"].values()) == [5, 3]
    groups = {name: {int(s) // 2 for s in found} for name, found in ids(made).items()}
    assert not groups["test"] & (groups["train"] | groups["val"])
    before = ids(made)
    assert sum(map(len, before.values())) + made.info["n_left_out"] == 80 and made.info["n_left_out"] <= 8
    discarded = prepared(folder_params(data={"groups": "g.json"}, scarcity={**scarce, "dropped": "discard"}))
    assert ids(discarded)["train"] == before["train"] and ids(discarded)["test"] < before["test"]


def held(made: Prepared) -> set[str]:
    rows = made.reserve()
    assert rows.table.schema == SCHEMA and set(rows.column("split")) <= {"reserve"} and set(rows.column("origin")) <= {"real"}
    return set(rows.column("sample_id"))


def test_the_reserve_holds_what_scarcity_left_out_beside_an_official_test_set():
    folders(Path("raw"), {"train/a": 40, "train/b": 40, "test/a": 4, "test/b": 4})
    assert held(prepared(folder_params())) == set()
    before = ids(Prepared(OUT))
    plain = (OUT / "dataset.json").read_bytes()
    made = prepared(folder_params(scarcity={"kind": "counts", "counts": {"a": 9, "b": 2}}))
    after = ids(made)
    assert held(made) == before["train"] - after["train"] and len(held(made)) == made.info["n_left_out"] > 50
    assert not held(made) & (after["val"] | after["test"])
    assert {entry["reason"] for entry in made.info["left_out"]} == {"scarcity"} and set(made.info["counts"]) == set(after)
    prepare.run(folder_params(), OUT)
    assert (OUT / "dataset.json").read_bytes() == plain


def test_what_was_left_out_for_another_reason_is_not_in_reserve():
    folders(Path("raw"), {"train/a": 20, "train/b": 20, "test/a": 4, "test/b": 4})
    for place in "ab":
        picture(999).save(f"raw/train/{place}/both-{place}.png")
    Path("raw/train/a/broken.png").write_bytes(b"no image")
    made = prepared(folder_params(scarcity={"kind": "counts", "counts": {"a": 2, "b": 2}}))
    assert made.info["n_left_out"] == len(held(made)) + 2 and made.info["n_set_aside"] == 1
    assert not {"both-a", "both-b", "broken"} & held(made)


def test_more_images_in_reserve_are_new_to_nobody_else():
    """The fingerprint of dataset.json, and the rows of each side, are as before."""
    folders(Path("raw"), {f"{side}/{c}": 6 for side in ("train", "val", "test") for c in "ab"})
    Path("raw/list.json").write_text(json.dumps({"a": ["0000", "0001"], "b": ["0006"]}))
    scarce = folder_params(scarcity={"kind": "ids", "ids": "list.json"})
    first, few, files = prepared(scarce).info, held(Prepared(OUT)), contents()
    picture(999).save("raw/train/a/more.png")
    again, more, others = prepared(scarce).info, held(Prepared(OUT)), contents()
    assert more == few | {"more"} and first["fingerprint"] == again["fingerprint"]
    assert all(files[f"{side}.parquet"] == others[f"{side}.parquet"] for side in ("train", "val", "test"))


def test_what_went_to_a_carved_test_set_is_not_in_reserve():
    folders(Path("raw"), {"a": 40, "b": 40})
    Path("raw/g.json").write_text(json.dumps([{"id": f"{i:04d}", "group": i // 2} for i in range(80)]))
    scarce = {"kind": "counts", "counts": {"a": 5, "b": 3}}
    made = prepared(folder_params(data={"groups": "g.json"}, scarcity=scarce))
    elsewhere = {int(s) // 2 for side in ("val", "test") for s in ids(made)[side]}
    partners = held(made)  # the other half of a pair of which one image stayed in train
    assert partners and not {int(s) // 2 for s in partners} & elsewhere
    assert {int(s) // 2 for s in partners} <= {int(s) // 2 for s in ids(made)["train"]}
    discarded = prepared(folder_params(data={"groups": "g.json"}, scarcity={**scarce, "dropped": "discard"}))
    assert held(discarded) > partners
    assert not {int(s) // 2 for s in held(discarded)} & {int(s) // 2 for side in ("val", "test") for s in ids(discarded)[side]}


def test_an_image_with_a_relative_in_val_or_test_is_not_in_reserve():
    """No split leaves such an image in train; the rule does not rest on that."""
    import pyarrow as pa

    from pipeline.datasets import decide
    from pipeline.datasets.split import OUT as LEFT_OUT
    from pipeline.datasets.split import RESERVE, TEST, TRAIN, VAL

    side = np.array([TRAIN] * 8 + [VAL, TEST])
    group = np.array([0, 1, 2, 3, 4, 5, 8, 9, 8, 9])
    names = pa.chunked_array([pa.array([str(i) for i in range(10)])])
    made = decide.Decision(names, names, ["a", "b"], np.array([0, 1] * 5), side, group, np.full(10, -1), official_test=True)
    stays = np.isin(np.arange(10), [0, 1])
    decide._thin(made, stays, folder_params(scarcity={"kind": "ids"}))
    assert made.side.tolist() == [TRAIN] * 2 + [RESERVE] * 4 + [LEFT_OUT] * 2 + [VAL, TEST]
    assert set(made.reasons.values()) == {"scarcity"} and set(made.reasons) == set(range(2, 8))


@pytest.mark.parametrize("how", ["identical", "near", "grouped"])
def test_a_copy_of_a_test_image_never_comes_into_reserve(how):
    folders(Path("raw"), {"train/a": 20, "train/b": 20, "test/a": 4, "test/b": 4})
    twin = sorted(Path("raw/test/a").iterdir())[0]
    if how == "grouped":
        Path("raw/groups.json").write_text(json.dumps([{"id": "twin", "group": 1}, {"id": twin.stem, "group": 1}]))
        picture(999).save("raw/train/a/twin.png")
    else:
        image = Image.open(twin)
        (image if how == "identical" else image.point(lambda level: min(255, level + 1))).save("raw/train/a/twin.png")
    changes = {"data": {"groups": "groups.json"}} if how == "grouped" else {}
    scarce = {"kind": "counts", "counts": {"a": 1, "b": 1}}
    made = prepared(folder_params(split={"on_identical": "drop"}, scarcity=scarce, **changes))
    assert "twin" not in held(made) | ids(made)["train"] and len(held(made)) > 10


def test_listed_ids_are_train_exactly_and_val_comes_from_the_others():
    folders(Path("raw"), {"train/a": 40, "train/b": 40, "test/a": 4, "test/b": 4})
    listed = {"a": [f"{i:04d}" for i in range(0, 30)], "b": [f"{i:04d}" for i in range(40, 43)]}
    Path("raw/list.json").write_text(json.dumps({"ids": listed}))
    made = prepared(folder_params(scarcity={"kind": "ids", "ids": "list.json"}))
    assert ids(made)["train"] == {*listed["a"], *listed["b"]}
    assert made.info["counts"]["val"] == {"a": 6, "b": 6} and made.info["warnings"] == []


def test_a_list_that_holds_a_whole_class_lends_its_validation_images():
    folders(Path("raw"), {"train/a": 20, "train/b": 20, "test/a": 4, "test/b": 4})
    Path("raw/list.json").write_text(json.dumps({"a": list(map("{:04d}".format, range(20))), "b": ["0020", "0021"]}))
    made = prepared(folder_params(scarcity={"kind": "ids", "ids": "list.json"}))
    assert made.info["counts"]["train"] == {"a": 17, "b": 2}
    assert made.info["warnings"] == ["class 'a': 3 of the listed images are in val or test, or were left out"]


# Bad input


@pytest.mark.fault(16, "torn and foreign files among images")
def test_odd_images_are_set_aside_and_listed():
    folders(Path("raw"), {"a": 10, "b": 10})
    whole = Path("raw/a/0000.png").read_bytes()
    Path("raw/a/torn.png").write_bytes(whole[: len(whole) // 2])
    Path("raw/b/notes.txt").write_text("not an image")
    made = prepared(folder_params())
    assert [entry["path"] for entry in made.info["set_aside"]] == ["a/torn.png", "b/notes.txt"]
    assert made.info["n_set_aside"] == 2 and sum(map(len, ids(made).values())) == 20


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"a": 5}, "one class, 'a'"),
        ({"a": 5, "b": 1}, "class 'b' has a single image"),
        ({"a": 5, "b": 0}, "is empty"),
        ({"train/a": 5, "train/b": 5, "test/a": 2, "test/c": 2}, "class 'c' is in test but not in train"),
        ({"train/a": 5, "train/b": 5, "val/c": 2}, "class 'c' is in val but not in train"),
        ({"train/a": 5, "train/b": 1, "test/a": 2, "test/b": 2}, "class 'b' has a single image"),
        ({}, "does not exist"),
    ],
)
def test_data_that_do_not_fit(counts, told):
    folders(Path("raw"), counts) if counts else None
    refused(told, folder_params())


def test_a_class_of_unreadable_images():
    folders(Path("raw"), {"a": 5, "b": 3})
    for file in Path("raw/b").iterdir():
        file.write_bytes(b"junk")
    refused("none of the 3 images of class 'b' can be read", folder_params())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": {"groups": "none.json"}}, "data.groups='none.json' is no file"),
        ({"scarcity": {"kind": "ids", "ids": "none.json"}}, "scarcity.ids='none.json' is no file"),
        ({"scarcity": {"kind": "ids", "ids": "wrong.json"}}, "none of its ids names an image"),
        ({"scarcity": {"kind": "ids", "ids": "half.json"}}, "class 'b' keeps no train image"),
        ({"scarcity": {"kind": "counts", "counts": {"x": 2}}}, "names class 'x'"),
        ({"data": {"source": "table", "table": "twice.csv"}}, "'a/0000.png' is listed twice"),
        ({"data": {"source": "table", "table": "onlytest.csv"}}, "is in test but not in train"),
    ],
)
def test_lists_that_do_not_fit(changes, told):
    folders(Path("raw"), {"a": 6, "b": 6})
    Path("raw/wrong.json").write_text('{"a": ["nobody"]}')
    Path("raw/half.json").write_text('{"a": ["0000", "0001"]}')
    Path("raw/twice.csv").write_text("path,label\na/0000.png,a\na/0000.png,b\nb/0006.png,b\n")
    Path("raw/onlytest.csv").write_text("path,label,split\na/0000.png,a,test\na/0001.png,a,test\nb/0006.png,b,test\n")
    refused(told, folder_params(**changes))


def test_the_command_answers_with_one_line_and_status_two(project):
    text = (
        (ROOT / "params.yaml")
        .read_text()
        .replace("source: digits ", "source: folder ")
        .replace("path: data/raw ", "path: nowhere ")
    )
    Path("params.yaml").write_text(text)
    command = [sys.executable, "-m", "pipeline.stages", "prepare", "--out", "data/prepared"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not OUT.exists()
    assert done.stderr.splitlines()[-1].startswith("error: data.path='nowhere' does not exist; expected a folder")
    assert "Traceback" not in done.stderr


# External images


def test_external_images_are_synthetic_train_rows_with_unknown_sources():
    folders(Path("raw"), {"a": 10, "b": 10})
    folders(Path("elsewhere"), {"a": 3, "b": 2}, first=500, suffix=".jpg")
    Path("elsewhere/a/bad.png").write_bytes(b"junk")
    settings = folder_params(data={"external": "elsewhere"})
    assert len(prepared(settings).external()) == 0
    settings = folder_params(data={"external": "elsewhere"}, generators=["naive", "external"])
    made = prepared(settings)
    rows = made.external()
    assert rows.table.schema == SCHEMA and rows.counts(["a", "b"]).tolist() == [3, 2]
    assert set(rows.column("origin")) == {"synthetic"} and set(rows.column("generator")) == {"external"}
    assert set(rows.column("split")) == {"train"} and rows.table["sources"].null_count == 5
    assert rows.column("sample_id")[0] == rows.column("group")[0] == "external/a/0500.jpg"
    assert tuple(rows.images().shape) == (5, 1, 16, 16)
    assert [entry["path"] for entry in made.info["set_aside"]] == ["a/bad.png"]
    first = json.loads((OUT / "inputs.json").read_text())
    assert first["naive"] is None and isinstance(first["external"], str)
    fingerprint = made.info["fingerprint"]
    Path("elsewhere/b/0504.jpg").unlink()
    made = prepared(settings)
    assert json.loads((OUT / "inputs.json").read_text())["external"] != first["external"]
    assert made.info["fingerprint"] == fingerprint


def test_threads_change_nothing(monkeypatch):
    folders(Path("raw"), {"a": 30, "b": 30})
    found = []
    for slow in (0.0, 1e9):
        monkeypatch.setattr(intake, "SLOW", slow)
        prepare.run(folder_params(), OUT)
        found.append(contents())
    assert found[0] == found[1]


# Kills and full disks


def test_a_run_stopped_between_the_passes_leaves_nothing_and_goes_on(monkeypatch):
    folders(Path("raw"), {"a": 20, "b": 20})
    prepare.run(folder_params(), OUT)
    expected = contents()
    shutil.rmtree("data")
    decoded = []
    form = intake.bring_to_form
    monkeypatch.setattr(intake, "bring_to_form", lambda *a: decoded.append(1) or form(*a))
    monkeypatch.setattr(intake, "SHARD", 16)
    write, calls = assemble.write_manifest, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(assemble, "write_manifest", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare.run(folder_params(), OUT)
    assert not OUT.exists() and len(decoded) == 40
    prepare.run(folder_params(), OUT)
    assert len(decoded) == 40 and contents() == expected
    assert not list(work.PARTIAL.rglob("*.parquet"))


@pytest.mark.fault(1, "prepare, killed by SIGKILL between shards")
def test_a_killed_run_goes_on_after_its_last_whole_shard():
    folders(Path("raw"), {"a": 20, "b": 20})
    prepare.run(folder_params(), OUT)
    expected = contents()
    shutil.rmtree("data")
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom helpers.making import params\n"
        "from pipeline.core import work\nfrom pipeline.datasets import intake\nfrom pipeline.stages import prepare\n"
        "intake.SHARD, replace, left = 8, os.replace, int(sys.argv[1])\n"
        "def counted(*paths):\n    global left\n    left -= 1\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if left < 0 else replace(*paths)\n"
        "os.replace = counted\n"
        "prepare.run(params(data={'source': 'folder', 'path': 'raw', 'image_size': 16}), Path('data/prepared'))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    ended = []
    for renames in (1, 9, 99):  # 5 shards, 2 JSON files and 6 moves to their place
        done = subprocess.run([sys.executable, "-c", code, str(renames)], env=environment, capture_output=True, check=False)
        ended.append(done.returncode)
        if renames == 1:
            assert len(list(work.PARTIAL.rglob("part-*.parquet"))) == 1 and not OUT.exists()
    assert ended[0] == -signal.SIGKILL and ended[-1] == 0 and contents() == expected


@pytest.mark.fault(3, "prepare on a full disk")
def test_a_full_disk_is_said_and_nothing_is_lost(monkeypatch):
    folders(Path("raw"), {"a": 20, "b": 20})
    prepare.run(folder_params(), OUT)
    expected = contents()
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(StorageError, match="room"):
        prepare.run(folder_params(seed=5), OUT)
    assert contents() == expected


def _full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_changed_images_are_taken_in_again():
    folders(Path("raw"), {"a": 10, "b": 10})
    before = prepared(folder_params()).info["fingerprint"]
    picture(77).save("raw/a/0003.png")
    assert prepared(folder_params()).info["fingerprint"] != before


def test_an_unfinished_run_of_other_images_is_not_taken_up(monkeypatch):
    folders(Path("raw"), {"a": 10, "b": 10})
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "decide", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare.run(folder_params(), OUT)
    picture(77).save("raw/a/0003.png")
    made = prepared(folder_params())
    assert pixel_hash(np.asarray(picture(77))[None]) in {h for rows in sides(made).values() for h in rows.column("pixel_hash")}


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# Real data

REAL = os.environ.get("TAILFORGE_DATASETS", "")


@pytest.mark.skipif(not REAL, reason="real data are no part of the project: set TAILFORGE_DATASETS to their folder")
def test_blood_cells(tmp_path):
    subprocess.run(["tar", "xf", f"{REAL}/wbc_bccd/wbc_bccd.tar"], cwd=tmp_path, check=True)
    shutil.copy(f"{REAL}/wbc_bccd/groups.json", tmp_path / "wbc_bccd")
    made = prepared(folder_params(tmp_path / "wbc_bccd", 32, data={"groups": "groups.json", "channels": 3}))
    assert list(made.info["counts"]["test"].values()) == [43, 17, 10, 105]
    train, val = made.info["counts"]["train"], made.info["counts"]["val"]
    assert [a + b for a, b in zip(train.values(), val.values(), strict=True)] == [43, 18, 10, 105]
    assert made.info["official_test"] and made.info["groups_known"] and made.info["n_left_out"] == 0
    assert not set(made.train().column("group")) & set(made.val().column("group"))


@pytest.mark.skipif(not REAL, reason="real data are no part of the project: set TAILFORGE_DATASETS to their folder")
def test_circuit_boards_by_their_list(tmp_path):
    subprocess.run(["tar", "xf", f"{REAL}/deeppcb64/deeppcb64.tar.gz"], cwd=tmp_path, check=True)
    for name in ("groups.json", "deeppcb64_lt_ir50.json"):
        shutil.copy(f"{REAL}/deeppcb64/{name}", tmp_path)
    scarce = {"kind": "ids", "ids": "deeppcb64_lt_ir50.json"}
    made = prepared(folder_params(tmp_path / "deeppcb64", 32, data={"groups": "groups.json"}, scarcity=scarce))
    train = made.info["counts"]["train"]
    assert [train[c] for c in ("pin_hole", "short", "spur", "spurious_copper")] == [83, 38, 17, 8]
    assert set(made.info["counts"]["test"].values()) == {150}
