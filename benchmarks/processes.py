"""Processes of a run or a service, known by what their environment mentions: a child has that of who started it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process; `run` is the id of the flow run that it belongs to, `memory` is resident, in bytes."""

    pid: int
    parent: int
    command: str
    run: str
    memory: int


def of(mark: str) -> list[Process]:
    """The processes whose environment mentions `mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
            if mark not in environment:
                continue
            command = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # gone meanwhile, or not ours
            continue
        run = f"\0{environment}".partition("\0PREFECT__FLOW_RUN_ID=")[2].partition("\0")[0]
        found.append(Process(int(entry.name), int(stat[1]), command, run, int(stat[21]) * os.sysconf("SC_PAGE_SIZE")))
    return found


def strangers(processes: Sequence[Process], root: int) -> list[Process]:
    """Those that are neither `root` nor descend from it."""
    known, before = {root}, 0
    while len(known) > before:
        before = len(known)
        known |= {p.pid for p in processes if p.parent in known}
    return [p for p in processes if p.pid not in known]
