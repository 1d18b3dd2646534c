"""A project: a folder with dvc.yaml and params.yaml, versioned by git and DVC.

The texts of a new project are this repository's own files; the wheel carries them in tailforge/template. In a project the
code is a dependency that lies elsewhere: `.tailforge/code` is a link, not versioned, to the folder that holds the package
`pipeline`, and dvc.yaml names its files through it. So an upgrade of the package reruns what it touches, and paths and
hashes in dvc.lock are the same on every machine.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import pipeline
from flows import git
from flows.children import environment, is_checkout
from pipeline import config
from pipeline.core import work
from pipeline.errors import ConfigError, InputError

if TYPE_CHECKING:
    from tailforge.survey import Survey

CODE = Path(".tailforge/code")
FOLDERS = ("data/raw", "data/external", "data/lists")


def template(name: str) -> str:
    """The text of the file `name` of this repository, from the wheel or from a checkout."""
    here = Path(__file__).resolve().parent
    packed = here / "template" / name
    return (packed if packed.is_file() else here.parent / name).read_text(encoding="utf-8")


def stages() -> str:
    """The dvc.yaml of a project: this repository's, but that the code lies elsewhere and `-P` keeps Python to it.

    Without `-P` a module of the project's folder would be imported in place of ours (flows/children.py).
    """
    text = re.sub(r"(?m)^(\s+- )(pipeline/)", rf"\1{CODE}/\2", template("dvc.yaml"))
    return text.replace("python -m pipeline.stages", "python -P -m pipeline.stages")


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
            temporary = link.with_name(f".code.{os.getpid()}.{threading.get_ident()}")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(code)
            os.replace(temporary, link)
    return folder


def require_current(folder: Path) -> None:
    """Raise ConfigError where dvc.yaml is that of another version of Tailforge; one that calls none of its stages is let be."""
    current = template("dvc.yaml") if is_checkout(folder) else stages()
    theirs, ours = _stages(folder), yaml.safe_load(current)["stages"]
    if not any("pipeline.stages" in str(entry) for entry in theirs.values()):
        return
    if old := [name for name, entry in ours.items() if not _covers(theirs.get(name), entry)]:
        raise ConfigError(
            f"dvc.yaml is of another version of Tailforge: {', '.join(old[:3])}{' and more' if old[3:] else ''}",
            expected=f"the stages of {version_of('tailforge')}",
            remedy="run `tailforge upgrade`",
        )


def upgrade(folder: Path) -> list[str]:
    """Bring params.yaml, dvc.yaml and metrics.json of a project to this version; returns what was done, a line each.

    params.yaml and metrics.json are translated (tailforge/upgrading.py), dvc.yaml is laid anew where it differs. Raises
    InputError, before anything is written, where one of these files has changes that git does not have.
    """
    from tailforge import tags, upgrading

    opened(folder)
    if tags.ask(folder, "status", "--porcelain", "--", "params.yaml", "dvc.yaml", "metrics.json"):
        raise InputError(
            "params.yaml, dvc.yaml or metrics.json has changes that are not committed",
            expected="none",
            remedy="commit them, so that git has both",
        )
    text, done = upgrading.params_text((folder / "params.yaml").read_text(encoding="utf-8"))
    try:
        require_current(folder)
        anew = False
    except ConfigError:
        anew = True
    if done:
        work.write(folder / "params.yaml", text)
    if anew:
        work.write(folder / "dvc.yaml", stages())
    done += ["dvc.yaml: laid anew"] if anew else []
    done += upgrading.metrics_file(folder / "metrics.json")
    return [*done, "see `git diff`, then: tailforge run"] if done else ["this project is up to date with this version"]


def _stages(folder: Path) -> dict[str, Any]:
    """The stages of dvc.yaml. Raises ConfigError."""
    try:
        value = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        return {str(name): entry for name, entry in value.items()}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder / 'dvc.yaml'}: {error}", expected="stages of DVC", remedy="`git checkout dvc.yaml`"
        ) from None


def _covers(theirs: Any, ours: dict[str, Any]) -> bool:
    """Whether a stage of the project runs our command on our dependencies; it may have more of these."""
    if not isinstance(theirs, dict):
        return False
    return theirs.get("cmd") == ours["cmd"] and set(map(str, ours["deps"])) <= set(map(str, theirs.get("deps") or ()))


@contextmanager
def alone(folder: Path, verb: str) -> Iterator[int]:
    """Wait until no other process does the same (run | release) in this project; yields the descriptor of the lock.

    The lock is the kernel's: a death frees it, whatever stands in the file. Who is handed the descriptor holds it too.
    """
    file = folder / ".tailforge" / f"{verb}.lock"
    with work.storage(file):
        file.parent.mkdir(exist_ok=True)
        stream = open(file, "a", encoding="utf-8")  # noqa: SIM115 - closed below; what the block raises is no fault of this file
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another `tailforge {verb}` works in {folder.absolute()}: waiting for its end", file=sys.stderr, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream.fileno()


def init(path: Path, data: Path) -> Survey:
    """Lay a project at `path` for the images in `data`; returns what was read off the data.

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
    split = config.Split()
    read = survey.survey(data, split=split)
    values, groups = read.values, read.groups
    if groups is not None and groups.parent != data:  # a copy where DVC sees it
        values["data.groups"] = f"data/lists/{groups.name}"
    else:
        groups = None
    lay(path, values, str(data), groups)
    return read


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
            work.write(building / "params.yaml", settings.initial(values))
            work.write(building / "dvc.yaml", stages())
            work.write(building / "README.md", _readme(path.name, data))
        _run(building, "git", "init", "--quiet")
        _run(building, sys.executable, "-P", "-m", "dvc", "init", "--quiet")
        work.write(building / ".dvc" / "config", template(".dvc/config"))
        _run(building, "git", "add", "--all")
        _run(building, "git", *git.identity(building), "commit", "--quiet", "--message", "New project")
        os.replace(building, path)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    opened(path)


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(f"`{' '.join(command[-4:])}` failed: {done.stderr or done.stdout}", remedy="see `tailforge doctor`")


def _readme(name: str, data: str) -> str:
    return f"""# {name}

Do synthetic images help a classifier on the rare classes of `{data}`, by how much, and how sure is that?

- `tailforge run` brings everything up to date and prints the verdict; a second run does only what changed.
- `params.yaml` holds the settings, `tailforge settings` explains all there are; `tailforge run -S key=value` changes one.
  `dvc repro` and `dvc exp run -S` work too.
- `report/index.html` is the report, `metrics.json` the figures.
- `tailforge export FAMILY --out FOLDER` writes the accepted synthetic images as folders of PNG files.
- Each finished run is kept as a version of the dataset: a commit, a tag, a line in CHANGELOG.md;
  `tailforge releases` lists them, `tailforge diff v1 v2` compares two, `tailforge pull v2` writes the images of one.
- `dvc remote add --default NAME PLACE`, then `dvc push` and `git push --follow-tags` share data and versions.
"""
