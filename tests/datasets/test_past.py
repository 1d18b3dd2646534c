"""Rows stay on their side and keep their name when images come, go, or are split again by the same settings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from helpers.making import ROOT, folders, params, picture
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.datasets import past
from pipeline.stages import prepare

OUT = Path("data/prepared")
SIDES = ("train", "val", "test")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(**changes: Any) -> Prepared:
    data = {"source": "folder", "path": "raw", "image_size": 16, **changes.pop("data", {})}
    prepare.run(params(data=data, **changes), OUT)
    return Prepared(OUT)


def stands(rows: Prepared) -> dict[str, str]:
    """{pixel hash: side}."""
    found = {}
    for side in SIDES:
        found |= dict.fromkeys(Manifest.read(rows.folder / f"{side}.parquet").column("pixel_hash"), side)
    return found


def names(rows: Prepared) -> dict[str, str]:
    """{pixel hash: sample_id}."""
    read = [Manifest.read(rows.folder / f"{side}.parquet") for side in SIDES]
    return {h: i for part in read for h, i in zip(part.column("pixel_hash"), part.column("sample_id"), strict=True)}


def contents() -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(OUT.iterdir())}


def more(place: str, n: int, first: int) -> None:
    folders(Path("raw"), {place: n}, first=first)


def test_rows_stay_where_they_stood_and_those_that_come_are_shared_out() -> None:
    folders(Path("raw"), {"a": 40, "b": 30})
    before = stands(made())
    more("a", 40, 500)
    rows = made()
    after = stands(rows)
    assert {row: after[row] for row in before} == before
    came = [side for row, side in after.items() if row not in before]
    assert {side: came.count(side) for side in SIDES} == {"train": 14, "val": 6, "test": 20}  # of 40: 0.15 and 0.5
    assert rows.info["counts"]["val"] == {"a": 12, "b": 4}


def test_without_the_past_train_rows_would_move_to_test() -> None:
    folders(Path("raw"), {"a": 40, "b": 30})
    before = stands(made())
    more("a", 1, 500)
    shutil.rmtree(OUT)
    after = stands(made())
    assert [row for row in before if before[row] == "train" and after[row] == "test"]


def test_a_first_version_is_split_as_it_always_was() -> None:
    folders(Path("raw"), {"a": 40, "b": 30})
    rows = made()
    table = pq.read_table(OUT / past.FILE).to_pylist()
    assert {row["version"] for row in table} == {"now"} and len(table) == len(stands(rows)) == 70


def test_a_near_duplicate_and_an_image_of_a_known_group_join_the_side_of_theirs() -> None:
    folders(Path("raw"), {"a": 30, "b": 30})
    groups = [{"id": f"{i:04d}", "group": i} for i in range(60)]
    Path("groups.json").write_text(json.dumps(groups))
    settings = {"data": {"groups": "groups.json"}}
    rows = made(**settings)
    held = {side: [str(s) for s in Manifest.read(OUT / f"{side}.parquet").column("sample_id")] for side in SIDES}
    copied, related = held["train"][0], held["test"][0]
    place = {f"{i:04d}": "a" if i < 30 else "b" for i in range(60)}
    shutil.copy(f"raw/{place[copied]}/{copied}.png", "copy.png")
    Image.open("copy.png").save(f"raw/{place[copied]}/twin.jpg", quality=95)
    picture(999).save(f"raw/{place[related]}/cousin.png")
    Path("groups.json").write_text(json.dumps([*groups, {"id": "cousin", "group": int(related)}]))
    before, after = stands(rows), stands(made(**settings))
    assert {row: after[row] for row in before} == before
    held = {side: set(Manifest.read(OUT / f"{side}.parquet").column("sample_id")) for side in SIDES}
    assert "twin" in held["train"] and "cousin" in held["test"]


@pytest.mark.parametrize("train_first", [True, False])
def test_where_an_image_joins_two_sides_they_become_train(train_first: bool) -> None:
    folders(Path("raw"), {"a": 30, "b": 30})
    groups = [{"id": f"{i:04d}", "group": i} for i in range(60)]
    Path("groups.json").write_text(json.dumps(groups))
    before = stands(made(data={"groups": "groups.json"}))
    held = {side: [str(s) for s in Manifest.read(OUT / f"{side}.parquet").column("sample_id")] for side in SIDES}
    one, two = (min(held["train"]), max(held["test"])) if train_first else (max(held["train"]), min(held["test"]))
    assert (one < two) == train_first
    groups[int(two)]["group"] = int(one)
    Path("groups.json").write_text(json.dumps(groups))
    after = stands(made(data={"groups": "groups.json"}))
    assert two in Manifest.read(OUT / "train.parquet").column("sample_id")
    assert sum(after[row] != before[row] for row in before) == 1


def test_scarcity_keeps_the_train_rows_that_it_kept() -> None:
    folders(Path("raw"), {"a": 40, "b": 40})
    scarce = {"scarcity": {"kind": "counts", "counts": {"a": 5, "b": 6}, "dropped": "test"}}
    before = stands(made(**scarce))
    more("a", 20, 500)
    after = stands(made(**scarce))
    assert {row: after[row] for row in before} == before
    assert list(after.values()).count("train") == 11


def test_an_image_keeps_its_name_when_another_of_the_same_name_comes() -> None:
    folders(Path("raw"), {"a": 20, "b": 20})
    before = names(made())
    picture(999).save("raw/b/0003.png")
    after = names(made())
    assert {row: after[row] for row in before} == before and len(set(after.values())) == 41 and "b/0003.png" in after.values()


def test_other_settings_split_anew() -> None:
    folders(Path("raw"), {"a": 40, "b": 30})
    made()
    more("a", 5, 500)
    again = stands(made(seed=1))
    shutil.rmtree(OUT)
    assert stands(made(seed=1)) == again


def test_an_official_side_is_kept_whatever_stood_before() -> None:
    folders(Path("raw"), {"train/a": 12, "train/b": 12, "test/a": 4, "test/b": 4})
    before = stands(made())
    moved = sorted(Path("raw/train/a").iterdir())[0]
    shutil.move(moved, "raw/test/a")
    after = stands(made())
    assert sum(before[r] != "test" and after[r] == "test" for r in before) == 1
    assert {r: side for r, side in after.items() if before[r] == "val" and side != "test"}.items() <= before.items()


def test_the_same_data_again_give_the_same_bytes() -> None:
    """As after a kill that came too late, or with --force: the past is that of the first time, not the result itself."""
    folders(Path("raw"), {"a": 40, "b": 30})
    made()
    more("a", 9, 500)
    made()
    first = contents()
    for file in Path("raw").rglob("*.png"):
        file.touch()
    made()
    assert contents() == first
    assert {row["version"] for row in pq.read_table(OUT / past.FILE).to_pylist()} == {"now", "before"}


@pytest.mark.fault(1, "prepare on a second version of the data, killed at any rename")
def test_a_second_version_killed_at_any_rename_ends_the_same() -> None:
    folders(Path("raw"), {"a": 30, "b": 30})
    made()
    shutil.copytree("data", "first")
    more("a", 15, 500)
    made()
    expected = contents()
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom helpers.making import params\n"
        "from pipeline.stages import prepare\nreplace, left = os.replace, int(sys.argv[1])\n"
        "def counted(*paths):\n    global left\n    left -= 1\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if left < 0 else replace(*paths)\nos.replace = counted\n"
        "prepare.run(params(data={'source': 'folder', 'path': 'raw', 'image_size': 16}), Path('data/prepared'))\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    killed = 0
    for renames in range(1, 40, 3):
        shutil.rmtree("data")
        shutil.copytree("first", "data")
        done = subprocess.run([sys.executable, "-c", code, str(renames)], env=environment, capture_output=True, check=False)
        killed += done.returncode < 0
        made()
        assert contents() == expected, renames
        if done.returncode == 0:
            break
    assert killed >= 3 and done.returncode == 0


def test_pixel_hashes_are_what_rows_are_known_by() -> None:
    """A file that was rewritten with the same pixels is the same row."""
    folders(Path("raw"), {"a": 20, "b": 20})
    before = stands(made())
    for file in sorted(Path("raw/a").iterdir())[:5]:
        Image.open(file).save(file.with_suffix(".bmp"))
        file.unlink()
    after = stands(made())
    assert after == before
