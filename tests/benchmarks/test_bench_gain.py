"""The gain benchmark: its rows are those of the project's results, and other data sets' rows stay."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from benchmarks import gain
from pipeline.errors import InputError


def project(folder: Path, estimate: float, equivalent: float | None = None) -> Path:
    interval = {"estimate": estimate, "low": estimate - 0.01, "high": estimate + 0.02}
    metrics = {
        "verdict": "no_gain", "baseline": "augment", "generator": "vae",
        "gain": {"balanced_accuracy": interval, "tail_recall": interval},
    }  # fmt: skip
    if equivalent is not None:
        metrics["equivalent_real_images"] = {
            "curve": [[0, 0.8, 0.7, 0.9], [100, 0.9, 0.8, 1.0]], "real_images_per_class": equivalent, "low": 0.0, "high": 100.0
        }  # fmt: skip
    details = {
        "per_seed": {"augment": {"balanced_accuracy": [0.8, 0.9]}, "synthetic": {"balanced_accuracy": [0.82, 0.93]}},
        "choice": {"synthetic_fraction": 0.3, "labels": "soft"},
    }
    (folder / "data/evaluation").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "data/evaluation/details.json").write_text(json.dumps(details))
    return folder


def test_rows_are_those_of_the_project_and_other_data_sets_stay(tmp_path: Path) -> None:
    written = []
    for name, estimate in (("mnist", 0.01), ("digits", 0.02), ("mnist", 0.03)):
        gains, summary = gain.rows(name, project(tmp_path / f"{name}{estimate}", estimate))
        written = [
            gain.merged(tmp_path / "gain.csv", gain.GAIN, gains),
            gain.merged(tmp_path / "summary.csv", gain.SUMMARY, summary),
        ]
    with open(tmp_path / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [(r["dataset"], r["metric"], float(r["estimate"])) for r in rows]
    metrics = ("balanced_accuracy", "tail_recall")
    assert found == [("digits", m, 0.02) for m in metrics] + [("mnist", m, 0.03) for m in metrics]
    assert [r["value"] for r in written[0] if r["dataset"] == "mnist" and r["arm"] == "synthetic"] == ["0.82", "0.93"]
    text = gain.page(*written)
    assert "| mnist | **no_gain** | augment | vae, 0.3, soft | +3.0 [+2.0, +5.0] | +3.0 [+2.0, +5.0] | – |" in text
    assert "| synthetic | 0.875 | 0.820 0.930 |" in text and text.index("| digits |") < text.index("| mnist |")


@pytest.mark.parametrize(("equivalent", "said"), [(4.26, "4.3 [0, > 100]"), (0.0, "0 [0, > 100]"), (100.0, "> 100 [0, > 100]")])
def test_equivalent_real_images_are_a_row_and_a_column(tmp_path: Path, equivalent: float, said: str) -> None:
    gains, summary = gain.rows("mnist", project(tmp_path / "mnist", 0.01, equivalent))
    found = {row["metric"]: (row["estimate"], row["low"], row["high"]) for row in summary}
    assert found["equivalent_real_images_per_class"] == (equivalent, 0.0, 100.0)
    assert found["equivalent_curve_end"] == (100, 100, 100)
    other = gain.rows("digits", project(tmp_path / "digits", 0.02))  # without a curve
    every = [
        gain.merged(tmp_path / "gain.csv", gain.GAIN, gains + other[0]),
        gain.merged(tmp_path / "summary.csv", gain.SUMMARY, summary + other[1]),
    ]
    table = next(part for part in gain.page(*every).split("\n\n") if part.startswith("| data |")).splitlines()
    assert table[0].endswith("| equivalent real images |") and len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| digits ") and table[2].endswith("| – |")
    assert table[3].startswith("| mnist ") and table[3].endswith(f"| {said} |")


def test_a_rerun_stands_beside_the_first_run(tmp_path: Path) -> None:
    made = [
        gain.rows(name, project(tmp_path / name, x)) for name, x in (("digits@2", 0.05), ("digits", 0.02), ("digits@1", 0.03))
    ]
    every = [
        gain.merged(tmp_path / f"{i}.csv", columns, [row for pair in made for row in pair[i]])
        for i, columns in enumerate((gain.GAIN, gain.SUMMARY))
    ]
    text = gain.page(*every)
    assert text.index("| digits |") < text.index("| digits@2 |") and "## digits@1" in text
    assert (
        "- `digits@1`, the same with other seeds: +3.0 [+2.0, +5.0], within the interval of the first run, +2.0 [+1.0, +4.0]."
        in text
    )
    assert "- `digits@2`, the same with other seeds: +5.0 [+4.0, +7.0], outside the interval" in text


def test_a_rerun_has_another_seed_and_a_place_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    places = [gain.lay(name, None, ["real"]) for name in ("digits", "digits@7")]
    assert places[0] != places[1]
    first, again = (yaml.safe_load((place / "params.yaml").read_text()) for place in places)
    assert again.pop("seed") == 7 != first.pop("seed") and first == again
    for wrong in ("digits@", "digits@x", "letters"):
        monkeypatch.setattr("sys.argv", ["gain", wrong])
        with pytest.raises(SystemExit):
            gain.main()
        assert f"data set {wrong}; expected one of digits" in capsys.readouterr().err


def test_a_data_set_is_laid_with_its_list_and_all_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    source = tmp_path / "sets/small"
    for split in ("train", "test"):
        for label in "ab":
            (source / split / label).mkdir(parents=True)
            for i in range(3):
                Image.new("L", (8, 8), 40 * i + ord(label)).save(source / split / label / f"{split}{i}.png")
    (source / "list.json").write_text("[]")
    monkeypatch.setitem(
        gain.DATASETS, "small", gain.Dataset("small", "list.json", {"classifier.steps": 7, "arms.curve": [5, 20]})
    )
    place = gain.lay("small", tmp_path / "sets", ["real", "crt"])
    params = yaml.safe_load((place / "params.yaml").read_text())
    assert params["arms"]["real"] == ["real", "crt"] and params["arms"]["null_controls"] and params["classifier"]["steps"] == 7
    assert params["arms"]["curve"] == [5, 20]
    assert params["scarcity"]["kind"] == "ids" and (place / params["scarcity"]["ids"]).read_text() == "[]"
    monkeypatch.setitem(gain.DATASETS, "small", gain.Dataset("small"))
    again = yaml.safe_load((gain.lay("small", tmp_path / "sets", ["real"]) / "params.yaml").read_text())
    assert again["classifier"]["steps"] == 500 and again["scarcity"]["kind"] == "as_is"
    digits = yaml.safe_load((gain.lay("digits", None, ["real"]) / "params.yaml").read_text())
    assert digits["data"]["source"] == "digits" and digits["arms"]["seeds"] == 5
    with pytest.raises(InputError, match="TAILFORGE_DATASETS"):
        gain.lay("mnist", tmp_path / "sets", ["real"])
