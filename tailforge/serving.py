"""`tailforge serve` runs the schedule of a project; `tailforge worker` lends devices to that of another machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core import work
from pipeline.errors import InputError
from tailforge import mounts, project

DEPLOYMENTS = "prefect.yaml"


def serve(folder: Path, host: str, port: int, *, devices: bool) -> None:
    """Serve the project in `folder`, with its own prefect.yaml if it has one. `devices` says whether the devices of this
    machine are used. Raises InputError."""
    from flows import serve

    folder = project.opened(folder).absolute()
    mounts.refuse_record(elsewhere=mounts.DATABASE)  # the server is this one
    with tempfile.TemporaryDirectory() as temporary, _refusals():
        file = folder / DEPLOYMENTS
        if not file.is_file():
            file = Path(temporary, DEPLOYMENTS)
            work.write(file, project.template(DEPLOYMENTS))
        serve.serve(folder, file, host=host, port=port, lend=devices)


def work_for(folder: Path) -> None:
    """Work in `folder`, a clone of the project. Raises InputError."""
    from flows import serve

    with _refusals():
        serve.work(project.opened(folder).absolute())


@contextmanager
def _refusals() -> Iterator[None]:
    from flows.server import Refused

    try:
        yield
    except Refused as refused:
        raise InputError(str(refused), remedy=refused.remedy) from None
