"""A small project with DVC stages that take no time, and one that waits until it is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from flows import warm

ROOT = Path(__file__).parents[2]

DVC_YAML = """\
stages:
  first:
    cmd: python stage.py first
    deps: [stage.py]
    params: [seed]
    outs: [first.txt]
  second:
    matrix:
      family: ${generators}
    cmd: python stage.py second ${item.family}
    deps: [stage.py, first.txt]
    params:
      - ${item.family}
    outs:
      - data/runs/${item.family}
  last:
    cmd: python stage.py last
    deps: [stage.py, data/runs]
    metrics:
      - metrics.json:
          cache: false
"""

FAMILIES = """
naive:
  shrinkage: 0.2  # of the stage `second`, whose parameters DVC wants to find
external: {}
"""

STAGE = """\
import json, os, signal, subprocess, sys, time
from pathlib import Path

verb = sys.argv[1]
print("hello from", verb, flush=True)
for i in range(50):
    print(f"\\rstep {i}", end="", file=sys.stderr, flush=True)
print("\\rstep 50 of 50", file=sys.stderr)
if verb == "first":
    settings = Path("params.yaml").read_text()
    if "seed: 13" in settings:
        print("error: seed=13; expected a lucky one; change seed", file=sys.stderr)
        sys.exit(2)
    if "seed: 66" in settings:
        print("\\rstep 66", end="", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if "seed: 99" in settings:
        def leave(*_):
            Path("left").write_text("saved")
            sys.exit(143)
        signal.signal(signal.SIGTERM, leave)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("waiting", flush=True)
        Path("pids").write_text(f"{os.getpid()} {child.pid}")  # last: whoever reads it may end whoever hears this process
        time.sleep(600)
    Path("first.txt").write_text("".join(line for line in settings.splitlines() if line.startswith("seed:")))
elif verb == "second":
    folder = Path("data/runs") / sys.argv[2]
    folder.mkdir(parents=True)
    (folder / "model").write_text(sys.argv[2])
else:
    value = {"estimate": 0.75, "low": 0.5, "high": 1.0}
    both = {"balanced_accuracy": value, "tail_recall": value}
    Path("metrics.json").write_text(json.dumps(
        {"verdict": "no_gain", "baseline": "real", "gain": both, "arms": {"real": both, "synthetic": both}}))
"""


def run_command(*words: str | Path, cwd: Path, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with more variables of the environment; an AssertionError with its output where it fails, if `check`."""
    here = str(Path(sys.executable).parent)
    own = {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=os.environ | own | variables, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


# What `dvc init` writes. DVC itself would take a second, nearly all of it for imports.
INITIALISED = {
    ".dvc/config": "[core]\n    check_update = false\n",
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    ".dvcignore": "",
}


def initialise(folder: Path) -> None:
    """Make the folder a project of DVC's, which never looks for a newer version of itself."""
    (folder / ".dvc").mkdir()
    for name, text in INITIALISED.items():
        (folder / name).write_text(text)


def add_remote(folder: Path, address: str | Path, *, file: str = "config") -> None:
    """Write what `dvc remote add --default store ADDRESS` writes."""
    place = folder / ".dvc" / file
    text = place.read_text() if place.exists() else ""
    head = "" if "[core]\n" in text else "[core]\n"
    place.write_text(f"{text}{head}    remote = store\n['remote \"store\"']\n    url = {address}\n")


def setting(folder: Path, old: str, new: str) -> None:
    """Replace text in params.yaml."""
    file = folder / "params.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


COLD = {warm.VARIABLE: ""}  # the variable for a run whose stages ask for no warm process, so that it starts none
WAIT = 240.0  # seconds until a condition that must come true counts as failed


def until(condition: Callable[[], object], what: str, seconds: float = WAIT, pause: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(pause)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def pids(folder: Path) -> list[int]:
    """The processes of the stage `first` when it waits: itself and its child."""
    until(lambda: (folder / "pids").exists() and len((folder / "pids").read_text().split()) == 2, "the start of the stage")
    return list(map(int, (folder / "pids").read_text().split()))


def descendants(pid: int) -> set[int]:
    """The process's children, theirs, and so on."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found, fresh = set(), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found
