"""The whole pipeline in a fresh copy of the repository: tiny settings, real digits, the flow and DVC for real."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from helpers.toy import ROOT, run_command

Command = Callable[..., subprocess.CompletedProcess[str]]
MAIN = (sys.executable, "-c", "from tailforge.cli import main; main()")
TINY: dict[str, object] = {
    "scarcity.largest": 20,
    "scarcity.ratio": 5.0,
    "generators": "[naive, flow_matching]",
    "flow_matching.steps": 20,
    "flow_matching.width": 16,
    "flow_matching.depth": 1,
    "flow_matching.solver_steps": 2,
    "flow_matching.likelihood_steps": 2,
    "vae.steps": 20,
    "vae.width": 16,
    "sample.fill_to": 20,
    "sample.shard_images": 100,
    "measure.seeds": 1,
    "measure.rows": 20,
    "arms.ensemble": "true",
    "judges.steps": 20,
    "judges.folds": 2,
    "judges.width": 8,
    "validate.bootstrap": 20,
    "classifier.steps": 20,
    "classifier.width": 8,
    "arms.seeds": 2,
    "arms.selection_seeds": 1,
    "arms.real": "[real, logit_adjustment]",
    "arms.synthetic_fractions": "[0.0, 0.5]",
    "arms.labels": "[soft]",
    "evaluate.bootstrap": 100,
}


def options(values: dict[str, object]) -> list[str]:
    return [word for key, value in values.items() for word in ("-S", f"{key}={value}")]


@pytest.fixture(scope="module")
def command(command: Command, warmed: dict[str, str]) -> Command:
    return partial(command, **warmed)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A fresh copy of the repository, committed."""
    folder = tmp_path_factory.mktemp("copy") / "repository"
    listed = command("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.splitlines()
    for name in listed:
        if (
            (ROOT / name).is_file()
            and not name.startswith((".venv/", "tests/"))
            and name not in ("dvc.lock", "metrics.json", "gains.csv")
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    command("git", "init", "--quiet", cwd=folder)
    command("git", "add", "--all", cwd=folder)
    command("git", "commit", "--quiet", "--message", "copy", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def finished(copied: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The copy after `tailforge run` with its own code and its own warm process, and what that printed."""
    return copied, run_command(*MAIN, "run", *options(TINY), cwd=copied, PYTHONPATH="")


def stages_that_ran(text: str) -> set[str]:
    return {line.split("Running stage '")[1].split("'")[0] for line in text.splitlines() if "Running stage '" in line}


def test_the_run_ends_in_a_verdict_and_leaves_no_dirt(
    finished: tuple[Path, subprocess.CompletedProcess[str]], command: Command
) -> None:
    folder, done = finished
    assert "no warm process" not in done.stderr
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["verdict"] in ("gain", "no_gain", "harm") and f"verdict: {metrics['verdict']}" in done.stdout
    assert set(metrics["generators"]) == {"naive", "flow_matching", "ensemble"}
    assert {"real", "logit_adjustment", "replay", "synthetic", "synthetic_unfiltered"} <= set(metrics["arms"])
    for arm in metrics["arms"]:
        assert arm in done.stdout
    for over in metrics["gain"].values():
        assert over["low"] <= over["estimate"] <= over["high"]
    report = folder / "report/index.html"
    assert str(report) in done.stdout and metrics["verdict"].replace("_", " ") in report.read_text().replace("_", " ").lower()
    assert (folder / "gains.csv").read_text().startswith("arm,metric,estimate,low,high\n")
    assert "released as v1 (dataset@v1.0.0)" in done.stdout
    assert not command("git", "status", "--porcelain", cwd=folder).stdout
    assert not (folder / ".tailforge/partial").exists() or not list((folder / ".tailforge/partial").rglob("*.*"))


def test_a_second_run_does_nothing(finished: tuple[Path, subprocess.CompletedProcess[str]], command: Command) -> None:
    folder, first = finished
    again = command(*MAIN, "run", cwd=folder)
    assert again.stdout.startswith("Everything is up to date") and not stages_that_ran(again.stderr)
    shown = first.stdout.partition("\nreleased as")[0].splitlines()
    assert again.stdout.splitlines()[1 : 1 + len(shown)] == shown and "this state is v1" in again.stdout
    assert not stages_that_ran(command("dvc", "repro", cwd=folder).stdout)


def test_a_familys_parameter_reruns_that_family_and_what_follows(
    finished: tuple[Path, subprocess.CompletedProcess[str]], command: Command, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
    before = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    settings = folder / "params.yaml"
    text = settings.read_text()
    assert "shrinkage: 0.2" in text
    settings.write_text(text.replace("shrinkage: 0.2", "shrinkage: 0.9"))
    ran = stages_that_ran(command("dvc", "repro", cwd=folder).stdout)
    assert ran == {f"{verb}@naive" for verb in ("fit", "sample", "validate", "measure", "train_synthetic")} | {
        "settings", "train_ensemble", "evaluate", "report",
    }  # fmt: skip
    after = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    assert all(before[name] == after[name] for name in before if name not in ran)
    settings.write_text(text)  # back again: the run cache gives all of it
    assert not stages_that_ran(command("dvc", "repro", cwd=folder).stdout) - {"evaluate", "report"}


def test_another_engine_reruns_nothing_and_gives_the_same_bytes(
    finished: tuple[Path, subprocess.CompletedProcess[str]], command: Command, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
    before = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    spread = ["-S", "engine.workers=2"]
    first = command(*MAIN, "run", "--no-release", *spread, cwd=folder)
    assert stages_that_ran(first.stderr) == {"settings"}  # with the same result
    assert command("dvc", "status", "--json", cwd=folder).stdout.strip() == "{}"
    forced = ["--force", "sample@naive", "--force", "train_real"]
    again = command(*MAIN, "run", "--no-release", *forced, *spread, cwd=folder)
    assert stages_that_ran(again.stderr) >= {"sample@naive", "train_real"} and "no warm process" not in again.stderr
    after = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    assert outs_of(after, "sample@naive", "data/pools") == outs_of(before, "sample@naive", "data/pools")
    assert outs_of(after, "train_real", "data/runs") == outs_of(before, "train_real", "data/runs")


def outs_of(stages: dict[str, Any], stage: str, folder: str) -> list[str]:
    return [out["md5"] for out in stages[stage]["outs"] if out["path"].startswith(folder)]


def test_editing_a_familys_file_reruns_that_family_alone(
    finished: tuple[Path, subprocess.CompletedProcess[str]], command: Command, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
    with open(folder / "pipeline/generators/naive.py", "a") as file:
        file.write("\n# edited\n")
    ran = stages_that_ran(command("dvc", "repro", cwd=folder).stdout)
    # evaluate asks every family for its traits
    assert ran == {"settings", "fit@naive", "sample@naive", "validate@naive", "measure@naive", "evaluate"}


@pytest.mark.parametrize(
    ("line", "file", "old", "new", "reruns"),
    [
        ("  tail: ", "pipeline/config.py", "tail: Share = 0.34", "tail: Share = 0.5", {
            "measure@naive", "measure@flow_matching",
        }),
        ("  bandwidth: ", "pipeline/generators/naive.py", "] = 0.3", "] = 0.4", {
            "fit@naive", "sample@naive", "validate@naive", "measure@naive",
        }),
    ],
    ids=["shared", "of a family"],
)  # fmt: skip
def test_a_changed_default_reruns_what_it_touches(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
    command: Command,
    tmp_path: Path,
    line: str,
    file: str,
    old: str,
    new: str,
    reruns: set[str],
) -> None:
    """Where params.yaml does not say the value; that it does not reruns nothing by itself."""
    folder = shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
    shown = (folder / "params.yaml").read_text().splitlines(keepends=True)
    (folder / "params.yaml").write_text("".join(other for other in shown if not other.startswith(line)))
    assert len((folder / "params.yaml").read_text().splitlines()) == len(shown) - 1
    assert stages_that_ran(command("dvc", "repro", cwd=folder).stdout) == {"settings"}
    text = (folder / file).read_text()
    assert text.count(old) == 1
    (folder / file).write_text(text.replace(old, new))
    ran = stages_that_ran(command("dvc", "repro", cwd=folder).stdout)
    assert ran == reruns | {"settings", "evaluate", "report"}


def test_families_are_compared_without_a_change_to_the_project(
    finished: tuple[Path, subprocess.CompletedProcess[str]], command: Command, tmp_path: Path
) -> None:
    folder = finished[0]
    before = command("git", "status", "--porcelain", cwd=folder).stdout
    tried = command(*MAIN, "bakeoff", "vae", "naive", "stylegan2", "--out", tmp_path, "-S", "data.image_size=9", cwd=folder)
    assert "stylegan2 failed: " in tried.stdout and "image_size" in tried.stdout and "vae" in tried.stdout
    with open(tmp_path / "bakeoff.csv", newline="") as file:
        rows = {row["family"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"vae", "naive", "stylegan2"} and rows["stylegan2"]["failed"] and not rows["stylegan2"]["cas"]
    for family in ("vae", "naive"):
        assert 0 <= float(rows[family]["cas"]) <= 1 and float(rows[family]["bits_per_dim"]) > 0 and rows[family]["machine"]
        with Image.open(tmp_path / f"bakeoff/digits-{family}.png") as picture:
            assert picture.width > picture.height > 100
    assert "| vae |" in (tmp_path / "bakeoff.md").read_text()
    assert command("git", "status", "--porcelain", cwd=folder).stdout == before
    assert command("dvc", "status", "--json", cwd=folder).stdout.strip() == "{}"
    again = command(*MAIN, "bakeoff", "naive", "--json", "--out", tmp_path, "-S", "data.image_size=9", cwd=folder)
    assert [row["family"] for row in json.loads(again.stdout)] == ["naive"]
    assert stages_that_ran(again.stderr) <= {"settings", "prepare"}  # which is told of the families, and makes the same of it


def test_a_generator_classifies_beside_the_classifier(
    finished: tuple[Path, subprocess.CompletedProcess[str]], command: Command, tmp_path: Path
) -> None:
    folder = finished[0]
    told = json.loads(command(*MAIN, "classify", "--with", "naive", "--json", cwd=folder).stdout)
    best = json.loads((folder / "data/runs/real/choice.json").read_text())["best_real_arm"]
    assert set(told) == {"naive", best, "agreement", "n"} and told["naive"] > 0.5
    Image.new("L", (8, 8), 90).save(tmp_path / "one.png")
    said = command(*MAIN, "classify", "--with", "naive", tmp_path, cwd=folder).stdout
    assert said.startswith(f"{tmp_path / 'one.png'}  naive: ") and f"{best}: " in said
    (tmp_path / "one.png").write_bytes(b"torn")
    torn = command(*MAIN, "classify", "--with", "naive", tmp_path / "one.png", cwd=folder, check=False)
    assert torn.returncode == 2 and "one.png" in torn.stderr and len(torn.stderr.splitlines()) == 1


def test_push_and_pull_through_a_local_remote(
    finished: tuple[Path, subprocess.CompletedProcess[str]], command: Command, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
    command("dvc", "remote", "add", "--default", "--local", "here", tmp_path / "remote", cwd=folder)
    command("dvc", "push", "--quiet", cwd=folder)
    clone = tmp_path / "clone"
    command("git", "clone", "--quiet", folder, clone, cwd=tmp_path)
    command("dvc", "remote", "add", "--default", "--local", "here", tmp_path / "remote", cwd=clone)
    command("dvc", "pull", "--quiet", cwd=clone)
    assert (clone / "report/index.html").read_bytes() == (folder / "report/index.html").read_bytes()
    assert command("dvc", "status", "--json", cwd=clone).stdout.strip() == "{}"


def test_an_experiment_with_other_settings(
    finished: tuple[Path, subprocess.CompletedProcess[str]], command: Command, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
    done = command("dvc", "exp", "run", "--name", "other", "-S", "evaluate.bootstrap=150", cwd=folder)
    assert stages_that_ran(done.stdout) == {"settings", "measure@naive", "measure@flow_matching", "evaluate", "report"}
    assert "other" in command("dvc", "exp", "list", "--name-only", cwd=folder).stdout.split()


def test_the_accepted_images_are_exported(
    finished: tuple[Path, subprocess.CompletedProcess[str]], command: Command, tmp_path: Path
) -> None:
    done = command(*MAIN, "export", "naive", "--out", tmp_path / "images", "--all", cwd=finished[0])
    pictures = list((tmp_path / "images").rglob("*.png"))
    assert f"{len(pictures)}  images in" in done.stdout and len(pictures) > 10
    with Image.open(pictures[0]) as picture:
        assert picture.size == (8, 8)


def test_a_finished_run_is_released_once(
    finished: tuple[Path, subprocess.CompletedProcess[str]], command: Command, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
    again = command(*MAIN, "run", "--json", cwd=folder)
    assert "this state is v1" in again.stderr and "verdict" in json.loads(again.stdout)
    assert len(command("git", "log", "--format=%h", cwd=folder).stdout.split()) == 2
    for verb in (("pull", "v1", "--generator", "naive"), ("export", "naive")):
        command(*MAIN, *verb, "--out", tmp_path / verb[0], cwd=folder)
    pictures = [sorted(file.read_bytes() for file in (tmp_path / verb).rglob("*.png")) for verb in ("pull", "export")]
    assert pictures[0] == pictures[1] != []


def test_own_data_from_init_to_verdict(tmp_path: Path, command: Command) -> None:
    datasets = os.environ.get("TAILFORGE_DATASETS")
    if not datasets:
        pytest.skip("TAILFORGE_DATASETS is not set")
    command("tar", "xf", Path(datasets, "wbc_bccd/wbc_bccd.tar"), cwd=tmp_path)
    shutil.copy(Path(datasets, "wbc_bccd/groups.json"), tmp_path)
    made = tmp_path / "cells"
    laid = command(*MAIN, "init", made, "--data", tmp_path / "wbc_bccd", cwd=tmp_path)
    own = {
        "generators": "[naive]",
        "data.image_size": 16,
        "flow_matching.patch": 1,
        "split.on_identical": "drop",
        "sample.fill_to": 30,
        "encoder.size": 32,  # `init` chose an encoder, since these images are large
        "frozen.steps": 20,
        "frozen.views": 1,
    }
    tiny = {key: value for key, value in TINY.items() if not key.startswith("scarcity")}
    assert "through tf_efficientnet_lite0.in1k" in laid.stdout
    done = command(*MAIN, "run", *options(tiny | own), cwd=made)
    assert "verdict: " in done.stdout and (made / "report/index.html").is_file()
    assert not command("git", "status", "--porcelain", cwd=made).stdout
    assert command("git", "tag", "--list", cwd=made).stdout.split()[-1] == "dataset@v1.0.0"
