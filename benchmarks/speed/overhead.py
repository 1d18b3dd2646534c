"""What `tailforge run` takes beside the work of its stages: Prefect, DVC, start-up, imports."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from benchmarks.kills import SMALL, TAILFORGE
from flows import dvc
from pipeline.stages import __main__ as stages
from tailforge import project

IMPORTED = ("great_expectations.expectations", "torch._dynamo", "sklearn.linear_model", "torchvision.models")


def commands(lock: str, names: Sequence[str]) -> list[list[str]]:
    """Arguments of `python -m pipeline.stages` for the stages called `names`, from the text of dvc.lock."""
    found = yaml.safe_load(lock)["stages"]
    every = [shlex.split(found[name]["cmd"]) for name in names if name in found]
    return [words[words.index("pipeline.stages") + 1 :] for words in every]


def replay(folder: Path) -> float:
    """Seconds of all stages of the project in `folder`, called in this process, the second time that they are."""
    from importlib import import_module

    for name in (*IMPORTED, *(f"pipeline.stages.{verb}" for verb in stages.VERBS)):
        import_module(name)
    os.chdir(folder)
    todo, taken = commands(Path("dvc.lock").read_text(encoding="utf-8"), dvc.stages(folder)), 0.0
    for _ in range(2):
        began = time.perf_counter()
        for words in todo:
            if status := stages.main(words):
                raise SystemExit(status)
        taken = time.perf_counter() - began
    return taken


def measure() -> Iterator[tuple[str, float, str]]:
    """Figures of this part."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "project"
        project.lay(folder, {}, "the digits that come with scikit-learn")
        environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "DO_NOT_TRACK": "1", "DVC_NO_ANALYTICS": "1"}
        settings = [word for key, value in SMALL.items() for word in ("-S", f"{key}={value}")]
        walls = []
        for options in (settings, []):
            began = time.perf_counter()
            subprocess.run([*TAILFORGE, "run", *options], cwd=folder, env=environment, stdout=sys.stderr, check=True)
            walls.append(time.perf_counter() - began)
        shutil.copytree(folder, Path(temporary) / "again", symlinks=True)
        said = subprocess.run(
            [sys.executable, "-m", "benchmarks.speed.overhead", str(Path(temporary) / "again")], env=environment, check=True,
            stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip
        work = float(json.loads(said.splitlines()[-1]))
        yield "stages", len(dvc.stages(folder)), ""
    yield "wall", walls[0], "s"
    yield "work", work, "s"
    yield "up_to_date", walls[1], "s"
    yield "overhead_seconds", walls[0] - work, "s"


if __name__ == "__main__":
    print(json.dumps(replay(Path(sys.argv[1]))))
