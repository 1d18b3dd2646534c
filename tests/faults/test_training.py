"""Training that is stopped, killed or whose checkpoints are damaged ends with the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.toy import ROOT
from pipeline.core import work
from pipeline.runtime import training

STEPS = 6
Points = Callable[[int], None]


class Killed(Exception):
    pass


def trained(folder: Path | None, at: int = -1, how: Callable[[], None] = lambda: None) -> bytes:
    """Weights and their average after STEPS steps; before step `at` something happens."""
    network = nn.Linear(3, 2)
    for number, parameter in enumerate(network.parameters()):
        nn.init.constant_(parameter, 0.1 * (number + 1))
    own = training.Learner(network, training.Optimisation(steps=STEPS, lr=0.1, warmup=2, ema=0.9))

    def update(k: int) -> float:
        if k == at:
            how()
        return own.step(network(torch.randn(4, 3)).square().mean(), k)

    training.loop({"toy": own}, update, steps=STEPS, seed=1, name="toy", images_per_step=4, folder=folder, quiet=True)
    return b"".join(value.numpy().tobytes() for value in [*(p.detach() for p in own.parameters), *own.ema])


@pytest.mark.fault(5, "SIGTERM and Ctrl-C at every step: a checkpoint first, then the same weights, bit by bit")
@pytest.mark.parametrize(("number", "leaves"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_at_any_step_changes_no_weight(
    number: signal.Signals, leaves: type[BaseException], tmp_path: Path, points: Points
) -> None:
    undisturbed = trained(None)
    for k in range(STEPS):
        with pytest.raises(leaves):
            trained(tmp_path / str(k), k, lambda: signal.raise_signal(number))
        newest = max((tmp_path / str(k)).glob("*.safetensors"))
        assert int(newest.name.split("-")[0]) == k + 1  # the step was finished and kept
        assert trained(tmp_path / str(k)) == undisturbed
    points(STEPS)


def test_averages_remember_no_step() -> None:
    """A graph behind them would grow with every step."""
    own = training.Learner(nn.Linear(2, 1), training.Optimisation(steps=3, lr=0.1, ema=0.9))
    own.step(own.network(torch.ones(1, 2)).sum(), 0)
    assert not any(value.requires_grad for value in own.ema)


def die() -> None:
    raise Killed


@pytest.mark.fault(6, "a checkpoint cut at every block, a bit flipped in every eighth byte: named, the one before is taken")
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], points: Points
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    undisturbed = trained(None)
    with pytest.raises(Killed):
        trained(tmp_path, 4, die)
    before, newest = [(file, file.read_bytes()) for file in sorted(tmp_path.glob("*.safetensors"))]
    damages = [newest[1][:end] for end in range(0, len(newest[1]), 64)]
    damages += [
        newest[1][:i] + bytes([newest[1][i] ^ 1 << i // 8 % 8]) + newest[1][i + 1 :] for i in range(0, len(newest[1]), 8)
    ]
    for damage in damages:
        for file in tmp_path.iterdir():
            file.unlink()
        before[0].write_bytes(before[1])
        newest[0].write_bytes(damage)
        capsys.readouterr()
        assert trained(tmp_path) == undisturbed
        said = capsys.readouterr().err
        assert f"{newest[0].name} is torn" in said and "resuming at step 3" in said
    points(len(damages))


def test_both_checkpoints_damaged_is_a_fresh_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Killed):
        trained(tmp_path, 4, die)
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    assert trained(tmp_path) == trained(None)


KILLS = 30
LOOP = """\
import json, os, random, shutil, sys
from pathlib import Path

import pandas, pyarrow.dataset, scipy.ndimage, scipy.stats, torch._dynamo  # here and not in each child: they take seconds
from helpers.making import folders, params
from helpers.disk import Disk, contents
from pipeline.runtime import training
from pipeline.core import work
from pipeline.datasets import intake
from pipeline.encoders import statistics
from pipeline.generators import flow_matching
from pipeline.stages import drift, fit, prepare, sample

intake.SHARD, training.CHECKPOINT_SECONDS, work.code_key = 8, 0.0, lambda: "code"
tiny = {"steps": 4, "width": 16, "depth": 1, "batch_images": 8, "solver_steps": 1, "block_images": 8, "guidance": "none"}
settings = params(
    data={"source": "folder", "path": "raw", "image_size": 8}, flow_matching=tiny, drift={"permutations": 100},
    sample={"fill_to": 6, "shard_images": 4},
)
family, place = "flow_matching", {name: Path("data", name) for name in ("prepared", "drift", "model", "pool")}
rows, cost = place["drift"] / "reference", Path("costs/cost.json")
STAGES = {
    "prepare": lambda: prepare.run(settings, place["prepared"]),
    "drift": lambda: drift.run(settings, place["prepared"], place["drift"]),
    "fit": lambda: fit.run(settings, family, place["prepared"], rows, place["model"], cost),
    "sample": lambda: sample.run(settings, family, place["prepared"], rows, place["model"], place["pool"], cost),
}

def life(at):
    '''A process that runs what is not done yet, as DVC would, and is killed at an operation; whether it lived.'''
    child = os.fork()
    if not child:
        with Disk(Path(), at, real=True).watched():
            for name, stage in STAGES.items():
                if not Path("done", name).exists():
                    stage()
                    work.write(Path("done", name), "")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) in (0, -9), status
    return status == 0

rng, kills, alike, here = random.Random(int(sys.argv[1])), 0, 0, Path.cwd()
folders(Path("raw"), {"a": 12, "b": 12})
assert life(10**9)
expected = contents(Path("data"))
for name in ("data", "done", "costs"):
    shutil.rmtree(name)
runs = 0
while kills < int(sys.argv[2]):
    while not life(rng.randint(1, 160)):
        kills += 1
    runs += 1
    alike += contents(Path("data")) == expected and not list(Path(".tailforge/partial").rglob("*.parquet"))
    for name in ("data", "done", "costs"):
        shutil.rmtree(name)
print(json.dumps({"kills": kills, "runs": runs, "alike": alike, "files": len(expected)}))
"""


@pytest.mark.fault(7, "a loop of SIGKILLs at random operations of prepare, drift, fit and sample: each run ends alike (seed 0)")
def test_a_loop_of_kills_has_one_result(tmp_path: Path, points: Points) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", LOOP, "0", str(KILLS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] >= KILLS and told["runs"] == told["alike"] > 3 and told["files"] > 10
    points(told["kills"])
    print(f"seed 0: {told}")


def test_what_the_journal_notes_is_checked_and_the_rest_is_let_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Killed), work.resumable(Path("out"), 1) as folder:
        for name in ("a", "b/c", "d"):
            work.write(folder / name, name)
        (folder / "noted by nobody").write_text("x")
        raise Killed
    (folder / "b/c").write_text("x")
    journal = folder / work.JOURNAL
    journal.write_bytes(journal.read_bytes()[:-1] + b"\xff")  # torn: of `d` nothing is known
    with work.resumable(Path("out"), 1) as folder:
        assert sorted(file.name for file in folder.rglob("*") if file.is_file()) == [work.JOURNAL, "a", "d", "noted by nobody"]
        work.write(folder / "b/c", "made again")
    assert "b/c was damaged" in capsys.readouterr().err
    assert not (Path("out") / work.JOURNAL).exists()
