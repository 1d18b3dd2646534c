"""A project whose stages take no time: `source/` holds what they are to make. For tests of releases."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from helpers.toy import initialise
from pipeline.core import images
from pipeline.core.manifest import Manifest

Command = Callable[..., subprocess.CompletedProcess[str]]
Pool = Mapping[str, tuple[str, int, bool]]  # {sample_id: (class, what the pixels show, accepted)}

DVC_YAML = """\
stages:
  make:
    cmd: rm -rf data/pools data/checked data/runs && cp -r source/. .
    deps: [source]
    params: [seed]
    outs: [data/pools/naive, data/checked/naive, data/runs/naive, data/runs/real]
    metrics:
      - metrics.json: {cache: false}
      - gains.csv: {cache: false}
"""
FIRST: Pool = {
    "naive-0": ("cat", 0, True),
    "naive-1": ("cat", 1, True),
    "naive-2": ("cat", 2, False),
    "naive-3": ("../up", 3, True),
    "naive-4": ("a_b*", 4, False),
}
OTHER: Pool = {  # of FIRST: naive-0 kept, naive-1 called naive-9, naive-2 accepted, naive-3 redrawn, a class is new
    "naive-0": ("cat", 0, True),
    "naive-9": ("cat", 1, True),
    "naive-2": ("cat", 2, True),
    "naive-3": ("../up", 7, True),
    "naive-5": ("dog", 5, True),
}


def pixels(shown: int) -> np.ndarray:
    return np.full((1, 4, 4), shown, np.uint8)


def fill(folder: Path, pool: Pool, verdict: str, estimate: float = 0.01) -> None:
    """Lay in `source/` a pool, what the checks say of it and metrics with this verdict."""
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    for place in ("pools/naive", "checked/naive", "runs/naive", "runs/real"):
        (source / "data" / place).mkdir(parents=True)
    shown = [pixels(value) for _, value, _ in pool.values()]
    n = len(pool)
    rows = Manifest.from_columns(
        sample_id=pool, image=[images.encode_png(p) for p in shown], label=[label for label, _, _ in pool.values()],
        split=["train"] * n, group=pool, origin=["synthetic"] * n, generator=["naive"] * n, seed=range(n), sources=[[]] * n,
        pixel_hash=[images.pixel_hash(p) for p in shown],
    )  # fmt: skip
    pq.write_table(rows.table.slice(0, 3), source / "data/pools/naive/part-00000.parquet")
    pq.write_table(rows.table.slice(3), source / "data/pools/naive/part-00001.parquet")
    judged = {"sample_id": list(pool), "accepted": [accepted for _, _, accepted in pool.values()]}
    pq.write_table(pa.table(judged), source / "data/checked/naive/images.parquet")
    for place in ("naive", "real"):
        (source / "data/runs" / place / "0.safetensors").write_text(f"{place} {estimate}")
    value = {"estimate": estimate, "low": estimate - 0.005, "high": estimate + 0.005}
    both = {"balanced_accuracy": value, "tail_recall": value}
    metrics = {
        "verdict": verdict, "generator": "naive", "baseline": "augment", "gain": both,
        "arms": {"augment": both, "synthetic": both},
    }  # fmt: skip
    (source / "metrics.json").write_text(json.dumps(metrics))
    (source / "gains.csv").write_text("arm,metric,estimate,low,high\n")


def begin(folder: Path, command: Command) -> None:
    """Make the folder a repository of git's and DVC's, all committed."""
    command("git", "init", "--quiet", "--initial-branch=main", cwd=folder)
    initialise(folder)
    command("git", "add", "--all", cwd=folder)
    command("git", "commit", "--quiet", "--message", "New project", cwd=folder)


def lay(folder: Path, command: Command) -> Path:
    """The project after a commit and one run with the verdict no_gain, which is not committed."""
    folder.mkdir(parents=True)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text("seed: 0  # of all\n")
    (folder / ".gitignore").write_text(".tailforge\n/source/\n/data/*\n!/data/lists/\n/dataset-v*/\n")
    (folder / "notes.md").write_text("notes\n")
    begin(folder, command)
    run(folder, command, FIRST, "no_gain")
    return folder


def run(folder: Path, command: Command, pool: Pool, verdict: str, estimate: float = 0.01) -> None:
    """Let the stages make this."""
    fill(folder, pool, verdict, estimate)
    command("dvc", "repro", "--quiet", cwd=folder)
