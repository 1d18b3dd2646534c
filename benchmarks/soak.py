"""`python -m benchmarks.soak`: scheduled runs in a row while their parts are killed; none is lost, and nothing grows.

A small project is served (`tailforge serve`) in a temporary folder. Each run is of a commit with another setting; at a moment
drawn from U(0, T), where T is what the quickest run took, one thing of VICTIMS gets SIGKILL. A run that does not complete is
followed by another of the same commit, so that each commit ends as a release. After each run the processes, their memory and
what lies on the disk are measured; at last some commits are run undisturbed elsewhere, and their hashes compared.

Exit status 1 where one of `verdicts` does not hold. Twenty runs or more write docs/soak.md. What `tailforge serve` said is in
LOG until the next soak.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import kills, marks, processes
from benchmarks.processes import Process
from flows import children, dvc, git, serve
from tailforge import project, settings

PAGE = Path("docs/soak.md")
LOG = Path(".tailforge/soak.log")  # what `tailforge serve` said in the last soak
WHOLE = 20  # runs from which the page is written
COMPARED = 2  # commits that are run undisturbed
ATTEMPTS = 4  # runs of one commit before it counts as lost
PATIENCE = 900.0  # seconds in which a run has to end
SETTLE = 90.0  # seconds in which processes that are no longer needed have to be gone
NO_END = "NO END"
VICTIMS = ("nothing", "stage", "run of a stage", "run", "gpu worker", "cpu worker", "server", "serve")


@dataclass
class Told:
    """A commit: what was killed when, how each of its runs ended, its release and the hashes of its results."""

    victim: str
    commit: str
    moment: float = 0.0
    ends: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)  # of those that did not complete
    seconds: float = 0.0
    release: str = ""
    hashes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What there is when a run has ended and all is quiet. Sizes in bytes; `partial` and `temporary` are numbers of files."""

    memory: int
    processes: int
    orphans: int
    worktree: int
    partial: int
    temporary: int
    cache: int
    database: int


class Served:
    """A project in `folder` and its `tailforge serve`, which may be killed and started again; it says all to `log`."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.project, self.home, self.temporary, self.log = *(folder / n for n in ("project", "home", "tmp")), log
        for place in (self.home, self.temporary):
            place.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]

    def start(self) -> None:
        """Start it and wait for its workers."""
        own = {"PREFECT_HOME": str(self.home), "TMPDIR": str(self.temporary), "CUDA_VISIBLE_DEVICES": ""}
        with open(self.log, "ab") as log:
            before = log.tell()
            self.process = subprocess.Popen(
                [*kills.TAILFORGE, "serve", "--port", str(self.port)], cwd=self.project, env=children.environment() | own,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until(lambda: self.log.read_bytes()[before:].count(b"started!") >= 2 or self.process.poll() is not None, 2 * SETTLE)
        if self.process.poll() is not None:
            raise RuntimeError(f"tailforge serve ended: {self.log}")

    def processes(self) -> list[Process]:
        return processes.of(str(self.home))

    def stop(self) -> None:
        """Stop it, and kill what it leaves."""
        if hasattr(self, "process"):
            self.process.terminate()
            self.process.wait()
        until(lambda: not self.processes(), SETTLE)
        for process in self.processes():
            os.kill(process.pid, signal.SIGKILL)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the server answers; asked again while it is away."""
        known = b64encode((self.project / serve.PASSWORD).read_bytes().strip()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {known}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/{path}", headers=headers)
        deadline = time.monotonic() + 2 * SETTLE
        while True:
            try:
                with urllib.request.urlopen(request, json.dumps(body).encode() if body else None, timeout=30) as answer:
                    return json.load(answer)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def run(self, key: str) -> str:
        """Start the deployment; the id of the run."""
        deployment = self.ask("deployments/name/scheduled/augment")["id"]
        return str(self.ask(f"deployments/{deployment}/create_flow_run", {"idempotency_key": key})["id"])

    def end(self, run: str) -> str:
        """The name of the state in which the run has ended, empty while it has not."""
        state = self.ask(f"flow_runs/{run}")["state"]
        return str(state["name"]) if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else ""

    def why(self, run: str) -> str:
        """What was last said of the run, on one line."""
        return " ".join(str(self.ask(f"flow_runs/{run}")["state"]["message"]).split())

    def measured(self, usual: int) -> Measured:
        """All is quiet when there are as many processes as are `usual`."""
        until(lambda: len(self.processes()) <= usual, SETTLE)
        found, trees = self.processes(), self.project / ".tailforge"
        return Measured(
            memory=sum(p.memory for p in found), processes=len(found),
            orphans=len(processes.strangers(found, self.process.pid)), worktree=size(files(trees / "worktrees")),
            partial=sum("partial" in file.relative_to(trees).parts for file in files(trees)),
            temporary=len(files(self.temporary)), cache=size(files(self.project / ".dvc" / "cache")),
            database=size(self.home.glob("prefect.db*")),
        )  # fmt: skip


def plan(runs: int, seed: int) -> list[str]:
    """What is killed in each run: nothing in the first, then all of VICTIMS, shuffled, again and again."""
    rng, drawn = random.Random(seed), ["nothing"]
    while len(drawn) < runs:
        drawn += rng.sample(VICTIMS, len(VICTIMS))
    return drawn[:runs]


def targets(victim: str, found: Iterable[Process], run: str) -> list[int]:
    """Process ids of what is called `victim`, while the flow run `run` is on its way."""
    chosen: dict[str, Callable[[Process], bool]] = {
        "stage": lambda p: "pipeline.stages" in p.command,
        "run": lambda p: "prefect" in p.command and p.run == run,
        "run of a stage": lambda p: "prefect" in p.command and p.run not in ("", run),
        "cpu worker": lambda p: "worker start --pool cpu" in p.command,
        "gpu worker": lambda p: "worker start --pool gpu" in p.command,
        "server": lambda p: "prefect server start" in p.command,
        "serve": lambda p: " serve --port" in p.command,
    }
    return [p.pid for p in found if "supervisor.py" not in p.command and chosen[victim](p)]


def lay(folder: Path) -> None:
    """A project of the embedded digits with small settings, and deployments that run when asked for alone."""
    project.lay(folder, settings.parse([f"{key}={value}" for key, value in kills.SMALL.items()]), "digits")
    deployments = yaml.safe_load(project.template("prefect.yaml"))
    for deployment in deployments["deployments"]:
        deployment.pop("schedules", None)
        deployment.pop("triggers", None)
    (folder / "prefect.yaml").write_text(yaml.safe_dump(deployments), encoding="utf-8")
    git.ask(folder, "add", "--all")


def commit(folder: Path, number: int) -> str:
    """Commit another setting, the seed of everything each third time, else the classifiers' steps; the commit."""
    key, value = ("seed", number) if number % 3 == 1 else ("classifier.steps", 60 + number)
    file = folder / "params.yaml"
    file.write_text(settings.apply(file.read_text(encoding="utf-8"), {key: value}), encoding="utf-8")
    git.ask(folder, *git.identity(folder), "commit", "--quiet", "--all", "--message", f"{key} {value}")
    return git.ask(folder, "rev-parse", "HEAD").strip()


def one(served: Served, number: int, victim: str, rng: random.Random, whole: float) -> Told:
    """Bring a new commit to a release while `victim` is killed within `whole` seconds."""
    told, began = Told(victim, commit(served.project, number)), time.monotonic()
    while not told.release and len(told.ends) < ATTEMPTS:
        run = served.run(f"{number}-{len(told.ends)}")
        if not told.ends and victim != "nothing":
            told.moment = disturb(served, victim, run, rng, rng.uniform(0, whole))
        deadline = time.monotonic() + PATIENCE
        while not (end := served.end(run)) and time.monotonic() < deadline:
            time.sleep(1.0)
        told.ends.append(end or NO_END)
        if end != "Completed":
            told.why.append(served.why(run))
        # In the project's branch, with its results in place; of a commit that is new no other can know.
        tags = git.ask(served.project, "tag", "--list", "dataset@*", "--merged", "HEAD", "--contains", told.commit).split()
        told.release = tags[0] if tags and not dvc.changed(served.project) else ""
    told.seconds, told.hashes = time.monotonic() - began, kills.hashes(served.project) if told.release else {}
    return told


def disturb(served: Served, victim: str, run: str, rng: random.Random, moment: float) -> float:
    """Kill one process of `victim`, at `moment` or as soon as there is one; when, or 0 where the run ended before."""
    began = time.monotonic()
    until(lambda: served.end(run), moment)
    while not served.end(run):
        if found := targets(victim, served.processes(), run):
            os.kill(rng.choice(found), signal.SIGKILL)
            after = time.monotonic() - began
            if victim == "serve":
                served.process.wait()
                until(lambda: not served.processes(), SETTLE)
                served.start()
            return after
        time.sleep(0.1)
    return 0.0


def undisturbed(folder: Path, commit: str, elsewhere: Path) -> dict[str, str]:
    """Hashes of a run of `commit` in a clone that has of the project's cache what the commit's dvc.lock names."""
    git.ask(folder, "clone", "--quiet", str(folder), str(elsewhere))
    git.ask(elsewhere, "checkout", "--quiet", commit)
    environment, own = children.environment() | {"PREFECT_HOME": f"{elsewhere}-home"}, [sys.executable, "-m", "dvc"]
    for command in (
        [*own, "remote", "add", "--quiet", "--local", "--default", "project", str(folder / ".dvc/cache")],
        [*own, "pull", "--quiet", "--allow-missing"],
        [*kills.TAILFORGE, "run", "--no-release"],
    ):
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[-3:])}: {done.stderr[-2000:]}")
    return kills.hashes(elsewhere)


def verdicts(runs: Sequence[Told], measured: Sequence[Measured], alike: Sequence[bool]) -> dict[str, bool]:
    """What has to hold, and whether it does; `measured` begins before the first run, `alike` is of the undisturbed runs."""
    flat = {
        "memory": ([m.memory for m in measured], 0.05 * measured[-1].memory),
        "the worktree": ([m.worktree for m in measured[1:]], 0.05 * measured[-1].worktree),
        "the number of files of partial work": ([m.partial for m in measured], 0.5),
    }
    steady = {"the cache": [m.cache for m in measured[1:]], "the database": [m.database for m in measured[1:]]}
    return {
        "every run ends": all(NO_END not in told.ends for told in runs),
        "every commit ends as a release": all(told.release for told in runs),
        "undisturbed runs of the same commits have the same hashes": bool(alike) and all(alike),
        # Whoever is killed cannot remove its own: Prefect's worker leaves two small
        # ones. The first run makes the device's lock.
        "runs that nothing was done to leave no temporary file": not any(
            after.temporary > before.temporary
            for told, before, after in zip(runs[1:], measured[1:-1], measured[2:], strict=True)
            if not told.moment
        ),
        "no process is left over": all(m.processes == measured[0].processes and not m.orphans for m in measured),
        **{f"{name} stays": rise(values) <= slack for name, (values, slack) in flat.items()},
        **{f"{name} grows no faster": not quickens(values) for name, values in steady.items()},
    }


def rise(values: Sequence[float]) -> float:
    """By how much the straight line that fits the second half of `values` best rises from its first to its last."""
    later = np.asarray(values[len(values) // 2 :], float)
    return float(np.polyfit(np.arange(len(later)), later, 1)[0] * (len(later) - 1)) if len(later) > 1 else 0.0


def quickens(values: Sequence[float]) -> bool:
    """Whether the second half of `values` grows by more than half as much again as the first."""
    half = (len(values) - 1) // 2
    return values[-1] - values[-1 - half] > 1.5 * (values[half] - values[0])


def table(runs: Sequence[Told], measured: Sequence[Measured]) -> Iterable[str]:
    """Lines of the table, the first before any run."""
    names = "run, killed, after (s), ended, took (s), memory (MB), processes, worktree (MB), partial, temporary, cache (MB)"
    yield f"| {' | '.join([*names.split(', '), 'database (MB)'])} |"
    yield "|---" * 12 + "|"
    for i, (told, m) in enumerate(zip([None, *runs], measured, strict=True)):
        kill = ["", "", "", ""]
        if told:
            ends = ", ".join(told.ends) + ("" if told.release else ": LOST")
            kill = [told.victim, f"{told.moment:.0f}" if told.moment else "–", ends, f"{told.seconds:.0f}"]
        count = f"{m.processes}, {m.orphans} orphans" if m.orphans else f"{m.processes}"
        seen = [f"{m.memory / 1e6:.0f}", count, f"{m.worktree / 1e6:.2f}", f"{m.partial}", f"{m.temporary}"]
        yield f"| {' | '.join([str(i), *kill, *seen, f'{m.cache / 1e6:.2f}', f'{m.database / 1e6:.1f}'])} |"


def reasons(told: Told) -> Iterable[str]:
    """What Prefect has of each run that did not complete."""
    undone = [end for end in told.ends if end != "Completed"]
    return (f"{end}: {why}" for end, why in zip(undone, told.why, strict=True))


def files(folder: Path) -> list[Path]:
    """All files below, links not followed."""
    return [file for file in folder.rglob("*") if file.is_symlink() or not file.is_dir()]


def size(found: Iterable[Path]) -> int:
    """Bytes of these files."""
    return sum(file.lstat().st_size for file in found)


def until(condition: Callable[[], object], seconds: float) -> None:
    """Wait until `condition` is true, or so long."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.5)


def main() -> int:
    """Print a line per run, the table and the verdicts; 0 where all of them hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=WHOLE)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    rng, runs, alike = random.Random(asked.seed), list[Told](), list[bool]()
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        LOG.parent.mkdir(exist_ok=True)
        LOG.write_bytes(b"")
        served = Served(Path(temporary), LOG.resolve())
        lay(served.project)
        try:
            served.start()
            measured = [served.measured(usual := len(served.processes()))]
            for number, victim in enumerate(plan(asked.runs, asked.seed), start=1):
                runs.append(one(served, number, victim, rng, min((told.seconds for told in runs), default=0.0)))
                measured.append(served.measured(usual))
                print("\n".join([[*table(runs, measured)][-1], *reasons(runs[-1])]), flush=True)
        finally:
            served.stop()
        killed = [told for told in runs if told.moment and told.release] or [told for told in runs if told.release]
        for told in rng.sample(killed, min(COMPARED, len(killed))):
            alike.append(undisturbed(served.project, told.commit, Path(temporary, told.commit)) == told.hashes)
    lines = [*table(runs, measured), ""]
    lines += [*(f"- run {i}, {why}" for i, told in enumerate(runs, start=1) for why in reasons(told)), ""]
    lines += [f"- {what}: {'yes' if holds else '**no**'}" for what, holds in verdicts(runs, measured, alike).items()]
    print("\n".join(lines))
    if asked.runs >= WHOLE:
        marks.replace(PAGE, "soak", "\n".join(lines))
    return int(not all(verdicts(runs, measured, alike).values()))


if __name__ == "__main__":
    sys.exit(main())
