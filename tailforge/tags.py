"""The tags of the dataset, in the form of gto, and its commits.

    dataset@v3.0.0    version 3: gto takes semantic versions only, and each release is another set of images
    dataset#prod#1    the commit in use; the highest number counts, and `!` before it withdraws the promotion

tailforge/releases.py defines what a release is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flows import git
from pipeline.errors import InputError

_TAGS = re.compile(r"dataset(?:@v(?P<version>[1-9][0-9]{0,8})\.0\.0|#prod(?P<taken>!?)#(?P<count>[1-9][0-9]{0,8}))")


@dataclass(frozen=True)
class Tags:
    """{version: (commit, date)}, {number of a promotion: (commit, whether it withdraws the promotion)}."""

    versions: dict[int, tuple[str, str]] = field(default_factory=dict)
    promotions: dict[int, tuple[str, bool]] = field(default_factory=dict)

    @property
    def prod(self) -> str | None:
        """The commit in use."""
        commit, taken = self.promotions[max(self.promotions)] if self.promotions else ("", True)
        return None if taken else commit


def name(version: int) -> str:
    return f"dataset@v{version}.0.0"


def read(folder: Path) -> Tags:
    """The tags of this form; others are ignored. Raises InputError."""
    form, found = "%(refname:strip=2)%00%(*objectname)%00%(objectname)%00%(creatordate:iso-strict)", Tags()
    listed = ask(folder, "for-each-ref", f"--format={form}", "refs/tags/dataset*", errors="replace")
    for row in listed.split("\n")[:-1]:
        name, commit, own, date = row.split("\0")
        match = _TAGS.fullmatch(name)
        if match and match["version"]:
            found.versions[int(match["version"])] = (commit or own, date)
        elif match:
            found.promotions[int(match["count"])] = (commit or own, bool(match["taken"]))
    return found


def register(folder: Path, version: int, commit: str, message: str) -> None:
    """Tag a commit as a version."""
    _annotate(folder, name(version), commit, message)


def promote(folder: Path, number: int, commit: str, message: str) -> None:
    """Tag a commit as the one in use."""
    _annotate(folder, f"dataset#prod#{number}", commit, message)


def commit(folder: Path, files: Sequence[str], message: str) -> bool:
    """Commit `files`, and the contents of folders among them, as they are. Other changed or staged files stay as they are.
    Returns False, without a commit, if the last commit has them already."""
    if not ask(folder, "status", "--porcelain", "--untracked-files=all", "--", *files):
        return False
    listed = ("ls-files", "-z", "--exclude-standard")
    new = ask(folder, *listed, "--others", "--", *files).split("\0")[:-1]
    if new:
        ask(folder, "add", "--intent-to-add", "--", *new)
    known = ask(folder, *listed, "--cached", "--", *files).split("\0")[:-1]
    ask(folder, *git.identity(folder), "commit", "--quiet", "--only", "--message", message, "--", *known)
    return True


def text(folder: Path, revision: str, file: str) -> str | None:
    """The file of the project at `revision`; None if it did not exist."""
    place = f"{revision}:./{file}"
    return ask(folder, "show", place) if git.holds(folder, place) else None


def ask(folder: Path, *arguments: str, errors: str = "strict") -> str:
    """The output of git. Raises InputError."""
    try:
        return git.ask(folder, *arguments, errors=errors)
    except git.GitError as error:
        raise InputError(f"git: {error}", expected="a git repository that takes commits", remedy="see `git status`") from None


def _annotate(folder: Path, name: str, commit: str, message: str) -> None:
    ask(folder, *git.identity(folder), "tag", "--annotate", "--message", message, name, commit)
