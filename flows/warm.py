"""One warm process for all stages of a run: it imports torch and the rest once, and each stage is a fork of it.

What it is, and how nothing outlives who asked, stands in pipeline/runtime/warm_server.py. It lives for one block, so that code
edited between two runs is seen, and starts at once, so that its imports and whatever else has to start overlap.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows import dvc

VARIABLE = "TAILFORGE_WARM"  # as in pipeline/runtime/stage_client.py


@contextmanager
def process(project: Path, *, grace: float) -> Iterator[None]:
    """Stages that are started in this block are forks of a warm process; those that run when it ends have `grace` seconds.

    Where it cannot be had, which is said, each stage starts by itself. Linux only: elsewhere nothing happens.
    """
    if sys.platform != "linux":
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
        command = [sys.executable, "-c", "from pipeline.runtime.warm_server import main; main()", str(it.fileno()), place]
        with dvc.supervised(command, cwd=project, output=sys.stderr, grace=grace, keep=[it.fileno()]) as warm:
            it.close()  # the warm process has it: where that is gone, nobody listens
            os.environ[VARIABLE] = place
            try:
                yield
            finally:
                del os.environ[VARIABLE]
                warm.terminate()
