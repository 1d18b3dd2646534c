"""One warm process for all stages of a run: it imports torch and the rest once, and each stage is a fork of it.

pipeline/runtime/warm_server.py says how it works and how it ends. It lives for one block, so an edit between two runs is
seen. It starts at once, so its imports run beside the start of Prefect and DVC.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows import children

VARIABLE = "TAILFORGE_WARM"  # as in pipeline/runtime/stage_client.py


@contextmanager
def process(project: Path, *, grace: float) -> Iterator[None]:
    """Stages that start in this block are forks of a warm process. One that still runs at its end has `grace` seconds to leave.

    Where there can be no warm process, a line says so and each stage starts by itself. A warm process that the environment
    names already is kept. Linux alone; elsewhere nothing happens.
    """
    if sys.platform != "linux" or VARIABLE in os.environ:
        yield
        return
    with (
        tempfile.TemporaryDirectory(prefix="tailforge-") as private,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as it,
    ):
        place = str(Path(private, "warm"))
        try:
            it.bind(place)
        except OSError as error:  # a long TMPDIR
            print(f"no warm process ({place}: {error}): each stage starts by itself", file=sys.stderr)
            yield
            return
        it.listen()
        command = [*children.interpreter(project), "-m", "pipeline.runtime.warm_server", str(it.fileno()), place]
        with children.supervised(command, cwd=project, output=sys.stderr, grace=grace, keep=[it.fileno()]) as warm:
            it.close()  # the warm process has it; when that is gone nobody listens
            os.environ[VARIABLE] = place
            try:
                yield
            finally:
                del os.environ[VARIABLE]
                warm.terminate()
