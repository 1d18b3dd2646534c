"""Mounts: the kind of file system of a path, from the kernel's table (Linux).

SQLite's locks do not work on most network file systems: two writers then silently damage a database. Prefect keeps its
record in SQLite, so a database on such a mount is refused before a run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import InputError

NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "beegfs", "ncpfs")
# If one of these is set, a server keeps the record, or a database that the user has chosen.
DATABASE = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
ELSEWHERE = ("PREFECT_API_URL", *DATABASE)
TABLE = Path("/proc/self/mountinfo")


def network(path: Path, table: Path = TABLE) -> str | None:
    """The kind of network file system that `path` is on; None if it is a local or an unknown one."""
    if not table.is_file():
        return None
    kinds = {}
    for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
        place, _, kind = line.partition(" - ")
        kinds[place.split()[4].encode().decode("unicode_escape")] = kind.split()[0]
    whole = path.resolve()
    nearest = max((mount for mount in kinds if whole.is_relative_to(mount)), key=len, default="/")
    kind = kinds.get(nearest, "")
    return kind if kind in NETWORK or kind == "fuse.sshfs" else None


def refuse_record(table: Path = TABLE, elsewhere: Sequence[str] = ELSEWHERE) -> None:
    """Raise InputError if Prefect would keep its record in SQLite on a network mount. It does not if one of the variables
    `elsewhere` is set."""
    if any(os.environ.get(name) for name in elsewhere):
        return
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect").expanduser()
    if kind := network(home, table):
        raise InputError(
            f"PREFECT_HOME={str(home)!r} is on a network mount ({kind})",
            expected="a local disk, since SQLite's locks do not work there",
            remedy=f"set PREFECT_HOME to a local folder, or {elsewhere[0]} to that of a server",
        )
