"""`python -m benchmarks.scale`: writes docs/scale.md."""

from __future__ import annotations

from pathlib import Path

from benchmarks.command import errors_in_a_line
from benchmarks.scale.measured import SHAPES, Figures, costs, image
from benchmarks.scale.page import page
from benchmarks.scale.plan import Plan
from pipeline.core import work

PAGE = Path("docs/scale.md")


def text() -> str:
    """The page, from the files of this repository. Raises DataError where a figure is missing."""
    figures = Figures()
    return page([Plan.of(image(figures, form), costs(figures)) for form in SHAPES])


def main() -> None:
    """Write it."""
    with errors_in_a_line():
        work.write(PAGE, text())
    print(PAGE)


if __name__ == "__main__":
    main()
