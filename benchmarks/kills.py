"""`python -m benchmarks.kills`: stop whole runs at random moments, finish each, compare with an undisturbed run.

One undisturbed run with small settings gives the hashes of all outputs and the time T. Then, N times: a fresh copy of the
repository, a run whose `tailforge run` gets SIGKILL, SIGTERM or SIGINT (in turn) at a moment drawn from U(0, T), a second run
that finishes it, and the hashes again. Exit status 1 where one differs, a process of the stopped run lives on for more than
30 seconds, or the second run fails.
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
from pathlib import Path

import yaml

from benchmarks import processes

SMALL = {
    "generators": "[flow_matching]", "scarcity.largest": 20, "flow_matching.steps": 150, "flow_matching.width": 16,
    "sample.fill_to": 20, "judges.steps": 40, "judges.width": 8, "validate.bootstrap": 20, "measure.rows": 10,
    "measure.seeds": 1, "classifier.steps": 60, "classifier.width": 8, "arms.seeds": 2, "arms.selection_seeds": 1,
    "arms.real": "[real, augment]", "arms.doses": "[0.0, 0.5]", "arms.labels": "[soft]", "evaluate.bootstrap": 100,
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


def main() -> int:
    """Print a line per stopped run; 0 where all ended alike."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng, wrong = random.Random(asked.seed), 0
    with tempfile.TemporaryDirectory() as temporary:
        undisturbed = Path(temporary) / "undisturbed"
        copy(undisturbed)
        began = time.monotonic()
        if start(undisturbed).wait():
            print((undisturbed / "run.log").read_text()[-2000:])
            return 1
        whole, expected = time.monotonic() - began, hashes(undisturbed)
        print(f"undisturbed: {whole:.0f} s, {len(expected)} outputs", flush=True)
        for i in range(asked.kills):
            folder, moment = Path(temporary) / f"run{i}", rng.uniform(0, whole)
            number = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[i % 3]
            copy(folder)
            process = start(folder)
            try:
                process.wait(timeout=moment)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
            stopped, patience = process.wait(), time.monotonic() + 30.0
            while (left := processes.of(f"{folder}\0")) and time.monotonic() < patience:
                time.sleep(0.2)
            status = start(folder).wait()
            found = hashes(folder) if status == 0 else {}
            differ = sorted(path for path in expected | found if expected.get(path) != found.get(path))
            alike = status == 0 and not differ and not left
            wrong += not alike
            print(
                f"{number.name} after {moment:5.1f} s: status {stopped}, then {status}; {'alike' if alike else 'DIFFERENT'}",
                flush=True,
            )
            if not alike:
                print(f"other hashes: {differ}\nleft: {left}\n{(folder / 'run.log').read_text()[-9000:]}", flush=True)
    print(f"{asked.kills - wrong} of {asked.kills} stopped runs ended as the undisturbed one")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
