"""`python -m benchmarks.kills`: whole runs killed again and again at random moments; each ends as an undisturbed one does.

One undisturbed run with small settings gives the hashes of all outputs and the time T. Then, until there were N kills: a fresh
clone, whose `tailforge run` is killed after U(0, T / 2) seconds and started again, until it ends by itself; then the hashes are
compared. Exit status 1 where one differs, a process of a killed run lives on for more than 30 seconds, or a run fails. Thirty
kills or more by SIGKILL write docs/kills.md.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml

from benchmarks import marks, processes

PAGE = Path("docs/kills.md")
WHOLE = 30  # kills from which the page is written
LEAVE = 30.0  # seconds in which all processes of a killed run have to be gone
SMALL = {
    "generators": "[flow_matching]", "scarcity.largest": 20, "flow_matching.steps": 150, "flow_matching.width": 16,
    "sample.fill_to": 20, "judges.steps": 40, "judges.width": 8, "validate.bootstrap": 20, "measure.rows": 10,
    "measure.seeds": 1, "classifier.steps": 60, "classifier.width": 8, "arms.seeds": 2, "arms.selection_seeds": 1,
    "arms.real": "[real, augment]", "arms.synthetic_fractions": "[0.0, 0.5]", "arms.labels": "[soft]",
    "evaluate.bootstrap": 100,
}  # fmt: skip
TAILFORGE = [sys.executable, "-c", "from tailforge.cli import main; main()"]


def copy(folder: Path) -> None:
    """A fresh clone of this repository with small settings, and no results."""
    subprocess.run(["git", "clone", "--quiet", ".", str(folder)], check=True)
    for name in ("dvc.lock", "metrics.json", "gains.csv"):
        (folder / name).unlink(missing_ok=True)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """`tailforge run` with the small settings, in a session of its own."""
    options = [word for key, value in SMALL.items() for word in ("-S", f"{key}={value}")]
    log = open(folder / "run.log", "ab")  # noqa: SIM115 - the process keeps it
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.Popen(
        [*TAILFORGE, "run", *options], cwd=folder, stdout=log, stderr=log, start_new_session=True, env=environment
    )


def hashes(folder: Path) -> dict[str, str]:
    """Each output's hash as DVC has it; but for costs, which are seconds."""
    lock = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))
    return {
        out["path"]: out["md5"]
        for stage in lock["stages"].values()
        for out in stage.get("outs", [])
        if not out["path"].startswith("data/costs/")
    }


def stage(mark: str) -> str:
    """The stage that a run is at, whose processes have `mark` in their environment; or that it is at none."""
    commands = [p.command for p in processes.of(mark) if "-m pipeline.stages " in p.command]
    return commands[0].partition("-m pipeline.stages ")[2].split()[0] if commands else "no stage, as at the start"


def kill(folder: Path, number: signal.Signals, moment: float) -> tuple[int | None, str]:
    """`tailforge run` in `folder`, which gets the signal after `moment` seconds: its exit status where it ended by itself
    before that, else None and the stage it was at. Raises RuntimeError where a process outlives it."""
    process, mark = start(folder), f"{folder}\0"
    try:
        return process.wait(timeout=moment), ""
    except subprocess.TimeoutExpired:
        at = stage(mark)
        process.send_signal(number)
    process.wait()
    patience = time.monotonic() + LEAVE
    while left := processes.of(mark):
        if time.monotonic() > patience:
            raise RuntimeError(f"outlived {number.name} in {at}: {left}")
        time.sleep(0.2)
    return None, at


def main() -> int:
    """Print a line per kill and per run; 0 where all runs ended alike."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=WHOLE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signals", nargs="+", default=["SIGKILL"], help="in turn")
    asked = parser.parse_args()
    rng, signals = random.Random(asked.seed), [signal.Signals[name] for name in asked.signals]
    killed, runs, alike = list[str](), 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        undisturbed = Path(temporary) / "undisturbed"
        copy(undisturbed)
        began = time.monotonic()
        if start(undisturbed).wait():
            print((undisturbed / "run.log").read_text()[-2000:])
            return 1
        whole, expected = time.monotonic() - began, hashes(undisturbed)
        print(f"undisturbed: {whole:.0f} s, {len(expected)} outputs", flush=True)
        while len(killed) < asked.kills:
            folder, status = Path(temporary) / f"run{runs}", None
            copy(folder)
            while status is None:
                number, moment = signals[len(killed) % len(signals)], rng.uniform(0, whole / 2)
                status, at = kill(folder, number, moment)
                if status is None:
                    killed.append(at)
                    print(f"{len(killed)}: {number.name} after {moment:5.1f} s: {at}", flush=True)
            found = hashes(folder) if status == 0 else {}
            differ = sorted(path for path in expected | found if expected.get(path) != found.get(path))
            runs += 1
            alike += not differ
            print(f"run {runs}: exit status {status}, {len(differ)} other hashes", flush=True)
            if differ:
                print(f"{differ}\n{(folder / 'run.log').read_text()[-9000:]}", flush=True)
    lines = ["| killed in | times |", "|---|---|"]
    lines += [f"| {at} | {times} |" for at, times in sorted(Counter(killed).items())]
    hashed = f"{len(expected)} hashes"
    lines += ["", f"{alike} of {runs} runs, killed {len(killed)} times, ended with the {hashed} of one that was left alone."]
    print("\n".join(lines))
    if asked.kills >= WHOLE and signals == [signal.SIGKILL]:
        marks.replace(PAGE, "kills", "\n".join(lines))
    return int(alike < runs)


if __name__ == "__main__":
    sys.exit(main())
