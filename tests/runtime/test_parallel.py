"""Processes that share a batch learn what one learns; where one goes, all go; and the fit goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import curve
from helpers.digits_project import params, write
from helpers.shadowing import shadow
from helpers.toy import ROOT, alive, until
from pipeline.config import Params
from pipeline.errors import ConfigError, Diverged, OutOfMemory, WorkerLost
from pipeline.generators.shared.base import in_blocks
from pipeline.runtime import parallel
from pipeline.runtime.training import Learner, Optimisation, loop
from pipeline.stages import __main__, fit


@pytest.fixture(autouse=True)
def modules_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))


def shared(folder: Path, fits: dict[str, tuple[str, str]]) -> None:
    """Two processes do these fits of helpers/curve.py, each in a folder of that name."""
    folder.mkdir(exist_ok=True)
    parallel.launch("helpers.curve", 2, folder, json.dumps(fits))


def losses(folder: Path) -> np.ndarray:
    return np.array(json.loads((folder / "losses.json").read_text()))


FAMILIES = ["flow_matching", "diffusion", "vae", "normalizing_flow", "autoregressive"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make of each family, and of one whose gradients they do not average.

    They do one fit after the other: to start, they take longer than for all of these.
    """
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        shared(folder, {family: (family, "") for family in FAMILIES} | {"apart": ("flow_matching", "apart")})
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What this process makes of `flow_matching` alone."""
    folder = tmp_path_factory.mktemp("one")
    curve.fit(folder, "flow_matching")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_have_the_losses_of_one(family: str, one: Path, two: Path, tmp_path: Path) -> None:
    if family != "flow_matching":
        curve.fit(one := tmp_path, family)
    assert len(losses(one)) == len(losses(two / family)) == curve.STEPS
    np.testing.assert_allclose(losses(two / family), losses(one), rtol=1e-5)


def test_each_process_computes_on_its_own_rows_alone(one: Path, two: Path) -> None:
    found = [file.read_text() for folder in (one, two / "flow_matching") for file in sorted(folder.glob("rows-*"))]
    assert found == ["{32}", "{16}", "{16}"]


def test_without_averaged_gradients_the_losses_part(one: Path, two: Path) -> None:
    assert not np.allclose(losses(two / "apart"), losses(one), rtol=2e-2)


def test_where_one_process_is_killed_all_end_and_the_fit_goes_on(two: Path, tmp_path: Path) -> None:
    undisturbed = losses(two / "flow_matching")
    dies = {"": ("flow_matching", "die")}
    with pytest.raises(WorkerLost, match=r"status -9.*resumes from the last checkpoint") as killed:
        shared(tmp_path, dies)
    assert killed.value.exit_status == 137
    assert not any(alive(int((tmp_path / f"at-{rank}").read_text().split()[0])) for rank in range(2))
    shared(tmp_path, dies)
    rest = losses(tmp_path)
    np.testing.assert_array_equal(rest, undisturbed[-len(rest) :])
    assert 0 < len(rest) <= curve.STEPS // 2 + 1
    assert (two / "flow_matching/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_what_a_process_refuses_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="lower lr"):
        shared(tmp_path, {"": ("flow_matching", "diverge")})


LOOPBACK = "0100007F"


def addresses(processes: list[int]) -> set[str]:
    """Where these listen, as /proc/net has it."""
    open_files = [os.readlink(file) for pid in processes for file in Path(f"/proc/{pid}/fd").iterdir()]
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in open_files}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_stage(number: signal.Signals, tmp_path: Path) -> None:
    given = '{"": ["flow_matching", "wait"]}'
    code = f"import sys; from pipeline.runtime import parallel; parallel.launch('helpers.curve', 2, {tmp_path!r}, '{given}')"
    (project := tmp_path / "project").mkdir()
    shadow(project)  # whose modules no process imports
    stage = subprocess.Popen([sys.executable, "-P", "-c", f"from pathlib import PosixPath; {code}"], cwd=project)
    marks = [tmp_path / f"at-{rank}" for rank in range(2)]
    until(lambda: all(mark.exists() and mark.read_text() for mark in marks), "the first step of both")
    family = [int(mark.read_text().split()[0]) for mark in marks]
    assert addresses([stage.pid, *family]) == {LOOPBACK}
    until(lambda: list((tmp_path / ".checkpoints").glob("*.safetensors")), "the first checkpoint")  # a kill waits for none
    stage.send_signal(number)
    assert stage.wait(timeout=60) == {signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[number]
    until(lambda: not any(map(alive, family)), "the end of both")
    assert list((tmp_path / ".checkpoints").glob("*.safetensors"))


def of_flow_matching(processes: int, **values: int) -> Params:
    settings = params(fit={"processes": processes})
    return settings.model_copy(update={"families": {"flow_matching": values}})


def test_the_stage_fits_with_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = write(tmp_path / "project")
    monkeypatch.chdir(project)
    for n in (1, 2):
        settings = of_flow_matching(n, steps=3, width=16, batch_images=8)
        fit.run(settings, "flow_matching", Path("prepared"), Path("prepared"), Path(f"model-{n}"), Path(f"cost-{n}.json"))
    one, two = (curve.registry.family("flow_matching").load(Path(f"model-{n}")).networks.state_dict() for n in (1, 2))
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)
    assert [file.name for file in Path("model-2").iterdir()] == ["model.safetensors"]


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    settings = of_flow_matching(2, batch_images=9)
    with pytest.raises(ConfigError, match=r"set flow_matching\.batch_images=8"):
        fit.run(settings, "flow_matching", tmp_path, tmp_path, tmp_path, tmp_path)


def test_a_family_without_such_batches_is_fitted_by_one_process_which_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit._processes(2, "naive", 0) == 1
    assert capsys.readouterr().err == "naive: fitted by one process, its batches cannot be shared\n"


@pytest.mark.fault(26, "memory runs out while images are made: blocks are halved, and the images stay")
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_where_memory_runs_out_the_batch_halves_and_images_stay(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[int] = []

    def make(labels: torch.Tensor, seeds: list[int], most: int = 99) -> torch.Tensor:
        asked.append(len(labels))
        if len(labels) > most:
            raise error
        return labels[:, None].float() + torch.tensor(seeds)[:, None] / 1000

    labels, seeds = torch.arange(11) % 3, range(11)
    whole = in_blocks(make, labels, seeds, 8, (1,))
    asked.clear()
    assert torch.equal(in_blocks(lambda y, of: make(y, of, 3), labels, seeds, 8, (1,)), whole)
    assert asked == [8, 4, *[2] * 6]
    assert (
        capsys.readouterr().err
        == "memory ran out: going on in blocks of 4 images\nmemory ran out: going on in blocks of 2 images\n"
    )
    with pytest.raises(OutOfMemory, match="a single image"):
        in_blocks(lambda y, of: make(y, of, 0), labels, seeds, 8, (1,))


def test_another_fault_is_not_taken_for_the_end_of_memory() -> None:
    def make(labels: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match=r"^shapes$"):
        in_blocks(make, torch.arange(3), range(3), 2, (1,))


@pytest.mark.fault(26, "memory runs out in a step of a fit: one line names what to lower")
def test_memory_that_runs_out_in_a_fit_is_one_line() -> None:
    learner = Learner(torch.nn.Linear(1, 1), Optimisation(steps=1, lr=0.1))

    def update(k: int) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    with pytest.raises(OutOfMemory, match="lower batch_images") as caught:
        loop({"n": learner}, update, steps=1, seed=0, name="x", images_per_step=1, quiet=True)
    assert "\n" not in str(caught.value)


@pytest.mark.fault(26, "memory runs out anywhere else in a stage: one line")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("Unable to allocate 3 TiB"), "Unable to allocate 3 TiB"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "CUDA out of memory."),
    ],
)
def test_memory_that_runs_out_in_a_stage_is_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("pipeline.stages.prepare.run", run)
    assert __main__.main(["prepare", "--out", "x"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: memory ran out in prepare: {said}; free some") and told.count("\n") == 1
    error = RuntimeError("shapes")
    with pytest.raises(RuntimeError, match="shapes"):
        __main__.main(["prepare", "--out", "x"])
