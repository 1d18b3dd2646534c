"""The client of a warm process (pipeline/runtime/warm_server.py): it asks for a stage, and stands in for it while it runs.

The variable TAILFORGE_WARM names the socket of the warm process. The stage gets this process's arguments, folder, sys.path,
environment and standard streams. Signals are passed on to it, and this process ends as the stage ends. Where the warm process
cannot run the stage, a line says so and the stage runs here, in the ordinary way. This module imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from types import FrameType

VARIABLE = "TAILFORGE_WARM"
MESSAGE = 1 << 20  # bytes; a longer environment is refused by the kernel


def asked(arguments: list[str]) -> int | None:
    """Have the warm process run the stage; its exit status, or None where the caller has to run it.

    A signal that ended the stage ends this process too.
    """
    place = os.environ.pop(VARIABLE, None)
    if place is None:
        return None
    passed: list[int] = []
    status, why = None, "it ended"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:

        def forward(number: int, _frame: FrameType | None) -> None:
            passed.append(number)
            with contextlib.suppress(OSError):  # raised where nobody is left to be told
                connection.send(bytes([number]))

        heeded = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
        request = {
            "arguments": arguments, "folder": os.getcwd(), "path": sys.path, "environment": dict(os.environ),
            "heeded": heeded,
        }  # fmt: skip
        before = {}
        try:
            connection.connect(place)
            socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
            before = {number: signal.signal(number, forward) for number in heeded}
            if answer := connection.recv(MESSAGE):
                status, why = json.loads(answer)
        except OSError as error:
            why = str(error)
        for number, handler in before.items():
            signal.signal(number, handler)
    if status is None and passed:
        status = -passed[0]
    if status is None:
        print(f"no warm process ({why}): this stage starts by itself", file=sys.stderr, flush=True)
    elif status < 0:
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status
