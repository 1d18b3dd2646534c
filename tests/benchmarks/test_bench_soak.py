"""The pure parts of benchmarks.soak: what is killed, what counts as growth, what counts as lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from benchmarks import processes, soak
from benchmarks.processes import Process
from benchmarks.soak import Measured, Told

MINE, OTHER = "11111111", "22222222"
PYTHON = "python -m "
PROCESSES = [
    Process(1, 0, "python -c from tailforge.cli import main; main() serve --port 4200", "", 1),
    Process(2, 1, f"python -I flows/supervisor.py 45 env {PYTHON}prefect server start --port 4200", "", 1),
    Process(3, 2, f"{PYTHON}prefect server start --port 4200", "", 1),
    Process(4, 1, f"{PYTHON}prefect worker start --pool cpu --type process", "", 1),
    Process(5, 1, f"{PYTHON}prefect worker start --pool gpu --type process", "", 1),
    Process(6, 4, f"{PYTHON}prefect.engine", MINE, 1),
    Process(7, 5, f"{PYTHON}prefect.engine", OTHER, 1),
    Process(8, 6, "python -I flows/supervisor.py 25 python -c from pipeline.runtime.warm_server import main", MINE, 1),
    Process(9, 8, "python -c from pipeline.runtime.warm_server import main; main()", MINE, 1),
    Process(10, 7, f"{PYTHON}dvc --wait-for-lock repro --single-item fit@vae", OTHER, 1),
    Process(11, 10, f"{PYTHON}pipeline.stages fit --family vae", OTHER, 1),
]


@pytest.mark.parametrize(
    ("victim", "expected"),
    [
        ("serve", [1]), ("server", [3]), ("cpu worker", [4]), ("gpu worker", [5]), ("run", [6]), ("run of a stage", [7]),
        ("stage", [11]),
    ],
)  # fmt: skip
def test_each_victim_is_found_and_none_is_a_supervisor(victim: str, expected: list[int]) -> None:
    assert soak.targets(victim, PROCESSES, MINE) == expected
    assert soak.targets(victim, [], MINE) == []


def test_the_plan_is_of_its_seed_and_kills_each_thing_about_as_often() -> None:
    drawn = soak.plan(25, 0)
    assert drawn == soak.plan(25, 0) != soak.plan(25, 1) and drawn[:5] == soak.plan(5, 0) and drawn[0] == "nothing"
    assert Counter(drawn[1:]) == dict.fromkeys(soak.VICTIMS, 3)


def test_who_does_not_descend_from_serve_is_a_stranger() -> None:
    assert processes.strangers(PROCESSES, 1) == []
    assert [p.pid for p in processes.strangers([p for p in PROCESSES if p.pid != 7], 1)] == [10, 11]


def test_processes_are_known_by_their_environment() -> None:
    environment = os.environ | {"PREFECT__FLOW_RUN_ID": MINE, "PREFECT_HOME": "/nowhere/of-this-test"}
    with subprocess.Popen(
        [sys.executable, "-c", "print(1, flush=True); input()"], env=environment, stdin=-1, stdout=-1
    ) as child:
        assert child.stdout and child.stdin and child.stdout.readline()
        (found,) = processes.of("/nowhere/of-this-test")
        child.stdin.close()
    assert (found.pid, found.parent, found.run) == (child.pid, os.getpid(), MINE) and found.memory > 10**6


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5.0] * 9, 0.0),
        ([0, 0, 0, 0, 1, 2, 3, 4], 3.0),
        ([1, 9, 2, 40, 50, 50, 50, 50], 0.0),  # what grows at the beginning and stays
        ([4, 4, 4, 5, 3, 5, 3, 5, 4, 4], 0.0),
        ([7.0], 0.0),
    ],
)
def test_growth_is_the_rise_of_a_line_through_the_second_half(values: list[float], expected: float) -> None:
    assert soak.rise(values) == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2, 3, 4], False),
        ([5, 6, 7, 8, 9, 10], False),
        ([0, 1, 2, 4, 8, 16], True),
        ([0, 4, 6, 7, 7], False),
        ([3], False),
    ],
)
def test_what_may_grow_by_so_much_a_run_may_not_grow_by_more(values: list[int], expected: bool) -> None:
    assert soak.quickens(values) == expected


QUIET = Measured(500, 7, 0, 100, 0, 1, 1000, 1000)


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, None),
        ({"orphans": 1}, "no process is left over"),
        ({"processes": 8}, "no process is left over"),
        ({"memory": 600}, "memory stays"),
        ({"worktree": 130}, "the worktree stays"),
        ({"temporary": 2}, "runs that nothing was done to leave no temporary file"),
        ({"partial": 3}, "the number of files of partial work stays"),
        ({"cache": 9000}, "the cache grows no faster"),
    ],
)
def test_each_verdict_can_fail(changed: dict[str, int], failing: str | None) -> None:
    runs = [Told("nothing", f"c{i}", release=f"dataset@v{i}.0.0") for i in range(6)]
    measured = [replace(QUIET, cache=1000 + 10 * i) for i in range(7)]
    measured[-1] = replace(measured[-1], **changed)
    found = soak.verdicts(runs, measured, [True, True])
    assert [name for name, holds in found.items() if not holds] == ([failing] if failing else [])


def test_a_lost_commit_a_run_without_end_and_another_hash_are_seen() -> None:
    runs, measured = [Told("run", "c", ends=["NO END"]), Told("run", "d", release="dataset@v1.0.0")], [QUIET] * 3
    found = soak.verdicts(runs, measured, [True, False])
    assert not found["every commit ends as a release"] and not found["every run ends"]
    assert not found["undisturbed runs of the same commits have the same hashes"]
    assert "LOST" in [*soak.table(runs, measured)][3]
