"""`python -m benchmarks.scale`: writes docs/scale.md."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.scale.measured import SHAPES, Figures, costs, image
from benchmarks.scale.page import page
from benchmarks.scale.plan import Plan
from pipeline.core import work
from pipeline.errors import TailforgeError

PAGE = Path("docs/scale.md")


def text() -> str:
    """The page, from the files of this repository. Raises DataError where a figure is missing."""
    figures = Figures()
    return page([Plan.of(image(figures, form), costs(figures)) for form in SHAPES])


def main() -> int:
    """Write it."""
    try:
        work.write(PAGE, text())
    except TailforgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
