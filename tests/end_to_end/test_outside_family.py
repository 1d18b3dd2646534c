"""A family of another package: built, installed and run through a whole project, without a change to a file here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from helpers.toy import ROOT

Command = Callable[..., subprocess.CompletedProcess[str]]
MAIN = (sys.executable, "-c", "from tailforge.cli import main; main()")
LAY = "from pathlib import Path; from tailforge import project; project.lay(Path('project').absolute(), {}, 'digits')"
PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "outside"
version = "1.0"
[project.entry-points."tailforge.generators"]
repeated = "outside.repeated:Repeated"
"""
FAMILY = '''\
"""Train images again, with noise."""

from typing import Annotated

import torch
from pydantic import Field

from pipeline.generators import GenerativeModel, Section, Traits, noise


class RepeatedConfig(Section):
    spread: Annotated[float, Field(ge=0.0)] = 0.05
    """standard deviation of the noise; images lie in [-1, 1]"""


class Repeated(GenerativeModel):
    traits = Traits(density="implicit", likelihood="none")
    name = "repeated"
    Config = RepeatedConfig

    def build(self):
        self.state = {}

    def fit(self, images, labels, *, seed, folder=None):
        self.state = {"images": images, "labels": labels}
        return self

    def sample(self, labels, seeds):
        own = [self.state["images"][self.state["labels"] == label] for label in labels]
        chosen = torch.stack([images[seed % len(images)] for images, seed in zip(own, seeds)])
        return (chosen + self.config.spread * noise(seeds, self.shape)).clamp(-1, 1)

    def tensors(self):
        return self.state

    def restore(self, tensors):
        self.state = tensors
'''
TINY = {
    "generators": "[repeated]", "scarcity.largest": 20, "scarcity.ratio": 5.0, "repeated.spread": 0.1, "sample.fill_to": 20,
    "measure.seeds": 1, "measure.rows": 20, "judges.steps": 20, "judges.folds": 2, "judges.width": 8, "validate.bootstrap": 20,
    "classifier.steps": 20, "classifier.width": 8, "arms.seeds": 2, "arms.selection_seeds": 1, "arms.real": "[real]",
    "arms.synthetic_fractions": "[0.0, 0.5]", "arms.labels": "[hard]", "evaluate.bootstrap": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A folder into which the package is installed from its wheel, as another environment would have it."""
    place = tmp_path_factory.mktemp("outside")
    source, target = place / "source", place / "installed"
    (source / "outside").mkdir(parents=True)
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "outside/__init__.py").write_text("")
    (source / "outside/repeated.py").write_text(FAMILY)
    command(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place, source, cwd=place)
    [wheel] = place.glob("*.whl")
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    command(sys.executable, *install, "--target", target, wheel, cwd=place)
    return target


def stages_that_ran(text: str) -> set[str]:
    return {line.split("Running stage '")[1].split("'")[0] for line in text.splitlines() if "Running stage '" in line}


def test_a_family_of_another_package_goes_through_a_whole_project(package: Path, tmp_path: Path, command: Command) -> None:
    folder, path = tmp_path / "project", f"{package}{os.pathsep}{ROOT}"
    command(sys.executable, "-c", LAY, cwd=tmp_path)
    options = [word for key, value in TINY.items() for word in ("-S", f"{key}={value}")]
    refused = command(*MAIN, "run", *options, cwd=folder, check=False)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "repeated" in refused.stderr

    done = command(*MAIN, "run", "--no-release", *options, cwd=folder, PYTHONPATH=path)
    assert "no warm process" not in done.stderr and "verdict: " in done.stdout
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["generators"]) == {"repeated"}
    assert yaml.safe_load((folder / "params.yaml").read_text())["repeated"] == {"spread": 0.1}
    told = json.loads(command(*MAIN, "settings", "--json", cwd=folder, PYTHONPATH=path).stdout)
    [spread] = [setting for setting in told if setting["key"] == "repeated.spread"]
    assert spread["value"] == 0.1 and spread["default"] == 0.05 and spread["comment"].startswith("standard deviation")
    assert "nothing to run" in command(*MAIN, "run", "--no-release", cwd=folder, PYTHONPATH=path).stdout

    # DVC sees no package: that this one is another is seen by the hash that the stage `settings` wrote.
    before = json.loads((folder / "data/settings.json").read_text())
    with open(package / "outside/repeated.py", "a") as file:
        file.write("# another version\n")
    again = command(*MAIN, "run", "--no-release", cwd=folder, PYTHONPATH=path)
    assert stages_that_ran(again.stderr) == {
        "settings", "fit@repeated", "sample@repeated", "validate@repeated", "measure@repeated", "evaluate",
    }  # fmt: skip
    after = json.loads((folder / "data/settings.json").read_text())
    assert before.pop("code") != after.pop("code") and before == after
