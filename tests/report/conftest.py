"""Projects as the report finds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.report_project import Project, build


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Project]:
    """build(), in a new folder at each call."""
    made = iter(range(100))
    return lambda **options: build(tmp_path / f"project{next(made)}", **options)
