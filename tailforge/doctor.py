"""`tailforge doctor` describes this machine and this folder. With `--verify` it checks the files of DVC's cache."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from pipeline.errors import InputError, TailforgeError
from tailforge import mounts, project

PACKAGES = ("tailforge", "torch", "torchvision", "diffusers", "zuko", "prefect", "dvc", "great-expectations")


def findings(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, finding) pairs, one line each."""
    yield "python", f"{platform.python_version()} at {sys.executable}"
    for package in PACKAGES:
        yield package, _version(package)
    yield from namesakes()
    yield "system", f"{platform.system()} {platform.machine()}"
    yield "cores", f"{len(os.sched_getaffinity(0))}"
    yield "bf16", _bf16()
    kind = mounts.network(folder)
    where = f" ({kind}, a network mount)" if kind else ""
    yield "disk", f"{shutil.disk_usage(folder).free / 1e9:.0f} GB free at {folder.absolute()}{where}"
    yield "git", _said("git", "--version") or "not installed: install git"
    is_project = all((folder / name).is_file() for name in ("params.yaml", "dvc.yaml"))
    yield (
        "project",
        f"{folder.absolute()}" if is_project else f"none in {folder.absolute()}: `tailforge init PATH --data FOLDER`",
    )
    if is_project:
        project.opened(folder)
        changes = _said("git", "status", "--porcelain", cwd=folder)
        yield "git state", "no repository" if changes is None else f"{len(changes.splitlines())} changed files"
        yield "dvc state", _dvc_state(folder)


def namesakes() -> Iterator[tuple[str, str]]:
    """A finding for each of our packages that another distribution installs too: one of the two is imported, or a mixture."""
    installed = packages_distributions()
    for name in ("pipeline", "flows"):
        if others := sorted(set(installed.get(name, [])) - {"tailforge"}):
            yield name, f"{', '.join(others)} has a package of this name too: give Tailforge an environment of its own"


def verified(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, finding) pairs: each damaged file of DVC's cache, which is removed, and the number of files that were hashed.

    The results in the working tree are left alone. If one is missing or changed too, DVC fetches it or its stage runs again.
    Raises InputError, and at the end TailforgeError if a file was damaged.
    """
    from flows import dvc

    project.opened(folder)
    try:
        hashed, damaged = dvc.verify(folder)
    except dvc.DvcError as error:
        raise InputError(str(error), remedy="see `dvc status`") from None
    for path, file in damaged:
        file.unlink()
        yield "damaged", f"{path}: {file} did not match its hash and was removed"
    yield "cache", f"{hashed} files hashed, {len(damaged)} damaged"
    if damaged:
        raise TailforgeError(
            f"{len(damaged)} damaged files were removed from the cache",
            remedy="run `dvc fetch` if a remote has them, or `tailforge run`",
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _bf16() -> str:
    import torch

    from pipeline.runtime import training

    where = training.device()
    with training.autocast("auto", where):
        used = torch.is_autocast_enabled(where.type)
    return f"{'used' if used else 'not used: slow here'} on {where.type}"


def _dvc_state(folder: Path) -> str:
    from flows import dvc

    if not (folder / ".dvc").is_dir():
        return "no repository: run `dvc init`"
    try:
        return "changed: `tailforge run`" if dvc.changed(folder) else "up to date"
    except dvc.DvcError as error:
        return f"error: {error}"


def _said(*command: str, cwd: Path | None = None) -> str | None:
    """The output of a command; None if it fails or is not installed."""
    try:
        done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
