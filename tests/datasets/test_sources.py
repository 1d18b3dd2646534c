"""Each source yields its rows in an order of its own, and says in one line what does not fit."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.making import folders, params, picture
from pipeline.datasets import external, rows
from pipeline.datasets.decode import Unreadable
from pipeline.datasets.rows import Row
from pipeline.errors import DataError


def listed(source: str, path: Path | str = "", **data: str) -> list[Row]:
    return list(rows.rows(params(data={"source": source, "path": str(path), **data}).data))


def pixels(row: Row) -> np.ndarray:
    with row.read() as picture:
        return np.asarray(picture)


def refused(told: str, source: str, path: Path | str = "", **data: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        listed(source, path, **data)
    assert "\n" not in str(caught.value) and "expected" in str(caught.value)


def test_digits():
    found = listed("digits")
    assert len(found) == 1797 and found[1].path == "digits-0001" and found[1].label == "1"
    assert {row.label for row in found} == set("0123456789")
    values = np.stack([pixels(row) for row in found])
    assert values.min() == 0 and values.max() == 255 and values.shape == (1797, 8, 8)


# Folders


def test_folder_with_and_without_splits(tmp_path):
    plain = listed("folder", folders(tmp_path / "plain", {"b": 1, "a/deeper": 1, "a": 1}))
    assert [(r.path, r.name, r.label, r.split) for r in plain] == [
        ("a/0002.png", "0002", "a", None),
        ("a/deeper/0001.png", "0001", "a", None),
        ("b/0000.png", "0000", "b", None),
    ]
    split = listed("folder", folders(tmp_path / "split", {"train/a": 1, "Valid/a": 1, "test/a": 1}))
    assert [(r.path.split("/")[0], r.label, r.split) for r in split] == [
        ("Valid", "a", "val"), ("test", "a", "test"), ("train", "a", "train")
    ]  # fmt: skip


def test_a_class_may_be_called_test(tmp_path):
    assert {r.label for r in listed("folder", folders(tmp_path, {"test": 1, "field": 1}))} == {"test", "field"}


def test_hidden_files_and_readmes_are_passed_over(tmp_path):
    folders(tmp_path, {"a": 1, "b": 1, ".cache": 1, "a/.thumbs": 1})
    for name in ("README.md", "groups.json", "a/README.txt", "a/.DS_Store"):
        (tmp_path / name).write_text("not an image")
    assert len(listed("folder", tmp_path)) == 2


@pytest.mark.fault(17, "links out of a folder of images")
def test_links_lead_nowhere_else(tmp_path):
    folders(tmp_path / "data", {"a": 1, "b": 1})
    picture(9).save(tmp_path / "secret.png")
    (tmp_path / "data/a/out.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data/a/in.png").symlink_to(tmp_path / "data/b/0001.png")
    (tmp_path / "data/a/loop.png").symlink_to(tmp_path / "data/a/loop.png")
    (tmp_path / "data/a/up").symlink_to(tmp_path)
    by_name = {r.name: r for r in listed("folder", tmp_path / "data")}
    assert set(by_name) == {"0000", "0001", "out", "in", "loop"}
    assert pixels(by_name["in"]).shape == (16, 16)
    for name in ("out", "loop"):
        with pytest.raises(Unreadable), by_name[name].read():
            pass
    (tmp_path / "data/c").symlink_to(tmp_path / "data/a")
    refused("is a link", "folder", tmp_path / "data")


def test_odd_names_are_data(tmp_path):
    folders(tmp_path, {"<script>alert(1)": 1, "a b\n;$(x)": 1})
    (tmp_path / "a b\n;$(x)").joinpath(os.fsdecode(b"\xff.png")).write_bytes(b"")
    found = listed("folder", tmp_path)
    assert [r.label for r in found] == ["<script>alert(1)", "a b\n;$(x)", "a b\n;$(x)"]
    assert found[2].name == "\\xff" and pa.array([r.path for r in found], pa.string())


def test_folders_that_do_not_fit(tmp_path):
    refused("does not exist", "folder", tmp_path / "none")
    (tmp_path / "file").write_text("")
    refused("is a file", "folder", tmp_path / "file")
    (tmp_path / "flat").mkdir()
    picture(0).save(tmp_path / "flat/1.png")
    refused("no class folders", "folder", tmp_path / "flat")
    folders(tmp_path / "hollow", {"a": 1, "b": 0})
    refused("b' is empty", "folder", tmp_path / "hollow")


# Tables


def table(folder: Path, text: str) -> Path:
    folders(folder, {"pics": 3})
    (folder / "t.csv").write_bytes(text.encode())
    return folder


def test_csv(tmp_path):
    text = '\ufeffpath,label,group,split,note\npics/0000.png,"a, b",g1,train,x\n'
    text += "pics/0001.png,c,,validation,\npics/0002.png,c,g2,,\n"
    found = listed("table", table(tmp_path, text), table="t.csv")
    assert [(r.name, r.label, r.group, r.split) for r in found] == [
        ("0000", "a, b", "g1", "train"), ("0001", "c", None, "val"), ("0002", "c", "g2", "train")
    ]  # fmt: skip
    assert pixels(found[0]).shape == (16, 16)


def test_a_table_without_split_has_none(tmp_path):
    found = listed("table", table(tmp_path, "label,path\n1,pics/0000.png\n"), table="t.csv")
    assert found[0].split is None and found[0].group is None


def test_parquet(tmp_path):
    table(tmp_path, "")
    pq.write_table(pa.table({"path": ["pics/0000.png"], "label": [7], "group": [None]}), tmp_path / "t.parquet")
    assert [(r.label, r.group, r.split) for r in listed("table", tmp_path, table="t.parquet")] == [("7", None, None)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file,class\nx,y\n", "columns file, class"),
        ("", "columns none"),
        ("path,label\n../../etc/passwd,a\n", r"row 1: path '\.\./\.\./etc/passwd' leaves"),
        ("path,label\n/etc/passwd,a\n", "leaves"),
        ("path,label\na\0b,a\n", "leaves"),
        ("path,label\npics/0000.png,\n", "label ''"),
        ("path,label\npics/0000.png\n", "label ''"),
        ("path,label,split\npics/0000.png,a,holdout\n", "split 'holdout'"),
        ("path,label\n" + "x" * 200_000 + ",a\n", "field larger"),
        ("path,label\n\udcff,a\n", "CSV"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, text, told):
    table(tmp_path, "")
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(told, "table", tmp_path, table="t.csv")


def test_a_table_that_is_none(tmp_path):
    for name in ("", "none.csv", "pics"):
        refused("is no file", "table", table(tmp_path, ""), table=name)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not")
    refused("Parquet", "table", tmp_path, table="t.parquet")


@pytest.mark.fault(17, "a table's path through a link")
def test_a_path_through_a_link_is_refused(tmp_path):
    table(tmp_path / "data", "path,label\nlink/s.png,a\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "data/link").symlink_to(tmp_path / "out")
    refused("leaves", "table", tmp_path / "data", table="t.csv")


# IDX


def idx(folder: Path, part: str = "train", n: int = 6, *, suffix: str = "", labels: int | None = None) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(n).integers(0, 256, (n, 4, 5), dtype=np.uint8)
    count = n if labels is None else labels
    files = {
        "images-idx3": struct.pack(">HBBIII", 0, 8, 3, *pixels.shape) + pixels.tobytes(),
        "labels-idx1": struct.pack(">HBBI", 0, 8, 1, count) + bytes(i % 3 for i in range(count)),
    }
    for name, data in files.items():
        (folder / f"{part}-{name}-ubyte{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    return pixels


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path, suffix):
    written = idx(tmp_path, suffix=suffix)
    idx(tmp_path, "t10k", 3, suffix=suffix)
    found = listed("idx", tmp_path)
    assert [(r.path, r.name, r.label, r.split) for r in found[4:8]] == [
        ("train-00004", "4", "1", "train"), ("train-00005", "5", "2", "train"), ("test-00000", "0", "0", "test"),
        ("test-00001", "1", "1", "test"),
    ]  # fmt: skip
    assert np.array_equal(np.stack([pixels(r) for r in found[:6]]), written)


def test_idx_prefers_the_plain_file_and_needs_no_test(tmp_path):
    idx(tmp_path, n=9, suffix=".gz")
    idx(tmp_path, n=6)
    assert len(listed("idx", tmp_path)) == 6


def test_idx_files_that_do_not_fit(tmp_path):
    refused("lacks train", "idx", tmp_path)
    idx(tmp_path, labels=5)
    refused("differ in length", "idx", tmp_path)
    for suffix in ("", ".gz"):
        for file in tmp_path.iterdir():
            file.unlink()
        idx(tmp_path, suffix=suffix)
        images = tmp_path / f"train-images-idx3-ubyte{suffix}"
        whole = images.read_bytes()
        for cut in (0, 3, 10, len(whole) - 9):
            images.write_bytes(whole[:cut])
            refused("expected an IDX file", "idx", tmp_path)
        images.write_bytes(b"\x00" * 40)
        refused("expected an IDX file", "idx", tmp_path)
    images.unlink()
    plain = tmp_path / "train-images-idx3-ubyte"
    plain.write_bytes(struct.pack(">HBBIII", 0, 8, 3, 6, 1 << 30, 1 << 30))
    refused("header says images of", "idx", tmp_path)
    idx(tmp_path)
    idx(tmp_path, "emnist-train")
    refused("holds", "idx", tmp_path)


# torchvision


def test_torchvision_reads_what_is_there(tmp_path):
    written = idx(tmp_path / "MNIST/raw")
    idx(tmp_path / "MNIST/raw", "t10k", 3)
    found = listed("torchvision", tmp_path, name="MNIST")
    assert [r.split for r in found] == ["train"] * 6 + ["test"] * 3
    assert found[1].label == "1 - one" and found[1].name == "1" and found[6].path == "test-00000"
    assert np.array_equal(pixels(found[1]), written[1])


def test_torchvision_says_that_there_is_no_network(tmp_path, monkeypatch):
    from urllib.error import URLError

    from torchvision.datasets import utils

    asked = []

    def refuse(request, *args, **kwargs):
        asked.append(request)
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert utils.urllib.request.urlopen is refuse
    refused(r"CIFAR10 is not available: .*no network.*a network to download", "torchvision", tmp_path, name="CIFAR10")
    assert len(asked) <= 2


@pytest.mark.parametrize(
    ("name", "told"), [("CIFR10", "did you mean CIFAR10"), ("", "data.name=''"), ("__class__", "data.name")]
)
def test_torchvision_knows_its_sets(tmp_path, name, told):
    refused(told, "torchvision", tmp_path, name=name)


# External images


def test_external_folders_and_parquet(tmp_path):
    found = list(external.rows(folders(tmp_path / "f", {"a": 1, "b": 1}), ["a", "b"]))
    assert [(r.path, r.label, r.sources) for r in found] == [("a/0000.png", "a", None), ("b/0001.png", "b", None)]
    data = (tmp_path / "f/a/0000.png").read_bytes()
    (tmp_path / "p").mkdir()
    columns = {"image": [data, b"", None], "label": ["a", "b", "b"], "sources": [["x", "y"], None, []]}
    schema = pa.schema([("image", pa.binary()), ("label", pa.string()), ("sources", pa.list_(pa.string()))])
    pq.write_table(pa.table(columns, schema=schema), tmp_path / "p/one.parquet")
    found = list(external.rows(tmp_path / "p", ["a", "b"]))
    assert [(r.path, r.sources) for r in found] == [
        ("one.parquet#0", ("x", "y")),
        ("one.parquet#1", None),
        ("one.parquet#2", ()),
    ]
    assert pixels(found[0]).shape == (16, 16)
    for row in found[1:]:
        with pytest.raises(Unreadable), row.read():
            pass


def test_external_images_that_do_not_fit(tmp_path):
    def told(what: str, path: Path) -> None:
        with pytest.raises(DataError, match=what) as caught:
            list(external.rows(path, ["a"]))
        assert "\n" not in str(caught.value)

    told("does not exist", tmp_path / "none")
    told("label 'z'.*one of a", folders(tmp_path / "f", {"z": 1}))
    (tmp_path / "empty").mkdir()
    told("no class folders", tmp_path / "empty")
    (tmp_path / "p").mkdir()
    (tmp_path / "p/x.parquet").write_bytes(b"junk")
    told("Parquet", tmp_path / "p")
    pq.write_table(pa.table({"image": [1], "label": ["a"]}), tmp_path / "p/x.parquet")
    told("bytes of an encoded file", tmp_path / "p")


def test_classes_are_in_the_order_of_their_numbers_or_names():
    assert rows.natural(["10", "9", "1"]) == ["1", "9", "10"]
    assert rows.natural(["b10", "b9"]) == ["b10", "b9"]
    assert rows.natural(["٣", "1"]) == ["1", "٣"]
