"""Several commands of Prefect's command line in one process: `python -P several.py`, with a JSON list of them as its input.

Its imports take longer than the commands. The first that fails ends it. In both outputs a zero byte comes before what a
command says.
"""

from __future__ import annotations

import json
import sys

from prefect.cli import app


def main() -> None:
    for words in json.load(sys.stdin):
        for stream in (sys.stdout, sys.stderr):
            print("\0", end="", file=stream, flush=True)
        sys.argv = ["prefect", *words]
        try:
            app()
        except SystemExit as end:
            if end.code:
                raise


if __name__ == "__main__":
    main()
