"""`python -m pipeline.stages VERB --option VALUE`: one stage, in the folder of a project.

Exit status: 0 done, 1 a fault or a failed check, 2 bad input, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from pipeline.runtime import stage_client as asking

# verb: options that are paths (and, for `family`, a name); all are required but those with a question mark
VERBS = {
    "settings": ["out"],
    "prepare": ["out"],
    "drift": ["prepared", "out"],
    "fit": ["family", "prepared", "reference", "out", "cost"],
    "sample": ["family", "prepared", "reference", "model", "out", "cost"],
    "judges": ["prepared", "out"],
    "validate": ["family", "prepared", "judges", "model", "pool", "out", "docs"],
    "measure": ["family", "prepared", "model", "pool", "checked", "out"],
    "train": ["family?", "prepared", "pool?", "checked?", "real?", "out"],
    "evaluate": ["prepared", "runs", "metrics", "gains", "out"],
    "report": ["prepared", "drift", "pools", "checked", "measures", "evaluation", "metrics", "out"],
}


def main(arguments: list[str] | None = None) -> int:
    """Run one stage; returns the exit status. A command (no `arguments`) lets the warm process run it, where there is one."""
    if arguments is None and (status := asking.asked(sys.argv[1:])) is not None:
        return status
    from pipeline import config
    from pipeline.errors import TailforgeError

    parser = argparse.ArgumentParser(prog="python -m pipeline.stages")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, options in VERBS.items():
        sub = verbs.add_parser(verb)
        for option in options:
            kind = str if option.startswith("family") else Path
            sub.add_argument(f"--{option.rstrip('?')}", type=kind, required=not option.endswith("?"))
    chosen = vars(parser.parse_args(arguments))
    stage = import_module(f"pipeline.stages.{chosen.pop('verb')}")
    try:
        stage.run(config.read(), **chosen)
    except TailforgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except (MemoryError, RuntimeError) as error:
        from pipeline.runtime.training import out_of_memory

        if not out_of_memory(error):
            raise
        where, said = stage.__name__.rpartition(".")[2], str(error).partition("\n")[0]
        print(f"error: memory ran out in {where}: {said}; free some, or lower data.image_size", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
