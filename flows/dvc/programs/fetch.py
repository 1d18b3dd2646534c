"""Fetch results by their hashes from the default remote into the cache: `python -P fetch.py MD5 ...`, in the project's folder.

`dvc fetch --rev` reads the remote from .dvc/config as it was at that revision. The remote may not have been there yet, and DVC
takes a relative address for one below /. Here the configuration of today counts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo


def fetch(hashes: Sequence[str]) -> None:
    """Raises DvcException for what is not to be had."""
    Repo().cloud.pull([HashInfo("md5", md5) for md5 in hashes])


if __name__ == "__main__":
    try:
        fetch(sys.argv[1:])
    except DvcException as error:
        sys.exit(str(error))
