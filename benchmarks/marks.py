"""A part of a page that a command writes: what stands between `<!-- NAME -->` and `<!-- /NAME -->`."""

from __future__ import annotations

from pathlib import Path

from pipeline.core import work


def replace(page: Path, name: str, text: str) -> None:
    """Put `text` between the marks. Raises ValueError where the page lacks them."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    whole = page.read_text(encoding="utf-8")
    a, b = whole.index(start) + len(start), whole.index(end)
    work.write(page, f"{whole[:a]}\n{text}\n{whole[b:]}")
