"""No module of a user's working folder takes the place of ours; the code of a checkout of ours is its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from flows import children, dvc, warm
from helpers.shadowing import shadow
from helpers.toy import ROOT, WAIT
from tailforge import project

Command = Callable[..., subprocess.CompletedProcess[str]]
TAILFORGE = (sys.executable, "-P", "-m", "tailforge")
SHIPPED = ("pipeline", "flows", "tailforge", "dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", ".dvc/config", "data")


@pytest.fixture
def laid(tmp_path: Path) -> Path:
    """A project for a few images, with a user's own modules."""
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(12):
            Image.effect_noise((8, 8), 60 + i).save(tmp_path / "images" / label / f"{label}{i}.png")
    folder = tmp_path / "project"
    project.init(folder, tmp_path / "images")
    shadow(folder)
    return folder


def test_a_run_in_a_folder_with_such_modules(toy: Path, command: Command) -> None:
    shadow(toy)
    done = command(*TAILFORGE, "run", "--no-release", "--force", "first", cwd=toy)
    assert "hello from first" in done.stderr and "verdict: no_gain" in done.stdout
    assert "no warm process" not in done.stderr and not (toy / "imported").exists()


def test_a_stage_by_dvc_alone_and_of_a_warm_process(laid: Path, command: Command) -> None:
    command("dvc", "repro", "prepare", cwd=laid)
    lines: list[str] = []
    with warm.process(laid, grace=WAIT):
        assert list(dvc.reproduce(laid, ["prepare"], force=["prepare"], log=lines.append)) == ["ran"]
    assert not [line for line in lines if "no warm process" in line], lines
    assert (laid / "data/prepared/train.parquet").is_file() and not (laid / "imported").exists()


def test_a_users_own_stage_imports_what_lies_beside_it(toy: Path) -> None:
    (toy / "own").mkdir()
    (toy / "own/stage.py").write_text("import beside\nprint(beside.VALUE)\n")
    (toy / "own/beside.py").write_text("VALUE = 'mine'\n")
    described = yaml.safe_load((toy / "dvc.yaml").read_text())
    described["stages"]["own"] = {"cmd": "python own/stage.py", "deps": ["own"]}
    (toy / "dvc.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    lines: list[str] = []
    assert list(dvc.reproduce(toy, ["own"], log=lines.append)) == ["ran"] and "mine" in lines


@pytest.fixture
def checkout(tmp_path: Path, command: Command) -> Path:
    """A checkout of ours beside the one that is installed; its stages say so."""
    folder = tmp_path / "checkout"
    for name in SHIPPED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        if name != "data":
            copy(ROOT / name, folder / name)
    for name in ("raw", "external", "lists"):
        (folder / "data" / name).mkdir(parents=True)
    warm = folder / "pipeline/runtime/warm_server.py"  # with nothing heavy to import
    warm.write_text(re.sub(r"(?s)^HEAVY = \(.*?\)", "HEAVY = ()", warm.read_text(), count=1, flags=re.M))
    main = folder / "pipeline/stages/__main__.py"
    main.write_text(main.read_text().replace("def main(", 'print("stage of", __file__, flush=True)\n\n\ndef main(', 1))
    command("git", "init", "--quiet", cwd=folder)
    command("dvc", "init", "--quiet", "--force", cwd=folder)
    return folder


def test_in_a_checkout_of_ours_its_own_code_runs(checkout: Path, command: Command) -> None:
    """As in the worktree of a scheduled run: its dvc.yaml depends on its own pipeline/."""
    own = f"stage of {checkout / 'pipeline/stages/__main__.py'}"
    assert own in command("dvc", "repro", "settings", cwd=checkout).stdout
    lines: list[str] = []
    with warm.process(checkout, grace=WAIT):
        assert list(dvc.reproduce(checkout, ["settings"], force=["settings"], log=lines.append)) == ["ran"]
    assert own in lines and not [line for line in lines if "no warm process" in line], lines
    project.require_current(checkout)


def test_what_a_checkout_is(tmp_path: Path) -> None:
    shadow(tmp_path)
    assert children.is_checkout(ROOT) and not children.is_checkout(tmp_path)
