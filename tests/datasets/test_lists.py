"""Groups and id files in all their forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.datasets.lists import Names, groups, ids, locate
from pipeline.errors import DataError

PATHS = ["train/a/1.png", "train/b/1.png", "train/b/2.png", "test/b/2.png", "train/b/3.x.jpg"]
NAMES = Names(PATHS, ["1", "1", "2", "2", "3.x"], ["a", "b", "b", "b", "b"], ["train", "train", "train", "test", "train"])


def written(folder: Path, value: object) -> Path:
    file = folder / "list.json"
    file.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        ({"ids": {"a": [1], "b": ["2"]}, "counts": {}}, [0, 2]),
        ({"files": {"a": ["train/a/1.png"], "b": ["train/b/3.x.jpg"]}}, [0, 4]),
        ({"b": ["3.x", "1"]}, [1, 4]),
        (["train/b/1", "train/b/2.png"], [1, 2]),
        ([2], [2]),
    ],
)
def test_every_form_of_ids(tmp_path, value, rows):
    assert [i for i, kept in enumerate(ids(written(tmp_path, value), NAMES, ["a", "b"], 5, [])) if kept] == rows


def test_ids_that_name_nothing_are_counted(tmp_path):
    told: list[str] = []
    ids(written(tmp_path, {"a": [1, 77, 78]}), NAMES, ["a", "b"], 5, told)
    assert told == ["list.json: 2 of its ids name no image"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"a": [77]}, "none of its ids names an image"),
        ({"c": [1]}, "class 'c'"),
        ({"a": 3}, "a list of ids"),
        ({"a": [[1]]}, "a list of ids"),
        ([1], "names 2 images"),
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_ids_that_do_not_fit(tmp_path, value, told):
    with pytest.raises(DataError, match=told) as caught:
        ids(written(tmp_path, value), NAMES, ["a", "b"], 5, [])
    assert "\n" not in str(caught.value)


def test_groups_by_id_class_and_split(tmp_path):
    entries = [
        {"id": "1", "cls": "a", "group": 0, "split": "train"},
        {"id": "1", "cls": "b", "group": 0, "split": "train"},
        {"id": "2", "group": "x", "split": "test"},
        {"id": "nobody", "group": 5},
    ]
    told: list[str] = []
    assert groups(written(tmp_path, entries), NAMES, 5, told) == ["0", "0", None, "x", None]
    assert told == ["list.json: 1 of its ids name no image"]


def test_groups_in_csv(tmp_path):
    file = tmp_path / "groups.csv"
    file.write_text("id,group,cls\ntrain/a/1.png,g,\n1,h,b\n", encoding="utf-8")
    assert groups(file, NAMES, 5, []) == ["g", "h", None, None, None]


@pytest.mark.parametrize(
    "value", [{"a": 1}, [{"id": "1"}], [{"group": "1"}], [3], [{"id": "1", "group": 2}], [{"id": "q", "group": 2}]]
)
def test_groups_that_do_not_fit(tmp_path, value):
    with pytest.raises(DataError):
        groups(written(tmp_path, value), NAMES, 5, [])


def test_a_list_is_looked_for_in_the_folder_beside_it_and_here(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    for place in (tmp_path / "data" / "g.json", tmp_path / "g.json"):
        place.write_text("[]")
        assert locate("g.json", tmp_path / "data", "data.groups").resolve() == place
        assert locate(str(place), Path("elsewhere"), "data.groups") == place
        place.unlink()
    with pytest.raises(DataError, match=r"data\.groups='g\.json'"):
        locate("g.json", tmp_path / "data", "data.groups")


def test_a_groups_file_names_photographs(tmp_path):
    photographs = ["a/1.jpg", "a/1.jpg", "b/1.jpg", "b/2.jpg", "b/2.jpg"]
    paths = [f"{photograph}#{i:03d}" for i, photograph in enumerate(photographs)]
    names = Names(paths, [path[2:] for path in paths], ["x"] * 5, ["train", "train", "test", "test", "test"], photographs)
    entries = [{"id": "a/1.jpg", "group": "p"}, {"id": "2", "group": "q"}, {"id": "b/1", "group": "p"}]
    assert groups(written(tmp_path, entries), names, 5, []) == ["p", None, "p", "q", None]
    with pytest.raises(DataError, match="'1' names 2 images"):
        groups(written(tmp_path, [{"id": "1", "group": "p"}]), names, 5, [])
    assert groups(written(tmp_path, [{"id": "1", "group": "p", "split": "test"}]), names, 5, [])[2] == "p"
    with pytest.raises(DataError, match="names an image"):  # a list of train ids names objects alone
        ids(written(tmp_path, {"x": ["a/1.jpg"]}), names, ["x"], 5, [])
