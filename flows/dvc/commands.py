"""Commands of DVC that are done at once: questions about a project, and its results to and from other places."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flows import children
from flows.dvc import locks

PROGRAMS = Path(__file__).with_name("programs")
DVC = "whole_lock"  # the program that is DVC's command line

_PASSWORD = re.compile(r"(://[^/:@\s]*:)[^/@\s]+@")


class DvcError(RuntimeError):
    """DVC itself refused; the message is its own."""


def stages(project: Path) -> list[str]:
    """Names of all stages in the order of dvc.yaml, which is topological (tests/test_dvc.py). Raises DvcError.

    DVC is asked once for each state of the project's YAML files: its start takes longer than the rest of a run that has
    nothing to do. The answer is kept in .tailforge/stages.json.
    """
    kept, read = project / ".tailforge" / "stages.json", {"dvc": version("dvc")}
    for file in sorted(project.glob("*.yaml")):
        read[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(kept.read_text(encoding="utf-8"))
        if isinstance(known, dict) and known.get("read") == read:
            return [str(name) for name in known["stages"]]
    names = run(project, DVC, "stage", "list", "--name-only").split()
    kept.parent.mkdir(exist_ok=True)
    partial = kept.with_name(f".stages.{os.getpid()}.partial")
    partial.write_text(json.dumps({"read": read, "stages": names}), encoding="utf-8")
    partial.replace(kept)
    return names


def cache(project: Path) -> Path:
    """The folder of the project's cache. Raises DvcError."""
    return (project / run(project, "cache").strip()).resolve()


def changed(project: Path, *stages: str, but: Collection[Path] = ()) -> list[str]:
    """The stages that would run, of all or of the named `stages`. Changes at the paths `but`, which stages read, do not count.

    Raises DvcError.
    """
    found: dict[str, list[Any]] = json.loads(run(project, DVC, "status", "--json", *stages))
    known = set(map(str, but))
    return [stage for stage, reasons in found.items() if any(_counts(reason, known) for reason in reasons)]


def _counts(reason: str | dict[str, dict[str, Any]], known: set[str]) -> bool:
    """Whether `reason`, as DVC gives it ("changed command", {"changed deps": {path: how}}), has more than paths of `known`."""
    return isinstance(reason, str) or any(what != "changed deps" or not at.keys() <= known for what, at in reason.items())


def share(project: Path, other: Path) -> None:
    """Make `other`, a second checkout of the project, use the cache of `project`, and put the results of its dvc.lock in place.

    It gets the local settings too (remotes, credentials). Raises DvcError.
    """
    local = project / ".dvc" / "config.local"
    if local.is_file():
        shutil.copy2(local, other / ".dvc" / "config.local")
    run(other, "share", str(project.absolute()))


def checkout(project: Path) -> None:
    """Put the results of dvc.lock in place, as far as the cache has them.

    Raises DvcError where other results lie there that no cache has.
    """
    run(project, DVC, "checkout", "--quiet", "--allow-missing")


def push(project: Path, *stages: str) -> None:
    """Send the results of the working tree, or of `stages` alone, to the default remote. Raises DvcError."""
    run(project, DVC, "push", "--quiet", *stages)


def pull(project: Path, stage: str, *, own: bool = False) -> None:
    """Fetch the results of other stages that `stage` reads (with `own`: its own results) and put them in place.

    Raises DvcError.
    """
    run(project, "pull", stage, "outs" if own else "deps")


def command(program: str, *arguments: str) -> list[str]:
    """The words that start a program of flows/dvc/programs."""
    return [sys.executable, "-P", str(PROGRAMS / f"{program}.py"), *arguments]


def run(project: Path, program: str, *arguments: str) -> str:
    """What a program of flows/dvc/programs prints in the folder `project`. Raises DvcError."""
    locks.forget_dead_processes(project, lambda line: print(line, file=sys.stderr))
    done = subprocess.run(
        command(program, *arguments), cwd=project, env=children.environment(), stdin=subprocess.DEVNULL, capture_output=True,
        text=True,
    )  # fmt: skip
    if done.returncode:
        raise DvcError(_said(done.stderr) or f"dvc {' '.join(arguments[:2])} failed")
    return done.stdout


def _said(errors: str) -> str:
    """One line of what DVC wrote to its standard error."""
    said = errors if "Traceback" not in errors else errors.strip().rpartition("\n")[2]
    said = _PASSWORD.sub(r"\1***@", said)  # of a remote's address
    if "dvc.lock'" in said:  # torn, by a bare `dvc repro` that was killed or by hand
        said += "; `git checkout dvc.lock` brings it back"
    return " ".join(said.split()).removeprefix("ERROR: ")
