"""A project: a folder with dvc.yaml and params.yaml, versioned by git and DVC.

The texts of a new project are this repository's own files; the wheel carries them in tailforge/template. In a project the
code is a dependency that lies elsewhere: `.tailforge/code` is a link, not versioned, to the folder that holds the package
`pipeline`, and dvc.yaml names its files through it. So an upgrade of the package reruns what it touches, and paths and
hashes in dvc.lock are the same on every machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import pipeline
from flows import git
from pipeline import work
from pipeline.errors import ConfigError, InputError

CODE = Path(".tailforge/code")
FOLDERS = ("data/raw", "data/external", "data/lists")


def template(name: str) -> str:
    """The text of the file `name` of this repository, from the wheel or from a checkout."""
    here = Path(__file__).resolve().parent
    packed = here / "template" / name
    return (packed if packed.is_file() else here.parent / name).read_text(encoding="utf-8")


def stages() -> str:
    """The dvc.yaml of a project."""
    return re.sub(r"(?m)^(\s+- )(pipeline/)", rf"\1{CODE}/\2", template("dvc.yaml"))


def opened(folder: Path) -> Path:
    """`folder` as a project that is ready to run: its link to the code is made or mended. Raises ConfigError."""
    for name in ("params.yaml", "dvc.yaml"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{(folder / name).absolute()} does not exist",
                expected="a project folder",
                remedy="run `tailforge init PATH --data FOLDER`, or change to the project",
            )
    code = Path(pipeline.__file__).resolve().parents[1]
    link = folder / CODE
    if code != folder.resolve() and not (link.is_symlink() and Path(os.readlink(link)) == code):
        with work.storage(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            temporary = link.with_name(f".code.{os.getpid()}")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(code)
            os.replace(temporary, link)
    return folder


def init(path: Path, data: Path) -> dict[str, Any]:
    """Lay a project at `path` for the images in `data`; returns the values that were read off the data.

    Nothing is at `path` unless all of it is: the project is laid beside it and moved. Raises InputError.
    """
    from tailforge import survey

    path, data = path.absolute(), data.absolute()
    if not data.is_dir():
        found = "is a file" if data.exists() else "does not exist"
        raise InputError(f"--data {data} {found}", expected="a folder with images", remedy="unpack archives first")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} is not empty", expected="a new or an empty folder", remedy="choose another PATH")
    if path.resolve().is_relative_to(data.resolve()):
        raise InputError(f"{path} lies inside the data {data}", expected="a folder outside", remedy="choose another PATH")
    if shutil.which("git") is None:
        raise InputError("git is not installed", expected="git on PATH", remedy="install git")
    split = yaml.safe_load(template("params.yaml"))["split"]
    values, groups = survey.survey(data, train_share=1.0 - split["test"] - split["val"])
    if groups is not None and groups.parent != data:  # a copy where DVC sees it
        values["data.groups"] = f"data/lists/{groups.name}"
    else:
        groups = None
    lay(path, values, str(data), groups)
    return values


def lay(path: Path, values: Mapping[str, Any], data: str, copied: Path | None = None) -> None:
    """Lay a project for the images called `data` at the new folder `path`; `copied` is a file for data/lists."""
    from tailforge import settings

    building = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with work.storage(path):
            building.mkdir(parents=True)
            for folder in FOLDERS:
                work.write(building / folder / ".gitkeep", "")
            if copied is not None:
                shutil.copyfile(copied, building / "data/lists" / copied.name)
            for name in (".gitignore", ".dvcignore", "data/.gitignore"):
                work.write(building / name, template(name))
            work.write(building / "params.yaml", settings.apply(template("params.yaml"), values))
            work.write(building / "dvc.yaml", stages())
            work.write(building / "README.md", _readme(path.name, data))
        _run(building, "git", "init", "--quiet")
        _run(building, sys.executable, "-m", "dvc", "init", "--quiet")
        work.write(building / ".dvc" / "config", template(".dvc/config"))
        _run(building, "git", "add", "--all")
        _run(building, "git", *git.identity(building), "commit", "--quiet", "--message", "New project")
        os.replace(building, path)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    opened(path)


def _run(folder: Path, *command: str) -> None:
    from flows.dvc import environment

    done = subprocess.run(
        command, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(f"`{' '.join(command[-4:])}` failed: {done.stderr or done.stdout}", remedy="see `tailforge doctor`")


def _readme(name: str, data: str) -> str:
    return f"""# {name}

Do synthetic images help a classifier on the rare classes of `{data}`, by how much, and how sure is that?

- `tailforge run` brings everything up to date and prints the verdict; a second run does only what changed.
- `params.yaml` holds all settings; `tailforge run -S key=value` changes one. `dvc repro` and `dvc exp run -S` work too.
- `report/index.html` is the report, `metrics.json` the figures.
- `tailforge export FAMILY --out FOLDER` writes the accepted synthetic images as folders of PNG files.
- Each finished run is kept as a version of the dataset: a commit, a tag, a line in CHANGELOG.md;
  `tailforge releases` lists them, `tailforge diff v1 v2` compares two, `tailforge pull v2` writes the images of one.
- `dvc remote add --default NAME PLACE`, then `dvc push` and `git push --follow-tags` share data and versions.
"""
