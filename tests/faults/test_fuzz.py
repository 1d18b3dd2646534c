"""Torn and hostile input: each ends in one line or in a right result, and no code that it brings ever runs."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import struct
import subprocess
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from flows import dvc, git
from flows.dvc import commands
from helpers.toy import ROOT
from pipeline import config
from pipeline.core import images, weights
from pipeline.core.manifest import SCHEMA, Manifest
from pipeline.datasets import decode, export, external, lists, past, table
from pipeline.datasets.decode import Unreadable
from pipeline.errors import ConfigError, DataError, TailforgeError
from pipeline.generators import registry
from tailforge import difference, project, releases
from tailforge.settings import checked

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
Points = Callable[[int], None]


def fuzz(n: int) -> settings:
    """Always the same `n` examples; nothing is kept on disk."""
    return settings(
        max_examples=n, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@contextmanager
def one_line() -> Iterator[None]:
    """Either it goes well, or what a user reads is one line of printable text."""
    try:
        yield
    except TailforgeError as error:
        assert str(error) and len(str(error).splitlines()) == 1


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# --- values and tables of any kind

ODD_NAMES = ["", "a", "b", "../up", "/etc/passwd", "a\0b", "<script>", "a" * 5000, "\u202e"]
words = st.sampled_from(ODD_NAMES) | st.text(max_size=8)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), words, st.binary(max_size=8), st.just("real")
)  # fmt: skip


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3)


values = st.recursive(scalars, nested, max_leaves=4)
PNG = images.encode_png(np.zeros((1, 4, 4), np.uint8))
ODD = [PNG, PNG[:20], b"", None, images.encode_png(np.zeros((3, 5, 2), np.uint8))]


def of(elements: st.SearchStrategy[Any], kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
    """Columns of two values."""
    return st.lists(elements, min_size=2, max_size=2).map(lambda two: pa.array(two, kind))


columns = st.one_of(
    of(words | st.none(), pa.string()),
    of(st.sampled_from(ODD), pa.binary()),
    of(st.floats() | st.none(), pa.float64()),
    of(st.integers(-9, 9) | st.none(), pa.int64()),
    of(st.booleans() | st.none(), pa.bool_()),
    of(st.lists(words, max_size=2) | st.none(), pa.list_(pa.string())),
    of(st.none(), pa.null()),
)


@st.composite
def spoiled(draw: st.DrawFn, whole: pa.Table) -> bytes:
    """`whole` with some columns of other kinds or gone, as Parquet, now and then torn or with other bytes."""
    made = whole
    for name in draw(st.lists(st.sampled_from(whole.column_names), max_size=2, unique=True)):
        place = made.schema.get_field_index(name)
        made = made.remove_column(place) if draw(st.integers(0, 4)) == 0 else made.set_column(place, name, draw(columns))
    buffer = io.BytesIO()
    pq.write_table(made, buffer)
    return draw(damaged(buffer.getvalue())) if draw(st.integers(0, 3)) == 0 else buffer.getvalue()


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole`, cut or with some bytes changed."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def synthetic(n: int = 2) -> pa.Table:
    ids = [f"x-{i}" for i in range(n)]
    return Manifest.from_columns(
        sample_id=ids, image=[PNG] * n, label=["a", "b"], split=["train"] * n, group=ids, origin=["synthetic"] * n,
        generator=["naive"] * n, seed=range(n), sources=[[]] * n, pixel_hash=["h"] * n,
    ).table  # fmt: skip


ROWS = synthetic()
ACCEPTED = pa.table({"sample_id": ["x-0", "x-1"], "accepted": [True, False]})


@pytest.mark.fault(24, "manifests: other columns, types, nulls, NaN, odd and long names, bytes torn or changed")
def test_manifests(points: Points) -> None:
    @fuzz(120)
    @given(spoiled(ROWS))
    def read(data: bytes) -> None:
        with scratch() as folder, one_line():
            (folder / "train.parquet").write_bytes(data)
            rows = Manifest.read(folder / "train.parquet")
            assert rows.table.schema.equals(SCHEMA)
            pixels, targets = rows.training_tensors(["a", "b"], "a test")
            assert pixels.dtype == torch.uint8 and len(targets) == len(pixels) == len(rows)

    read()
    points(120)


@pytest.mark.fault(
    24, "pools and verdicts torn, of other forms or of another project: exported whole or not at all, and nowhere else"
)
def test_pools_and_verdicts(points: Points) -> None:
    @fuzz(120)
    @given(spoiled(ROWS), spoiled(ACCEPTED), st.booleans())
    def exported(pool: bytes, verdicts: bytes, everything: bool) -> None:
        with scratch() as folder:
            (folder / "pool").mkdir()
            (folder / "pool/part-00000.parquet").write_bytes(pool)
            (folder / "images.parquet").write_bytes(verdicts)
            with one_line():
                counts = export.export(folder / "pool", folder, folder / "out/new", everything=everything)
                assert sum(counts.values()) == len(list((folder / "out/new").rglob("*.png")))
            assert {path.name for path in folder.iterdir()} <= {"pool", "images.parquet", "out"}
            assert {path.name for path in (folder / "out").glob("*")} <= {"new"}

    exported()
    points(120)


@pytest.mark.fault(24, "params.yaml: any value at any place, keys gone or added, text cut or with other characters")
def test_settings(points: Points) -> None:
    places = [(name,) for name in PARAMS] + [(s, k) for s, v in PARAMS.items() if isinstance(v, dict) for k in v]

    @fuzz(150)
    @given(st.lists(st.tuples(st.sampled_from(places), values, st.integers(0, 5)), min_size=1, max_size=2))
    def structure(changes: list[tuple[tuple[str, ...], Any, int]]) -> None:
        changed: dict[str, Any] = {name: dict(v) if isinstance(v, dict) else v for name, v in PARAMS.items()}
        for place, value, kind in changes:
            parent = changed if len(place) == 1 else changed.get(place[0])
            if not isinstance(parent, dict):
                continue
            if kind == 0:
                parent.pop(place[-1], None)
            else:
                parent[place[-1] if kind > 1 else f"{place[-1]}x"] = value
        try:
            text = yaml.safe_dump(changed, allow_unicode=True)
        except yaml.YAMLError:
            return
        with scratch() as folder, one_line():
            (folder / "params.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
            params = config.read(folder / "params.yaml")
            for family in params.generators:
                registry.settings(params, family)

    short = yaml.safe_dump({"seed": 0, "data": PARAMS["data"], "generators": ["naive"]}).encode()

    @fuzz(150)
    @given(
        damaged(short)
        | st.sampled_from([b"&a [*a]", b"a: &a [*a, *a]", b"2001-99-99", b"!!python/object/apply:os.system [id]"])
    )
    def text(data: bytes) -> None:
        with scratch() as folder, one_line():
            (folder / "params.yaml").write_bytes(data)
            config.read(folder / "params.yaml")

    structure()
    text()
    points(300)


FORMS = [("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("TIFF", "F"),
         ("TIFF", "LAB"), ("BMP", "1"), ("WEBP", "RGBA")]  # fmt: skip


def encoded(kind: str, mode: str) -> bytes:
    grain = np.random.default_rng(0).integers(0, 255, (9, 7), dtype=np.uint8)
    picture = Image.fromarray(grain)
    picture = Image.fromarray(grain.astype(np.uint16) * 200) if mode == "I;16" else picture
    picture = picture.convert("RGB").convert(mode) if mode not in ("L", "I;16", "LAB") else picture
    if mode == "LAB":
        picture = Image.merge("LAB", [picture] * 3)
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


FILES = [encoded(kind, mode) for kind, mode in FORMS]


@pytest.mark.fault(16, "PNG, JPEG, TIFF, BMP and WebP of odd modes with bytes changed or cut, and huge declared sizes")
def test_image_files(points: Points) -> None:
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + FILES[0][24:29]
    huge = FILES[0][:12] + header + struct.pack(">I", zlib.crc32(header)) + FILES[0][33:]

    @fuzz(200)
    @given(
        st.sampled_from([*FILES, huge]).flatmap(damaged), st.sampled_from(["pad", "crop", "stretch"]), st.sampled_from([1, 3])
    )
    def decoded(data: bytes, resize: Any, channels: int) -> None:
        with decode.strict_pillow():
            try:
                with decode.opened(io.BytesIO(data)) as picture:
                    made = decode.bring_to_form(picture, 8, channels, resize)
            except Unreadable as reason:
                assert str(reason) and len(str(reason)) < 400
            else:
                assert made.shape == (channels, 8, 8) and made.dtype == np.uint8

    decoded()
    with pytest.raises(Unreadable, match="pixels"), decode.opened(io.BytesIO(huge)):
        pass
    points(201)


@pytest.mark.fault(17, "tables of images with any path, label, split and group: rows inside the folder, or one line")
def test_tables_and_lists(points: Points) -> None:
    record = st.fixed_dictionaries({"path": words, "label": words}, optional={"split": words, "group": words})

    @fuzz(80)
    @given(st.lists(record, max_size=3), st.booleans(), st.data())
    def listed(records: list[dict[str, str]], parquet: bool, data: st.DataObject) -> None:
        with scratch() as folder, one_line():
            (folder / "in").mkdir()
            file = folder / "in" / ("t.parquet" if parquet else "t.csv")
            if parquet:
                columns = {name: [r.get(name) for r in records] for name in ("path", "label", "split", "group")}
                buffer = io.BytesIO()
                pq.write_table(pa.table({name: pa.array(v, pa.string()) for name, v in columns.items()}), buffer)
                file.write_bytes(data.draw(damaged(buffer.getvalue())))
            else:
                lines = [",".join(["path", "label"]), *(f"{r['path']},{r['label']}" for r in records)]
                file.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
            described = config.Data.model_validate(
                PARAMS["data"] | {"source": "table", "path": str(folder / "in"), "table": file.name}
            )
            for row in table.rows(described):
                assert os.path.realpath(folder / "in" / row.path).startswith(os.path.realpath(folder / "in"))

    @fuzz(80)
    @given(values)
    def named(value: Any) -> None:
        with scratch() as folder, one_line():
            (folder / "groups.json").write_text(json.dumps(value, default=repr))
            names = lists.Names(["a.png", "b.png"], ["a", "b"], ["a", "b"], [None, "train"])
            assert len(lists.groups(folder / "groups.json", names, 2, [])) == 2
            assert len(lists.ids(folder / "groups.json", names, ["a", "b"], 2, [])) == 2

    listed()
    named()
    points(160)


@pytest.mark.fault(24, "external images in Parquet, the sides of the version before, dvc.lock: of other forms or damaged")
def test_what_others_wrote(points: Points) -> None:
    given_images = pa.table({"image": [PNG, PNG], "label": ["a", "b"], "sources": [["x"], None]})
    sides = pa.table({"version": ["now", "before"], "path": ["a", "b"], "sample_id": ["a", "b"], "pixel_hash": ["h", "i"],
                      "side": pa.array([0, 1], pa.int8())})  # fmt: skip
    lock = yaml.safe_dump({"schema": "2.0", "stages": {"a": {"cmd": "x", "outs": [{"path": "data/a", "md5": "0" * 32}]}}})

    @fuzz(60)
    @given(spoiled(given_images))
    def elsewhere(data: bytes) -> None:
        with scratch() as folder, one_line():
            (folder / "made.parquet").write_bytes(data)
            for row in external.rows(folder, ["a", "b"]):
                with suppress(Unreadable), row.read():
                    pass

    @fuzz(40)
    @given(spoiled(sides))
    def before(data: bytes) -> None:
        with scratch() as folder, one_line():
            (folder / past.FILE).write_bytes(data)
            found = past.read(folder / past.FILE, "settings", "data")
            assert found.table.column_names == past.ROWS.names

    @fuzz(60)
    @given(damaged(lock.encode()))
    def locked(data: bytes) -> None:
        with scratch() as folder:
            (folder / "dvc.lock").write_bytes(data)
            try:
                assert dvc.sweep(folder, ["a"]) == []
            except dvc.DvcError as error:
                assert len(str(error).splitlines()) == 1

    elsewhere()
    before()
    locked()
    points(160)


# --- releases, which come with git from anywhere

INTERVAL = {"estimate": 0.01, "low": 0.0, "high": 0.02}
RELEASE: dict[str, Any] = {
    "version": 1, "tailforge": "0.2.0", "verdict": "gain", "generator": "naive", "baseline": "augment",
    "gain": {"balanced_accuracy": INTERVAL, "tail_recall": None}, "classes": {"naive": {"cat": {"made": 2, "accepted": 1}}},
    "outs": {"data/pools/naive": "0" * 32 + ".dir", "data/checked/naive": "1" * 32 + ".dir"},
}  # fmt: skip
FIGURES = {
    "arms": {"augment": {"balanced_accuracy": INTERVAL}, "synthetic": {"balanced_accuracy": INTERVAL, "tail_recall": None}}
}
HOSTILE = [b"[" * 100_000, b'{"version": 1' + b"0" * 5000 + b"}", b'{"verdict": "\\ud800"}', b"\xff\xfe", b"", b"null", b"NaN"]
TAGS = [
    b"@v1.0.0", b"@v2.0.0", b"@v01.0.0", b"@v999999999999.0.0", b"@v" + b"9" * 5000 + b".0.0", "@v\u0663.0.0".encode(),
    "@v3.0.0\u2028x".encode(), b"@v3.0.0\x85", b"@v4.0.0\xff", b"@v-1.0.0", b"",
    b"#prod#1", b"#prod!#2", b"#prod#" + b"7" * 5000, b"#prod#03", "#prod#\u0664".encode(),
]  # fmt: skip


@st.composite
def spoiled_json(draw: st.DrawFn, whole: Any) -> bytes:
    """`whole` with values of any kind at some places, or keys gone; now and then torn, or something else."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(HOSTILE) | damaged(json.dumps(whole).encode()))
    made = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(0, 2))):
        at = made
        while isinstance(at, dict) and at:
            key = draw(st.sampled_from(sorted(at)))
            if not isinstance(at[key], dict) or draw(st.integers(0, 2)) == 0:
                kind = draw(st.integers(0, 4))
                value = at.pop(key)
                if kind:
                    at[key if kind > 1 else draw(words)] = draw(values | st.sampled_from([value, "\x1b[2J", "a\nb"]))
                break
            at = at[key]
    return json.dumps(made, default=repr).encode()


def laid(folder: Path, files: Sequence[dict[str, bytes]], tags: Sequence[tuple[bytes, int]]) -> None:
    """A repository with a commit for each of `files`, the last one checked out, and tags `dataset…`: of a commit by its number,
    of a file where that is negative, of nothing where it is too high."""
    git.ask(folder, "init", "--quiet", "--initial-branch=main")
    stream = b""
    for number, own in enumerate(files):
        stream += b"commit refs/heads/main\nmark :%d\ncommitter a <a@b> %d +0000\ndata 1\nx" % (number + 1, number)
        stream += b"".join(b"\nM 100644 inline %s\ndata %d\n%s" % (name.encode(), len(d), d) for name, d in own.items()) + b"\n"
    subprocess.run(["git", "fast-import", "--quiet"], cwd=folder, input=stream, check=True)
    commits = git.ask(folder, "rev-list", "--reverse", "main").split()
    blob = git.ask(folder, "rev-parse", "main:release.json").strip()
    targets = {number: commit for number, commit in enumerate(commits)} | {-1: blob}
    packed = [b"%s refs/tags/dataset%s" % (targets.get(of, "0" * 39 + "1").encode(), name) for name, of in dict(tags).items()]
    (folder / ".git/packed-refs").write_bytes(
        b"".join(line + b"\n" for line in [f"{commits[-1]} refs/heads/main".encode(), *packed])
    )
    (folder / ".git/refs/heads/main").unlink(missing_ok=True)
    git.ask(folder, "reset", "--quiet", "--hard")


@pytest.mark.fault(
    24,
    "release.json, metrics.json and tags of others: releases, diff, pull and release say one line or a right result",
)
def test_releases_of_others(points: Points, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(project, "opened", lambda folder: folder)
    monkeypatch.setattr(commands, "cache", lambda folder: folder / "cache")
    monkeypatch.setattr(commands, "run", lambda *_: "")
    monkeypatch.setattr(releases, "_state", lambda folder: RELEASE["outs"])
    monkeypatch.setattr(difference, "_rows", lambda folder, release: {"cat": {"x-0": release.commit}})
    tag = st.tuples(st.sampled_from(TAGS[:2]) | st.sampled_from(TAGS), st.sampled_from([0, 0, 0, 1, -1, 9]))
    commit = st.fixed_dictionaries({"release.json": spoiled_json(RELEASE), "metrics.json": spoiled_json(FIGURES)})
    told = set[str]()

    @fuzz(120)
    @given(st.lists(commit, min_size=1, max_size=2), st.lists(tag, max_size=4))
    def read(files: list[dict[str, bytes]], named: list[tuple[bytes, int]]) -> None:
        def show() -> None:
            print(releases.table(releases.listed(folder)))
            told.add("listed")

        def compare() -> None:
            found = difference.difference(folder, "1", "latest")
            print(difference.text(found), json.dumps(found, ensure_ascii=False))
            told.add("compared")

        def fetch() -> None:
            releases.pull(folder, "latest", folder / "out")

        def make() -> None:
            made, _ = releases.make(folder)
            print(releases.told(made, False), json.dumps(made.json(), ensure_ascii=False))
            told.add("released")

        with scratch() as folder:
            laid(folder, files, named)
            for act in (show, compare, fetch, make):
                with one_line():
                    act()
            shown = capsys.readouterr().out
            shown.encode()
            assert "\x1b" not in shown

    read()
    assert told == {"listed", "compared", "released"}
    points(4 * 120)


@pytest.mark.fault(24, "CHANGELOG.md of any text: the line comes under its heading and nothing goes, or one line says why not")
def test_changes_of_others(points: Points) -> None:
    line = "- v7 (2026-01-01, gain): 1 images"
    lines = ["- v7 (x): old", "- v6 (x): older", "# Changes", "", " ", "\r", "\u2028", "\x0c"]
    parts = st.sampled_from([releases.HEADING, *lines]) | st.text(max_size=6)

    @fuzz(300)
    @given(st.lists(parts, max_size=8), st.sampled_from(["\n", "\n\n", "\r\n", ""]))
    def added(texts: list[str], between: str) -> None:
        text = between.join(texts)
        made = releases._with_line(text, line).split("\n")
        place = made.index(line)
        assert [own for own in made[:place] if own][-1] == releases.HEADING
        rest = Counter(own for own in made if own)
        assert not Counter(own for own in text.rstrip().split("\n") if own) - rest

    @fuzz(40)
    @given(st.binary(max_size=30), st.binary(max_size=30) | st.none())
    def others(committed: bytes, file: bytes | None) -> None:
        with scratch() as folder, one_line():
            laid(folder, [{"release.json": b"{}", "CHANGELOG.md": committed}], [])
            if file is not None:
                (folder / "CHANGELOG.md").write_bytes(file)
            assert "- v1 (" in releases._changes(folder, RELEASE)

    added()
    others()
    points(340)


# --- weights


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("ran",)


def evil_files() -> dict[str, bytes]:
    """Files that make a folder where somebody unpickles them."""
    saved, zipped = io.BytesIO(), io.BytesIO()
    torch.save({"weights": Evil()}, saved)
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil()))
        archive.writestr("../../out", "x")
    files = {f"pickle {n}": pickle.dumps(Evil(), protocol=n) for n in range(6)}
    files |= {"torch.save": saved.getvalue(), "a zip": zipped.getvalue(), "torch.save before 1.6": pickle.dumps([Evil()], 2)}
    card = json.dumps({"__metadata__": {"card": pickle.dumps(Evil(), 0).decode()}}).encode()
    return files | {"a pickle for a card": struct.pack("<Q", len(card)) + card, "numpy": b"\x93NUMPY" + pickle.dumps(Evil())}


@pytest.mark.fault(
    15, "pickles of every protocol, torch.save, zip archives and a pickle for a card as model files: refused, nothing runs"
)
@pytest.mark.parametrize("name", list(evil_files()))
def test_a_model_file_runs_no_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: Points) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(evil_files()[name])
    with pytest.raises(DataError, match="weights written by tailforge") as caught:
        registry.family("naive").load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1 and not (tmp_path / "ran").exists()
    points(1)


@pytest.mark.fault(15, "headers and bytes of safetensors changed or cut: refused, or the same tensors' form")
def test_weights(points: Points) -> None:
    with scratch() as folder:
        weights.save(folder / "w", {"a": torch.zeros(2, 3), "b": torch.ones(4)}, {"family": "naive", "n": 1})
        whole = (folder / "w").read_bytes()

    header = st.builds(
        lambda size, text: struct.pack("<Q", size) + text.encode(), st.integers(0, 2**64 - 1), st.text(max_size=40)
    )

    @fuzz(120)
    @given(damaged(whole) | header)
    def loaded(data: bytes) -> None:
        with scratch() as folder, one_line():
            (folder / "w").write_bytes(data)
            tensors, card = weights.load(folder / "w")
            assert isinstance(card, dict) and sum(t.numel() * t.element_size() for t in tensors.values()) <= len(data)

    loaded()
    points(120)


# --- what the program itself may call

FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "tarfile", "zipfile"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "np.load", "numpy.load"}
FORBIDDEN_CALLS |= {"pd.read_pickle", "os.system", "shutil.unpack_archive"}


def offences(source: str) -> list[str]:
    """Imports and calls that could run what a file holds, or unpack it to anywhere."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_IMPORTS]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in FORBIDDEN_IMPORTS else []
            found += [name for alias in node.names if (name := f"{node.module}.{alias.name}") in FORBIDDEN_CALLS]
        elif isinstance(node, ast.Call):
            found += [_called(node)] if ast.unparse(node.func) in FORBIDDEN_CALLS else []
            found += ["shell=True"] if any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in node.keywords) else []
    return found


def _called(node: ast.Call) -> str:
    """The name of a function; of torch's loader with that it reads tensors alone, where it says so."""
    alone = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
    return f"{ast.unparse(node.func)}{', weights only' if alone else ''}"


# A package's pickle of 2020, after its hash was checked: tests/encoders/test_pretrained.py has one with another hash refused.
ALLOWED = {str(ROOT / "pipeline/encoders/weights_files.py"): ["torch.load, weights only"]}


@pytest.mark.fault(15, "no pickle, eval, exec, torch.load, yaml.load or unpacking of archives in the sources")
def test_the_program_runs_nothing_from_files(points: Points) -> None:
    files = [file for package in ("pipeline", "flows", "tailforge") for file in (ROOT / package).rglob("*.py")]
    found = {str(file): offences(file.read_text(encoding="utf-8")) for file in files}
    assert {file: own for file, own in found.items() if own} == ALLOWED
    # A text that is searched and never run: what the search has to find.
    bad = "import pickle\nfrom joblib import load\nfrom torch import load, nn\neval('1')\ntorch.load(f)\n"
    bad += "subprocess.run(c, shell=True)\nmodel.eval()\n"
    assert offences(bad) == ["pickle", "joblib", "torch.load", "eval", "torch.load", "shell=True"]
    points(1)


def test_settings_that_are_whole_stay_readable() -> None:
    assert checked((ROOT / "params.yaml").read_text(encoding="utf-8")).seed == PARAMS["seed"]
    with pytest.raises(ConfigError, match=r"classifier\.lr=inf; expected a finite number"):
        checked((ROOT / "params.yaml").read_text(encoding="utf-8").replace("lr: 0.004 ", "lr: .inf "))
