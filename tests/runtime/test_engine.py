"""Work that is spread: the same bytes from every engine, a worker's death told and made good, nobody outlives the stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.contracts_settings import CLASSES, SETTINGS, SHAPE, digits
from helpers.jobs import diverge, who
from helpers.mortal import LAST, Mortal
from helpers.shadowing import shadow
from helpers.toy import ROOT, alive, descendants, until
from pipeline import config
from pipeline.config import Engine
from pipeline.errors import ConfigError, DataError, Diverged, WorkerLost
from pipeline.generators import sampling
from pipeline.generators.flow_matching import FlowMatching
from pipeline.generators.naive import Naive
from pipeline.runtime import engine

NAMES = ["zero", "one", "two"]
N, SHARD = 36, 8


def pool(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def fill(load: Any, family: str, folder: Path, where: Engine) -> dict[str, bytes]:
    plan = sampling.Plan([f"i{k}" for k in range(N)], [k % CLASSES for k in range(N)], list(range(N)), [["train-0"]] * N)
    folder.mkdir(exist_ok=True)
    sampling.write_pool(load, family, plan, NAMES, folder, shard_images=SHARD, where=where)
    return pool(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved models of two families; one computes on as many threads as there are."""
    folder = tmp_path_factory.mktemp("models")
    short: dict[str, Any] = {"steps": 3, "solver_steps": 2, "threads": 0}
    for kind, settings in ((Naive, SETTINGS["naive"]), (FlowMatching, SETTINGS["flow_matching"] | short)):
        model = kind(kind.Config(**settings), shape=SHAPE, n_classes=CLASSES)
        model.fit(*digits(), seed=0).save(folder / kind.name)
    return folder


@pytest.mark.parametrize("kind", [Naive, FlowMatching])
def test_a_pool_is_the_same_bytes_from_every_engine(
    kind: Any, models: Path, tmp_path: Path, local: Engine, cluster: Engine
) -> None:
    load = partial(kind.load, models / kind.name)
    pools = [fill(load, kind.name, tmp_path / str(i), where) for i, where in enumerate((local, several(local), cluster))]
    assert len(pools[0]) == 5 and pools[0] == pools[1] == pools[2]


def several(local: Engine) -> Engine:
    return local.model_copy(update={"workers": 2})


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_a_worker_that_is_killed_ends_the_stage_which_goes_on_to_the_same_bytes(
    kind: str, models: Path, tmp_path: Path, local: Engine, request: pytest.FixtureRequest
) -> None:
    where = several(local) if kind == "local" else request.getfixturevalue("cluster")
    load = partial(Mortal.marked, models / "naive", tmp_path / "mark")
    undisturbed = fill(load, "naive", tmp_path / "undisturbed", local)
    assert LAST == 2 * SHARD
    (tmp_path / "mark").touch()
    with pytest.raises(WorkerLost, match=r"ended.*lower engine\.workers") as caught:
        fill(load, "naive", tmp_path / "killed", where)
    assert "\n" not in str(caught.value) and caught.value.exit_status == (137 if kind == "local" else 1)
    left = pool(tmp_path / "killed")
    assert "part-00002.parquet" not in left and left.items() <= undisturbed.items()
    (tmp_path / "mark").unlink()
    assert fill(load, "naive", tmp_path / "killed", where) == undisturbed


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_what_a_job_refuses_is_told_as_it_stands(kind: str, local: Engine, request: pytest.FixtureRequest) -> None:
    where = several(local) if kind == "local" else request.getfixturevalue("cluster")
    with pytest.raises(Diverged, match=r"^\w diverged; lower lr$"):
        engine.spread(diverge, [Path("a"), Path("b")], where, usual=1, threads=1, count=print)


def test_one_local_worker_is_this_process_and_several_are_not(tmp_path: Path, local: Engine) -> None:
    for where, usual in ((local, 2), (several(local), 1)):
        engine.spread(who, [tmp_path / str(i) for i in range(3)], where, usual=usual, threads=1, count=lambda _: None)
        made = {file.read_text() for file in tmp_path.iterdir()}
        assert (made == {f"{os.getpid()} 1 {os.environ.get('CUDA_VISIBLE_DEVICES')}"}) == (where.workers == 1)


def test_each_worker_gets_an_accelerator_in_turn_and_its_share_of_the_threads(
    tmp_path: Path, local: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    where, pieces = local.model_copy(update={"workers": 3}), [tmp_path / str(i) for i in range(3)]
    engine.spread(who, pieces, where, usual=1, threads=0, count=lambda _: None)
    begun = [piece.read_text().split(maxsplit=1)[1] for piece in pieces]
    assert set(begun) <= {"2 4", "2 7"} and begun[0] == "2 4"


def test_images_are_counted_while_they_are_made(tmp_path: Path, local: Engine, cluster: Engine) -> None:
    for where in (local, several(local), cluster):
        counted: list[int] = []
        engine.spread(who, [tmp_path / str(i) for i in range(5)], where, usual=1, threads=1, count=counted.append)
        assert sum(counted) == 5


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "auto"])
def test_a_cluster_that_is_not_there_is_one_line(address: str, local: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", partial(_refuse, "no cluster"))  # the real one is busy with the others' cluster
    where = local.model_copy(update={"kind": "ray", "address": address})
    with pytest.raises(ConfigError, match=r"engine\.address=.*; expected .*; start one") as caught:
        engine.spread(who, [Path("a")], where, usual=1, threads=1, count=print)
    assert "\n" not in str(caught.value)
    if address == "127.0.0.1:1":
        assert "refused" in str(caught.value)


def _refuse(what: str, *_: object, **__: object) -> None:
    raise ConnectionError(what)


def test_without_ray_the_extra_is_named(local: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"install tailforge\[ray\]"):
        engine.spread(who, [Path("a")], local.model_copy(update={"kind": "ray"}), usual=1, threads=1, count=print)


def test_a_machine_without_the_folder_or_with_other_code_is_named(tmp_path: Path) -> None:
    hand = engine._Hand(who, 1)
    assert isinstance(hand.begin(str(tmp_path / "absent"), ""), DataError)
    refused = hand.begin(str(tmp_path), "other")
    assert isinstance(refused, ConfigError) and "different code" in str(refused)


# The imports are not those of the workers, which import the script too.
SCRIPT = """
if __name__ == "__main__":
    from pathlib import Path
    from helpers.jobs import linger
    from pipeline import config
    from pipeline.runtime import engine
    where = config.read(Path({root!r}, "params.yaml")).engine.model_copy(
        update={{"kind": {kind!r}, "workers": 2, "address": "local"}})
    engine.spread(linger, [Path({folder!r}, name) for name in "ab"], where, usual=1, threads=1, count=print)
"""


@pytest.mark.parametrize("kind", ["local", "ray"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_stage(kind: str, number: signal.Signals, tmp_path: Path) -> None:
    script, marks = tmp_path / "main.py", [tmp_path / name for name in "ab"]
    script.write_text(SCRIPT.format(root=str(ROOT), folder=str(tmp_path), kind=kind))
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    (project := tmp_path / "project").mkdir()
    shadow(project)  # whose modules no worker imports
    with open(tmp_path / "log", "wb") as log:
        stage = subprocess.Popen([sys.executable, "-P", script], env=os.environ | path, stdout=log, stderr=log, cwd=project)
    until(lambda: all(mark.exists() and mark.read_text() for mark in marks), "the start of two workers")
    family = {int(mark.read_text()) for mark in marks}
    if (kind, number) != ("ray", signal.SIGKILL):  # Ray's agents notice later that their cluster has gone
        family |= descendants(stage.pid)
    stage.send_signal(number)
    assert stage.wait(timeout=60) == {signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[number]
    until(lambda: not any(map(alive, family)), "the end of the workers")


def test_the_section_is_checked(local: Engine) -> None:
    for wrong in ({"kind": "dask"}, {"workers": -1}, {"adress": "auto"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            config.parse(Engine, local.model_dump() | wrong, "engine")
