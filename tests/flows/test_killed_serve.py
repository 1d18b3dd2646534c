"""`tailforge serve` itself, killed in the middle of a run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.nightly import by_hand, lay
from helpers.served import LONG, Served, environ, processes, serving
from helpers.toy import until

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.fault(10, "`tailforge serve` killed in a run and started again: the run is called crashed, and the next one ends")
def test_what_a_killed_serve_was_running_is_called_crashed_and_the_next_run_ends(tmp_path: Path, command: Command) -> None:
    project, home = by_hand(lay(tmp_path / "project", command, families="[naive]")), tmp_path / "home"
    with serving(project, home, warmed=True) as served, served.waiting("kill it") as (run, _):
        served.process.kill()
        until(lambda: not any(of(served, process) for process in processes("")), "the end of all that it had started", **LONG)
    with serving(project, home) as served:
        following = served.start("augment")  # at once: it waits until the one before is known to be dead
        ended = served.end(run)
        assert ended.state and ended.state.is_crashed() and "no sign of life" in str(ended.state.message), ended.state
        ended = served.end(following)
        assert ended.state and ended.state.message == "v1: no_gain", ended.state


def of(served: Served, process: int) -> bool:
    return str(served.project).encode() in environ(process)
