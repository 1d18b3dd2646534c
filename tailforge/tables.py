"""Tables of text, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.metrics.registry import primary


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def shown(*found: Mapping[str, Any]) -> list[str]:
    """Which metrics of these results a table shows: those that decided, then tail recall."""
    return list(dict.fromkeys([*map(primary, found), "tail_recall"]))
