"""The folders of images that the settings name, and images that arrive while a run reads them.

DVC records what a stage has read when the stage has ended. An image that arrives meanwhile is recorded as read, and no
later run would read it. Therefore a file is written before `prepare` begins:

    .tailforge/unread    hash of name, size and time of every image

It is removed when `prepare` has ended and no image has changed since. While it is there `prepare` runs, though DVC sees no
change.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import yaml

STAGE = "prepare"  # of dvc.yaml; no other stage reads images
UNREAD = Path(".tailforge/unread")
SETTINGS = (("data", "path"), ("data", "external"))  # of params.yaml


def folders(project: Path) -> list[Path]:
    """The folders as the settings name them: absolute, or relative to `project`."""
    params = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    named = [Path(str((params.get(section) or {}).get(key) or "")) for section, key in SETTINGS]
    return [path for path in named if path.parts]


def unread(project: Path) -> bool:
    """Whether there may be images that no run has read though DVC has recorded them."""
    return (project / UNREAD).exists()


def begin(project: Path) -> None:
    """Call before `prepare` begins."""
    file = project / UNREAD
    file.parent.mkdir(exist_ok=True)
    file.write_text(_state(project), encoding="ascii")


def end(project: Path) -> None:
    """Call when DVC has recorded `prepare`."""
    file = project / UNREAD
    if file.read_text(encoding="ascii") == _state(project):
        file.unlink()


def _state(project: Path) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for folder in folders(project):
        for place, below, names in os.walk(project / folder):
            below.sort()
            for name in sorted(names):
                stat = os.lstat(os.path.join(place, name))
                digest.update(b"%s\0%d\0%d\0" % (os.fsencode(os.path.join(place, name)), stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()
