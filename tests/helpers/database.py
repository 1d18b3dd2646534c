"""Prefect's database with its tables and no rows. It takes Prefect many seconds to make, so a whole test run makes it once."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

MAKE = """\
import asyncio
from prefect.server.database import provide_database_interface
asyncio.run(provide_database_interface().create_db())
"""
PLACE = "TAILFORGE_TEST_DATABASE"  # names the folder where the processes of one test run have it (tests/conftest.py)


def lay(home: Path) -> Path:
    """Give Prefect's folder `home`, which has no database, a copy."""
    made = Path(os.environ[PLACE])
    made.mkdir(exist_ok=True)
    with open(made / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "prefect.db").exists():
            partial = made / "partial"
            subprocess.run([sys.executable, "-c", MAKE], env=os.environ | {"PREFECT_HOME": str(partial)}, check=True)
            (partial / "prefect.db").rename(made / "prefect.db")
    home.mkdir(exist_ok=True)
    shutil.copyfile(made / "prefect.db", home / "prefect.db")
    return home
