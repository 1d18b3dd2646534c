"""The wheel, installed into an environment of its own, lays a project that reads its code through the installed package."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from helpers.toy import ROOT

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """The folder of the programs of an environment that has the wheel; its requirements it borrows from this one."""
    place = tmp_path_factory.mktemp("installed")
    source = place / "source"
    listed = command("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.splitlines()
    for name in listed:
        if not name.startswith(".venv/") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place, source, cwd=place)
    command(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    python = place / "venv/bin/python"
    own = Path(command(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).stdout.strip())
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    [wheel] = place.glob("*.whl")
    command(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=place)
    return place / "venv/bin"


def test_an_installed_tailforge_lays_a_project_and_prepares_its_data(installed: Path, tmp_path: Path, command: Command) -> None:
    data, made = tmp_path / "data", tmp_path / "made"
    for label in ("a", "b"):
        (data / label).mkdir(parents=True)
        for i in range(12):
            Image.effect_noise((16, 16), 60 + i).save(data / label / f"{label}{i}.png")
    variables = {"PYTHONPATH": "", "PATH": f"{installed}:/usr/bin:/bin"}
    command(installed / "tailforge", "init", made, "--data", data, cwd=tmp_path, **variables)
    assert (made / ".tailforge/code/pipeline/stages/prepare.py").is_file()
    assert not (made / ".tailforge/code").resolve().is_relative_to(ROOT)
    command(installed / "python", "-m", "dvc", "repro", "prepare", cwd=made, **variables)
    assert (made / "data/prepared/train.parquet").is_file()
    said = command("git", "status", "--porcelain", cwd=made).stdout
    assert said == "?? dvc.lock\n"
    assert (
        str(ROOT) not in (made / "dvc.lock").read_text()
        and ".tailforge/code/pipeline/datasets" in (made / "dvc.lock").read_text()
    )
