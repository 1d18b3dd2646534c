"""`python -m benchmarks.speed [generator|scaling|pool|compose|packing|overhead …]`: the parts that are named, or all.

Written: benchmarks/results/speed.csv (part, name, value, unit, machine) and docs/speed.md. Rows of parts that are not run this
time stay as they are. The last lines are the figures that have targets.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks.command import errors_in_a_line
from benchmarks.speed import results
from pipeline.core import work
from pipeline.runtime.costs import machine
from pipeline.runtime.training import device

RESULTS, PAGE = Path("benchmarks/results/speed.csv"), Path("docs/speed.md")


def main() -> None:
    """Run parts, write what they found, print the last lines."""
    parser = argparse.ArgumentParser(description="How fast Tailforge is, beside a plain recipe and by itself.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(results.PARTS)}; all, if none")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(results.PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(results.PARTS)}")
    found: list[results.Row] = []
    with errors_in_a_line():
        for part in given.parts or results.PARTS:
            began = time.perf_counter()
            print(f"{part} …", file=sys.stderr, flush=True)
            where = machine(device())
            found.append(results.Row(part, "load_before", os.getloadavg()[0], "processes", where))  # another's work slows ours
            for name, value, unit in import_module(f"benchmarks.speed.{part}").measure():
                found.append(results.Row(part, name, value, unit, where))
                print(f"{part}: {name} {value:.4g} {unit}".rstrip(), flush=True)
            print(f"{part}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            rows = results.merged(RESULTS, found)
            work.write(PAGE, results.page(rows))
    print("\n".join(results.last_lines(rows)))


if __name__ == "__main__":
    main()
