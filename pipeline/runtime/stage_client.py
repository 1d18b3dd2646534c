"""The client of a warm process (pipeline/runtime/warm_server.py): it asks for a stage and stands for it while it runs.

Whoever named the process's socket in the variable TAILFORGE_WARM gets from this process what the stage would have given: the
stage has its arguments, folder, environment and standard streams, a signal goes on to it, and this process ends as it ends.
A stage that cannot be had that way is one line and runs here, in the ordinary way. This module imports nothing heavy.
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

    Where a signal ended the stage, the same signal ends this process.
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
            "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ), "heeded": heeded,
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
