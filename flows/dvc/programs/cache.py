"""Print the folder of the cache: `python -P cache.py`, in the project. As `dvc cache dir`, without most of its imports."""

from __future__ import annotations

import sys
from pathlib import Path

from dvc.config import Config, ConfigError


def cache() -> str:
    """Raises ConfigError."""
    here = Path.cwd()
    home = next((folder / ".dvc" for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)
    if home is None:
        raise ConfigError(f"{here} is in no project of DVC")
    return str(Config(home, validate=False).get("cache", {}).get("dir") or home / "cache")


if __name__ == "__main__":
    try:
        print(cache())
    except ConfigError as error:
        sys.exit(str(error))
