"""The stage drift: on which rows generators are fitted, over versions, kills and repetitions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.digits_project import ROOT, params
from helpers.versions import DIGITS, first, noisy, version
from pipeline.config import Drift, Params, parse
from pipeline.core.images import encode_png
from pipeline.core.manifest import SCHEMA, Manifest
from pipeline.core.prepared import Prepared
from pipeline.errors import ConfigError, DataError, LeakError
from pipeline.registry import ENCODERS
from pipeline.stages import drift, fit, sample

OUT = Path("data/drift")
FEW = {"permutations": 200}  # relabellings; alpha asks for 300


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(name: str, settings: Params | None = None) -> dict[str, Any]:
    drift.run(settings or params(drift=FEW), Path(name), OUT)
    found: dict[str, Any] = json.loads((OUT / "drift.json").read_text())
    return found


def contents(folder: Path = OUT) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def fitted_on() -> str:
    """The version whose train rows generators are fitted on."""
    rows = (OUT / "reference/train.parquet").read_bytes()
    return next(name for name in "abcd" if Path(name).exists() and Path(name, "train.parquet").read_bytes() == rows)


def versions() -> None:
    """a; b, a little more; c, more again; d, of which class 1 changed."""
    small = {name: first(n, classes=2) for name, n in (("a", 24), ("b", 26), ("c", 28))}
    small["d"] = small["c"] | {"1": np.concatenate([small["c"]["1"], noisy(DIGITS["1"][50:56])])}
    for name, images in small.items():
        version(Path(name), images)


def test_a_first_version_is_its_own_reference() -> None:
    versions()
    assert run("a")["decision"] == "same" and fitted_on() == "a"
    assert contents(OUT / "before") == contents(OUT / "reference")
    assert json.loads((OUT / "reference/dataset.json").read_text()) == {"classes": ["0", "1"], "image_size": 8, "channels": 1}


def test_the_reference_stays_byte_for_byte_until_something_drifted() -> None:
    versions()
    run("a")
    reference = contents(OUT / "reference")
    for name, came in (("b", 4), ("c", 8)):
        found = run(name)
        assert (found["decision"], found["came"]) == ("reuse", came) and contents(OUT / "reference") == reference
    found = run("d")
    assert found["decision"] == "retrain" and fitted_on() == "d" and found["classes"][1]["before"] == 24
    assert contents(OUT / "before") == reference
    assert run("d") == found


def test_the_same_version_again_is_decided_as_the_first_time() -> None:
    """As with --force: it is not compared with itself, so that the report keeps saying why."""
    versions()
    for name in ("a", "b", "d"):
        run(name)
        once = contents()
        run(name)
        assert contents() == once


def test_other_settings_on_the_same_version_are_decided_anew_and_back_again() -> None:
    versions()
    run("a")
    run("b")
    once = contents()
    assert run("b", params(drift={**FEW, "retrain": "always"}))["decision"] == "retrain" and fitted_on() == "b"
    run("b")
    assert contents() == once


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import pyarrow.dataset, scipy.stats  # as `statistics` here and not in each child: they take seconds
from helpers.digits_project import params
from pipeline.encoders import statistics
from pipeline.stages import drift

version, left = Path(sys.argv[1]).absolute(), 0

def counting(call):
    def counted(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return counted

settings, here = params(drift={"permutations": 200}), Path.cwd()
for left in range(40):
    place = here / f"killed-{left:02d}"
    shutil.copytree(here / "first", place / "data")
    os.chdir(place)
    child = os.fork()
    if not child:
        os.replace, shutil.rmtree, shutil.copyfile = map(counting, (os.replace, shutil.rmtree, shutil.copyfile))
        drift.run(settings, version, Path("data/drift"))
        os._exit(0)
    if not os.waitpid(child, 0)[1]:
        break
"""


@pytest.mark.parametrize("name", ["b", "d"])
@pytest.mark.fault(1, "drift, killed by SIGKILL at any rename, removal and copy")
def test_a_stage_killed_at_any_rename_ends_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By SIGKILL at each rename, removal and copy in turn; a process that is killed once leaves its temporary files too."""
    versions()
    run("a")
    shutil.copytree("data", "first")
    run(name)
    expected = contents()
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    subprocess.run([sys.executable, "-c", KILLED, name], env=environment, check=True)
    places = sorted(tmp_path.glob("killed-*"))
    assert 10 <= len(places) < 40
    for place in places:
        monkeypatch.chdir(place)
        run(str(tmp_path / name))
        assert contents() == expected, place


@pytest.mark.parametrize("name", ["a", "b"])
def test_masks_that_came_since_are_fitted_on(name: str) -> None:
    """With images that are all known, and with a few that came as well."""
    versions()
    run("a")
    run(name)
    mask = encode_png(np.full((1, 8, 8), 255, np.uint8))
    table = Prepared(Path(name)).train().table
    place = table.schema.get_field_index("region")
    table = table.set_column(place, table.schema.field(place), pa.array([mask, *[None] * (len(table) - 1)], pa.binary()))
    pq.write_table(table, f"{name}/train.parquet")
    found = run(name)
    assert (found["decision"], found["reasons"]) == ("retrain", [{"why": "regions", "value": 1}]) and fitted_on() == name


def test_a_row_that_stands_elsewhere_now_is_never_seen_by_a_generator_that_is_used() -> None:
    """The guard against leaks: a train row that went to test (that is, out of train) makes all fits new."""
    version(Path("a"), first(40))
    version(Path("b"), {name: own[1:] for name, own in first(41).items()})
    run("a")
    moved = set(Prepared(Path("a")).train().column("pixel_hash")) - set(Prepared(Path("b")).train().column("pixel_hash"))
    found = run("b")
    assert len(moved) == 4 and found["decision"] == "retrain"
    assert not moved & set(Prepared(OUT / "reference").train().column("pixel_hash"))


def test_what_is_re_used_was_fitted_on_rows_of_todays_train_and_its_sources_are_among_them() -> None:
    versions()
    settings = params(sample={"fill_to": 4})
    for name in ("a", "b"):
        run(name, settings)
    fit.run(settings, "naive", Path("b"), OUT / "reference", Path("model"), Path("fit.json"))
    sample.run(settings, "naive", Path("b"), OUT / "reference", Path("model"), Path("pool"), Path("sample.json"))
    today, seen = Prepared(Path("b")).train(), Prepared(OUT / "reference").train()
    assert set(seen.column("sample_id")) < set(today.column("sample_id"))
    sources = {source for row in Manifest.read(Path("pool")).table["sources"].to_pylist() for source in row}
    assert sources == set(seen.column("sample_id"))


def test_a_reference_with_a_test_row_raises() -> None:
    versions()
    run("a")
    rows = Manifest.read(OUT / "reference/train.parquet").table.to_pylist()
    rows[0]["split"] = "test"

    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), OUT / "reference/train.parquet")
    with pytest.raises(LeakError, match="test"):
        fit.run(params(), "naive", Path("a"), OUT / "reference", Path("model"), Path("fit.json"))


@pytest.mark.fault(6, "a torn decision on drift, a lost reference")
def test_a_torn_decision_is_said_and_a_lost_reference_is_fitted_anew() -> None:
    versions()
    run("a")
    (OUT / "drift.json").write_text("{")
    with pytest.raises(DataError, match=r"drift\.json.*dvc checkout"):
        run("b")
    shutil.rmtree(OUT)
    assert run("b")["decision"] == "same" and fitted_on() == "b"


# Another encoder


def test_an_encoder_of_another_package_is_taken_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of the project knows `brightness`: its entry point does."""
    versions()
    with pytest.raises(
        ConfigError, match=r"drift\.encoder='brightness'; expected one of small, statistics, pixels, thumbnails, pretrained;"
    ):
        parse(Drift, params().drift.model_dump() | {"encoder": "brightness"}, "drift")
    point = EntryPoint("brightness", "helpers.brightness:Brightness", "tailforge.encoders")
    monkeypatch.setattr(ENCODERS, "outside", {"brightness": point})
    found = {}
    for name in ("brightness", "statistics"):
        shutil.rmtree(OUT, ignore_errors=True)
        settings = params(drift={**FEW, "encoder": name})
        run("a", settings)
        found[name] = run("d", settings)
        assert found[name]["settings"]["encoder"] == name
    statistics = [[row["statistic"] for row in one["classes"]] for one in found.values()]
    assert np.isfinite(statistics).all() and statistics[0] != statistics[1]


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        (
            "small",
            "",
            r"drift\.encoder='small': this encoder learns from train rows; expected .*; set drift\.encoder: statistics",
        ),
        ("odd", "collections:Counter", r"encoder odd of collections is <class 'collections.Counter'>; expected a subclass"),
        ("gone", "collections:Nothing", r"encoder gone of collections cannot be imported"),
    ],
)
def test_what_drift_cannot_ask_for_features_is_one_line(
    name: str, place: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions()
    monkeypatch.setattr(ENCODERS, "outside", {name: EntryPoint(name, place, "tailforge.encoders")} if place else {})
    with pytest.raises(ConfigError, match=message) as caught:
        run("a", params(drift={**FEW, "encoder": name}))
    assert "\n" not in str(caught.value) and not OUT.exists()
