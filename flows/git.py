"""The only caller of git: one process a command."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flows.children import environment


class GitError(RuntimeError):
    """git refused; the message is its own."""


def ask(folder: Path, *arguments: str, errors: str = "strict", **variables: str) -> str:
    """What git prints, decoded from UTF-8; `errors` as in bytes.decode. `variables` are added to git's environment.

    A signal that ends this process stops git by SIGTERM, so that it can remove its locks. Raises GitError.
    """
    try:
        process = subprocess.Popen(
            ["git", *arguments], cwd=folder, env=environment() | variables, text=True, encoding="utf-8", errors=errors,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        raise GitError("git is not installed") from None
    try:
        said, complaint = process.communicate()
    except UnicodeDecodeError as error:
        process.wait()
        raise GitError(f"what {' '.join(arguments)} prints is not UTF-8 ({error.reason})") from None
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.returncode:
        raise GitError(" ".join((complaint or said).split()) or f"{' '.join(arguments[:2])} failed")
    return said


def holds(folder: Path, revision: str) -> bool:
    """Whether the repository has `revision`."""
    try:
        ask(folder, "cat-file", "-e", revision)
    except GitError:
        return False
    return True


def precedes(folder: Path, earlier: str, later: str) -> bool:
    """Whether `later` is the commit `earlier` or descends from it. Raises GitError where one of them does not exist."""
    return not ask(folder, "rev-list", "--max-count=1", earlier, f"^{later}").strip()


def snapshot(folder: Path, files: Sequence[str], message: str) -> str:
    """Commit these files as they are now on top of HEAD, without a branch and without a change to the index; the hash.

    Raises GitError.
    """
    with tempfile.TemporaryDirectory() as temporary:
        own = {"GIT_INDEX_FILE": str(Path(temporary, "index"))}
        ask(folder, "read-tree", "HEAD", **own)
        ask(folder, "add", "--force", "--", *files, **own)
        tree = ask(folder, "write-tree", **own).strip()
    return ask(folder, *identity(folder), "commit-tree", tree, "-p", "HEAD", "-m", message).strip()


def identity(folder: Path) -> list[str]:
    """Options that give commits an author where the user has set none."""
    try:
        ask(folder, "config", "user.email")
    except GitError:
        return ["-c", "user.name=tailforge", "-c", "user.email=tailforge@localhost"]
    return []
