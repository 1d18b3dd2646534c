"""`tailforge doctor`: what this machine and this folder have."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tailforge import project

PACKAGES = ("tailforge", "torch", "torchvision", "diffusers", "zuko", "prefect", "dvc", "great-expectations")


def findings(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, finding) pairs, each one line."""
    yield "python", f"{platform.python_version()} at {sys.executable}"
    for package in PACKAGES:
        yield package, _version(package)
    yield "system", f"{platform.system()} {platform.machine()}"
    yield "cores", f"{len(os.sched_getaffinity(0))}"
    yield "bf16", _bf16()
    yield "disk", f"{shutil.disk_usage(folder).free / 1e9:.0f} GB free at {folder.absolute()}"
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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _bf16() -> str:
    import torch

    from pipeline import training

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
    """What a command prints; None where it fails or is not there."""
    try:
        done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
