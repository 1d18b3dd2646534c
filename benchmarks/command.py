"""What the commands of this folder share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import TailforgeError


@contextmanager
def errors_in_a_line() -> Iterator[None]:
    """Within, a user's error is one line, and ends the process with its status."""
    try:
        yield
    except TailforgeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
