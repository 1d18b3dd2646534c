"""Releases of older versions: read in today's words, by every command that reads one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.released import FIRST, OTHER, lay, run
from pipeline.core import work
from tailforge import difference, older, records, releases, tags

Command = Callable[..., subprocess.CompletedProcess[str]]
MAIN = (sys.executable, "-c", "from tailforge.cli import main; main()")
VALUE = {"estimate": 0.01, "low": 0.005, "high": 0.015}
BOTH = {"balanced_accuracy": VALUE, "tail_recall": VALUE}
# As tailforge 0.2 wrote them, but for the numbers.
METRICS: dict[str, Any] = {
    "arms": {"again": BOTH, "augment": BOTH, "synthetic": BOTH},
    "best_real_arm": "augment",
    "decomposition": {"new_content": VALUE | {"arm": "synthetic", "over": "replay"}},
    "gain": BOTH,
    "generator": "naive",
    "generators": {"naive": {"best_real_arm": "augment", "gain": BOTH, "pretrained": False, "verdict": "gain"}},
    "reference": {"random_forest": BOTH},
    "verdict": "gain",
    "worth": {"real_images_per_class": 3.0, "low": 0.0, "high": 9.0, "beyond": False},
}
RECORD: dict[str, Any] = {
    "best_real_arm": "augment",
    "classes": {"naive": {"cat": {"accepted": 2, "made": 3}}},
    "gain": BOTH,
    "generator": "naive",
    "outs": {
        "data/pools/naive": "0" * 32 + ".dir",
        "data/runs/naive": "1" * 32 + ".dir",
        "data/runs/real": "2" * 32 + ".dir",
        "data/verdicts/naive": "3" * 32 + ".dir",
        "metrics.json": "4" * 32,
    },
    "tailforge": "0.2.0",
    "verdict": "gain",
    "version": 7,
}


def test_metrics_of_the_last_version_have_todays_words() -> None:
    new = older.metrics(METRICS)
    assert set(new) == set(METRICS) - {"best_real_arm", "worth"} | {"baseline", "equivalent_real_images"}
    assert new["baseline"] == "augment" == new["generators"]["naive"]["baseline"]
    assert "best_real_arm" not in new["generators"]["naive"] and new["equivalent_real_images"] == METRICS["worth"]
    assert set(new["arms"]) == {"aa_control", "augment", "synthetic"} and new["arms"]["aa_control"] == BOTH
    for name in ("decomposition", "gain", "generator", "reference", "verdict"):
        assert new[name] == METRICS[name]


def test_what_is_in_todays_words_stays() -> None:
    new = older.metrics(METRICS)
    assert older.metrics(new) == new
    record = older.record(RECORD)
    assert older.record(record) == record


@pytest.mark.parametrize("found", [{"arms": None, "generators": [1]}, {"generators": {"naive": 3}}, {"outs": "all", "x": {}}])
def test_what_has_another_form_stays_as_it_is(found: dict[str, Any]) -> None:
    assert older.record(found) == found


def test_a_record_of_the_last_version_is_read_whole() -> None:
    found = records.read(records.Record, json.dumps(RECORD), "wrong")
    assert found["baseline"] == "augment" and "best_real_arm" not in found
    assert found["outs"]["data/checked/naive"] == "3" * 32 + ".dir" and "data/verdicts/naive" not in found["outs"]
    line = releases.line(found, "2026-01-02")
    assert "2 images of naive (cat 2); balanced accuracy +1.0 [+0.5, +1.5] points over augment" in line


def as_the_last_version(folder: Path) -> None:
    """Give the last release, its commit and its tags, the words of the last version."""

    def renamed(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
        return {names.get(name, name): value for name, value in values.items()}

    back = {new: old for old, new in older.KEYS.items()}
    record = json.loads((folder / "release.json").read_text())
    outs = {path.replace("data/checked/", "data/verdicts/"): md5 for path, md5 in record.pop("outs").items()}
    del record["metric"]
    work.write_json(folder / "release.json", renamed(record, back) | {"outs": outs})
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["arms"]["again"] = metrics["arms"]["synthetic"]
    work.write_json(folder / "metrics.json", renamed(metrics, back))
    tags.ask(folder, "commit", "--quiet", "--amend", "--no-edit", "--", "release.json", "metrics.json")
    for tag in tags.ask(folder, "tag", "--list").split():
        tags.ask(folder, "tag", "--force", "--annotate", "--message", "as it was", tag, "HEAD")


def test_a_release_of_the_last_version_is_listed_compared_and_pulled(tmp_path: Path, command: Command) -> None:
    folder = lay(tmp_path / "project", command)
    run(folder, command, FIRST, "gain", 0.02)
    before = releases.make(folder)[0]
    as_the_last_version(folder)
    assert "best_real_arm" in tags.ask(folder, "show", "dataset@v1.0.0:release.json")
    (old,) = releases.listed(folder)
    assert old.prod and old.record == {k: v for k, v in before.record.items() if k != "metric"}
    assert "gain" in releases.table([old]) and "balanced accuracy +0.020 [+0.015, +0.025]" in releases.table([old])
    assert set(releases.metrics(folder, old)["arms"]) == {"augment", "synthetic", "aa_control"}

    run(folder, command, OTHER, "harm", -0.01)
    assert releases.make(folder)[1] is True
    found = difference.difference(folder, "v1", "v2")
    assert found["classes"]["cat"]["kept"] == 2 and found["metrics"]["aa_control"]["balanced_accuracy"]["to"] is None
    assert difference.text(found).splitlines()[-2].startswith("v1: gain, naive over augment by +0.020")
    out = tmp_path / "images"
    command(*MAIN, "pull", "v1", "--out", out, cwd=folder)
    assert len(list(out.rglob("*.png"))) == 3
    shutil.rmtree(out)
