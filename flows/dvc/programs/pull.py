"""Fetch what one stage reads or makes and put it in place: `python -P pull.py STAGE deps|outs`, in the project's folder.

Of what a stage reads only results of other stages are fetched. A dependency may lie below or above such a result: a folder of
results, or one file of them.
"""

from __future__ import annotations

import sys

from dvc.exceptions import DvcException
from dvc.repo import Repo


def pull(name: str, which: str) -> None:
    """`which` is `deps` or `outs`. Raises DvcException for what is not to be had."""
    repo = Repo()
    [stage] = repo.stage.collect(name)
    wanted = [str(item.def_path) for item in getattr(stage, which)]
    if which == "deps":
        made = {str(out.def_path) for other in repo.index.stages for out in other.outs}
        wanted = [out for out in sorted(made) if any(_within(out, dep) or _within(dep, out) for dep in wanted)]
    if wanted:
        repo.pull(wanted, force=True)


def _within(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}/")


if __name__ == "__main__":
    try:
        pull(*sys.argv[1:])
    except DvcException as error:
        sys.exit(str(error))
