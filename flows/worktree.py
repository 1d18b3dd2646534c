"""A worktree of the project's own repository, in which scheduled runs work: an edit in the project cannot enter a run.

    .tailforge/worktrees/NAME        the worktree, detached at the run's commit
    .tailforge/worktrees/NAME.lock   held while a run lasts; the lock is the kernel's, so a death frees it

The worktree stays from run to run: what a killed run had begun lies there (.tailforge/partial). It shares the project's
cache. A folder of images that the settings name by a relative path is a link to the project's: images are hashed, not
copied.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows import dvc, git, images

PLACE = Path(".tailforge/worktrees")
CODE = Path(".tailforge/code")  # as in tailforge/project.py
RUN_LOCK = Path(".tailforge/run.lock")  # of `tailforge run`, as in tailforge/project.py


@contextmanager
def opened(
    project: Path,
    log: Callable[[str], object] = print,
    *,
    revision: str = "HEAD",
    name: str = "scheduled",
    clear: Callable[[Path], object] = lambda folder: None,
) -> Iterator[Path]:
    """The worktree at `revision` of the project, with its results in place. Waits while another run works in it.

    `clear` is called first, to stop what a dead run may have left behind. Raises GitError, DvcError.
    """
    project = project.absolute()
    tree = project / PLACE / name
    with _alone(tree.with_name(f"{name}.lock"), log):
        head = git.ask(project, "rev-parse", revision).strip()
        folder = tree / git.ask(project, "rev-parse", "--show-prefix").strip()
        clear(folder)
        if folder.is_dir():
            dvc.settle(folder, log)
        if not (tree / ".git").exists():
            shutil.rmtree(tree, ignore_errors=True)
            git.ask(project, "worktree", "prune")
            git.ask(project, "worktree", "add", "--quiet", "--detach", "--force", str(tree), head)
        else:
            # Nobody else works here: a lock of git belongs to a process that was killed.
            (tree / git.ask(tree, "rev-parse", "--git-path", "index.lock").strip()).unlink(missing_ok=True)
            git.ask(tree, "checkout", "--quiet", "--force", "--detach", head)
            git.ask(tree, "clean", "--quiet", "--force", "-d")
        _link(project, folder)
        dvc.share(project, folder)
        yield folder


def keep(project: Path, revision: str) -> None:
    """Merge the commit `revision` of a run into the branch of the project, and put its results in place.

    Raises GitError, and changes nothing, while a run works in the project, where a file that the merge would write has changes
    that are not committed, and where branch and run have both changed a file. Raises DvcError where results lie in the project
    that no cache has; they stay.
    """
    with open(project / RUN_LOCK, "a", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise git.GitError("a run works in the project") from None
        try:
            git.ask(project, *git.identity(project), "merge", "--quiet", "--no-edit", revision)
        except git.GitError:
            if git.holds(project, "MERGE_HEAD"):
                git.ask(project, "merge", "--abort")
            raise
        dvc.checkout(project)


def _link(project: Path, folder: Path) -> None:
    """Link into the worktree what git does not have: the link to the code, and folders of images."""
    for place in [CODE, *(path for path in images.folders(folder) if not path.is_absolute())]:
        if ".." in place.parts:
            raise git.GitError(f"{place} leads out of the project: give an absolute path in params.yaml, and commit it")
        if not os.path.lexists(project / place):
            continue
        link = folder / place
        if not link.parent.resolve().is_relative_to(folder.resolve()):
            continue  # it lies below a folder that is a link to the project's already
        if link.is_symlink() or link.is_file():
            link.unlink()
        elif link.is_dir():
            shutil.rmtree(link)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((project / place).resolve())


@contextmanager
def _alone(file: Path, log: Callable[[str], object]) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for another run in {file.with_suffix('')}")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
