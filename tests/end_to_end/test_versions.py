"""Versions of a folder of images under DVC: what is re-used, what is fitted anew, forced, pulled and measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from end_to_end.test_pipeline import MAIN, TINY, options, stages_that_ran
from helpers.toy import add_remote
from helpers.versions import DIGITS, noisy

Command = Callable[..., subprocess.CompletedProcess[str]]
MODEL = ["fit@naive", "sample@naive"]
OWN: dict[str, object] = {
    "generators": "[naive]",
    "drift.permutations": 300,
    "sample.fill_to": 10,
    "measure.rows": 0,
    "split.test": 0.3,
}


def put(raw: Path, label: str, images: np.ndarray, start: int = 0) -> None:
    (raw / label).mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images, start):
        Image.fromarray(image[0]).save(raw / label / f"{label}-{i:03d}.png")


@pytest.fixture(scope="module")
def command(command: Command, warmed: dict[str, str]) -> Command:
    return partial(command, **warmed)


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A project for three classes of 60 digits, after its first version has been run up to the pool, committed."""
    root = tmp_path_factory.mktemp("drift")
    for label in "012":
        put(root / "raw", label, DIGITS[label][:60])
    command(*MAIN, "init", root / "project", "--data", root / "raw", cwd=root)
    project = root / "project"
    shutil.copytree(root / "raw", project / "images")
    settings = {k: v for k, v in TINY.items() if not k.startswith("scarcity")} | OWN | {"data.path": "images"}
    script = "import sys; from pathlib import Path; from tailforge import settings; p = Path('params.yaml');"
    script += "p.write_text(settings.apply(p.read_text(), settings.parse(sys.argv[1:])))"
    command(sys.executable, "-c", script, *options(settings)[1::2], cwd=project)
    (project / ".gitignore").write_text((project / ".gitignore").read_text() + "/images/\n")
    command("dvc", "repro", *MODEL, cwd=project)
    command("git", "add", "--all", cwd=project)
    command("git", "commit", "--quiet", "--message", "first", cwd=project)
    return project


@pytest.fixture
def project(laid: Path, tmp_path: Path) -> Path:
    return shutil.copytree(laid, tmp_path / "project", symlinks=True)


def ran(project: Path, command: Command, *words: str) -> set[str]:
    return stages_that_ran(command("dvc", "repro", *words, *MODEL, cwd=project).stdout)


def decided(project: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project / "data/drift/drift.json").read_text())
    return found


def lock(project: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    return found


def test_a_few_more_images_re_use_the_generators_and_changed_ones_do_not(project: Path, command: Command) -> None:
    assert ran(project, command) == set() and decided(project)["decision"] == "same"
    before = lock(project)
    for label in "012":
        put(project / "images", label, DIGITS[label][60:66], 60)
    assert ran(project, command) == {"prepare", "drift"}
    assert decided(project)["decision"] == "reuse" and decided(project)["came"] > 6
    after = lock(project)
    assert all(after[stage] == before[stage] for stage in MODEL) and after["prepare"] != before["prepare"]
    put(project / "images", "2", noisy(DIGITS["2"][70:82]), 100)
    assert ran(project, command) == {"prepare", "drift", *MODEL}
    assert {r["class"] for r in decided(project)["reasons"] if r["why"] == "drift"} == {"2"}
    assert command("dvc", "status", "--json", *MODEL, cwd=project).stdout.strip() == "{}"


def test_forced_or_stopped_before_dvc_noted_it_the_result_is_the_same(project: Path, command: Command) -> None:
    first = (project / "dvc.lock").read_bytes()
    put(project / "images", "1", noisy(DIGITS["1"][70:80]), 100)
    ran(project, command)
    done = lock(project)
    for stage in ("prepare", "drift"):
        command("dvc", "repro", "--single-item", "--force", stage, cwd=project)
    assert lock(project) == done and decided(project)["decision"] == "retrain"
    (project / "dvc.lock").write_bytes(first)  # as a kill leaves it that comes after the stages and before DVC's note
    ran(project, command)
    assert lock(project) == done


def test_a_clone_pulls_the_state_and_goes_on_as_the_original_does(project: Path, command: Command, tmp_path: Path) -> None:
    for label in "012":
        put(project / "images", label, DIGITS[label][60:66], 60)
    ran(project, command)
    add_remote(project, tmp_path / "remote", file="config.local")
    command("git", "commit", "--quiet", "--all", "--message", "second", cwd=project)
    command("dvc", "push", "--quiet", cwd=project)
    clone = tmp_path / "clone"
    command("git", "clone", "--quiet", project, clone, cwd=tmp_path)
    add_remote(clone, tmp_path / "remote", file="config.local")
    shutil.copytree(project / "images", clone / "images")
    (clone / ".tailforge").mkdir()
    (clone / ".tailforge/code").symlink_to((project / ".tailforge/code").readlink())
    command("dvc", "pull", "--quiet", "--allow-missing", cwd=clone)
    assert ran(clone, command) == set() and decided(clone)["decision"] == "reuse"
    for place in (project, clone):
        put(place / "images", "0", DIGITS["0"][66:69], 66)
        assert ran(place, command) == {"prepare", "drift"}
    assert lock(project) == lock(clone)


def test_a_whole_run_on_a_re_used_generator(project: Path, command: Command) -> None:
    """Its sources are train rows of today, so that every stage takes its images; the run and the report say what was done."""
    for label in "012":
        put(project / "images", label, DIGITS[label][60:66], 60)
    done = command(*MAIN, "run", cwd=project)
    assert "generators re-used: " in done.stdout and "verdict: " in done.stdout
    assert not set(MODEL) & stages_that_ran(done.stderr) and "drift" in stages_that_ran(done.stderr)
    assert "Generators re-used: " in (project / "report/index.html").read_text()
    assert command("dvc", "status", "--json", cwd=project).stdout.strip() == "{}"
