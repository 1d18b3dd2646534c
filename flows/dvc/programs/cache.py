"""Print the folder of the cache: `python -P cache.py`, in the project. As `dvc cache dir`, without most of its imports."""

from __future__ import annotations

import sys
from pathlib import Path

from dvc.config import Config, ConfigError


def cache(place: Path) -> Path:
    """The folder of the cache of the project that `place` lies in. Raises ConfigError."""
    home = next((folder / ".dvc" for folder in (place, *place.parents) if (folder / ".dvc").is_dir()), None)
    if home is None:
        raise ConfigError(f"{place} is in no project of DVC")
    return Path(Config(home, validate=False).get("cache", {}).get("dir") or home / "cache")


if __name__ == "__main__":
    try:
        print(cache(Path.cwd()))
    except ConfigError as error:
        sys.exit(str(error))
