"""For tests of flows: `tailforge serve` without a schedule, which the tests of a file share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from subprocess import CompletedProcess

import pytest

from helpers.nightly import by_hand, lay
from helpers.served import Served, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., CompletedProcess[str]]) -> Iterator[Served]:
    """Of a project with one family, so that a run has one fit."""
    root = tmp_path_factory.mktemp("served")
    with serving(by_hand(lay(root / "project", command, families="[naive]")), root / "home") as found:
        yield found
