"""Use the cache of another checkout and put results in place: `python -P share.py PROJECT`, in the checkout that is to use it.

As `dvc cache dir` there, `dvc cache dir --local` and `dvc checkout --force --allow-missing` here, with the imports of one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dvc.config import Config
from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows.dvc.programs.cache import cache


def share(project: str) -> None:
    """Raises DvcException."""
    with Config(Repo.find_dvc_dir()).edit("local") as own:
        own["cache"]["dir"] = str(cache(Path(project)).resolve())
    Repo().checkout(force=True, allow_missing=True)


if __name__ == "__main__":
    try:
        share(*sys.argv[1:])
    except DvcException as error:
        sys.exit(str(error))
