"""`tailforge serve` with all that it starts: a real server, real workers, and runs that a schedule or a person starts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.states import Cancelling

from flows import dvc, git, serve, server
from helpers.nightly import by_hand, lay
from helpers.released import OTHER, fill
from helpers.served import LONG, SERVE, Served, environ, free_port, processes, serving, supervisor
from helpers.toy import COLD, ROOT, alive, until

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    with serving(by_hand(lay(root / "project", command), but="augment"), root / "home") as found:
        found.slots = found.wait_for_slots()
        found.pause()
        yield found


def test_a_run_is_released_and_comes_into_the_project(served: Served) -> None:
    run = served.end(served.start("augment"))
    assert run.state and run.state.is_completed() and run.state.message == "v1: no_gain", served.output.read_text()
    assert git.ask(served.project, "log", "-1", "--format=%D").strip() == "HEAD -> main, tag: dataset@v1.0.0"
    assert not git.ask(served.project, "status", "--porcelain")
    assert (served.project / "data/models/gan/model").exists()
    assert sorted((family, device) for family, _, device in served.fits()) == [("gan", "cpu"), ("naive", "cpu")]
    stages = served.stages()
    assert sorted(str(stage.parameters["stage"]) for stage in stages) == ["fit@gan", "fit@naive"]
    assert {stage.work_pool_name for stage in stages} == {"gpu"}


def test_nothing_happens_without_new_data_and_an_event_brings_them(served: Served, command: Command) -> None:
    before = len(served.fits())
    run = served.end(served.start("augment-on-new-data"))
    assert run.state and run.state.message == "no new data" and len(served.fits()) == before
    fill(served.project, OTHER, "no_gain", 0.02)
    variables = {"PREFECT_API_URL": served.url, "PREFECT_API_AUTH_STRING": served.password}
    command(
        sys.executable, "-P", "-m", "prefect", "event", "emit", "tailforge.data.arrived", "--resource-id", "tailforge.data",
        cwd=served.project, **variables,
    )  # fmt: skip
    until(lambda: "dataset@v2.0.0" in git.ask(served.project, "log", "-1", "--format=%D"), "the second release", **LONG)
    assert len(served.fits()) == before + 2


@pytest.mark.fault(28, "images that come while `prepare` reads, and after it: this run is released, the next reads them")
def test_images_that_come_during_a_run_are_those_of_the_next(served: Served) -> None:
    (served.project / "source/first").write_text("an image that comes before the run")
    (served.control / "late").write_text("one that comes when `prepare` has read it")
    with served.waiting("images come") as (run, _):
        (served.project / "source/later").write_text("one that comes when `prepare` has ended")
        (served.control / "wait").unlink()
        ended = served.end(run)
    assert ended.state and ended.state.message == "v2: no_gain, as before", served.output.read_text()
    read = served.project / "data/prepared.txt"
    assert "source/first\n" in read.read_text() and "late" not in read.read_text()
    (served.project / "source/later").unlink()  # of `late` alone DVC has noted that it was read
    run = served.start("augment-on-new-data")
    assert str(served.end(run).state.message) == "v2: no_gain, as before"  # type: ignore[union-attr]
    assert "source/late\n" in read.read_text()
    run = served.start("augment-on-new-data")
    assert str(served.end(run).state.message) == "no new data"  # type: ignore[union-attr]


def test_a_setting_that_changes_no_result_comes_into_the_project_without_a_release(served: Served) -> None:
    before, released = len(served.fits()), git.ask(served.project, "tag")
    settings = served.project / "params.yaml"
    settings.write_text(settings.read_text().replace("seed: 0", "seed: 1"))
    git.ask(served.project, "commit", "--quiet", "--all", "--message", "seed 1")
    run = served.end(served.start("augment"))
    assert run.state and run.state.message == "v2: no_gain, as before", served.output.read_text()
    assert len(served.fits()) == before and git.ask(served.project, "tag") == released
    assert "seed: 1" in git.ask(served.project, "show", "HEAD:dvc.lock")
    assert not git.ask(served.project, "status", "--porcelain") and not dvc.changed(served.project)


@pytest.mark.fault(11, "a schedule that comes due starts one run, which nobody asked for")
def test_a_schedule_starts_its_run(served: Served) -> None:
    deployment = served.client.read_deployment_by_name("scheduled/augment").id
    known = {run.id for run in served.client.read_flow_runs(limit=200)}

    def begun() -> list[FlowRun]:
        found = served.client.read_flow_runs(limit=200)
        return [run for run in found if run.id not in known and run.state and not run.state.is_scheduled()]

    every = IntervalSchedule(interval=timedelta(minutes=1))
    [schedule] = served.client.create_deployment_schedules(deployment, [(every, True)])
    try:
        until(begun, "the run of the schedule", **LONG)
    finally:
        served.client.delete_deployment_schedule(deployment, schedule.id)  # and what it has planned
    ended = [served.end(run.id) for run in begun()]
    assert {str(run.state and run.state.message) for run in ended} == {"v2: no_gain, as before"}
    assert all(run.auto_scheduled for run in ended) and len({run.expected_start_time for run in ended}) == len(ended)


def test_evaluation_alone_fits_nothing(served: Served) -> None:
    before = len(served.fits())
    run = served.end(served.start("evaluate-only"))
    assert run.state and run.state.is_completed() and "as before" in str(run.state.message) and len(served.fits()) == before
    served.change("a fit")  # which is not asked for
    run = served.end(served.start("evaluate-only"))
    assert run.state and run.state.is_failed() and "the project has changed since its last run" in str(run.state.message)
    assert len(served.fits()) == before


def test_a_failed_stage_fails_the_run_with_its_own_lines(served: Served) -> None:
    served.change("fail")
    (served.control / "fail").write_text("")
    try:
        run = served.end(served.start("augment"))
    finally:
        (served.control / "fail").unlink()
    assert run.state and run.state.is_failed() and "no luck today" in str(run.state.message)
    assert "v3" not in git.ask(served.project, "tag")


@pytest.mark.fault(10, "a cancelled run leaves no stage on a worker")
def test_who_cancels_the_run_cancels_its_stages(served: Served) -> None:
    with served.waiting("cancel") as (run, fit):
        served.client.set_flow_run_state(run, Cancelling())
        until(lambda: not alive(fit), "the end of the fit", **LONG)
        ended = served.end(run)
        assert ended.state and ended.state.is_cancelled()
        until(lambda: all(r.state and r.state.is_final() for r in served.stages()), "the end of all stages", **LONG)
        stage = served.stages()[0]
        assert stage.state and stage.state.is_cancelled()


@pytest.mark.fault(11, "one run for each slot of the schedule")
def test_the_schedule_has_one_run_for_each_night(served: Served) -> None:
    assert len(served.slots) == len(set(served.slots)) and all("03:00:00" in slot for slot in served.slots)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "lets others in without a password; set PREFECT_SERVER_API_AUTH_STRING"),
        (["--port", "{taken}"], "choose another --port"),
    ],
)
def test_what_cannot_be_served_is_one_line(tmp_path: Path, command: Command, toy: Path, options: list[str], said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [word.format(taken=taken.getsockname()[1]) for word in options]
        done = command(sys.executable, "-c", SERVE, "serve", *words, cwd=toy, check=False, PREFECT_HOME=str(tmp_path))
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_the_command_of_prefect_that_fails_is_named_with_its_own_lines(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prefect.yaml").write_text("deployments: [{name: own, entrypoint: flows.nosuch.flow, work_pool: {name: cpu}}]")
    monkeypatch.setenv("PREFECT_API_URL", served.url)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", served.password)
    with pytest.raises(server.Refused, match="prefect --no-prompt deploy --all: ") as caught:
        serve._prepare(tmp_path / "prefect.yaml")
    assert "No module named 'flows.nosuch'" in str(caught.value) and "work pool" not in str(caught.value)


def test_a_worker_wants_a_server(tmp_path: Path, command: Command, toy: Path) -> None:
    done = command(sys.executable, "-c", SERVE, "worker", cwd=toy, check=False, PREFECT_API_URL="")
    assert done.returncode == 2 and "PREFECT_API_URL is not set" in done.stderr, done.stderr


@pytest.mark.fault(19, "the served server listens on 127.0.0.1 alone, and makes a password that only its user can read")
def test_it_listens_here_alone_and_makes_its_password(served: Served) -> None:
    port = urlsplit(served.url).port
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    assert {row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")} == {f"0100007F:{port:04X}"}
    file = served.project / ".tailforge/password"
    assert file.stat().st_mode & 0o777 == 0o600 and len(served.password) > 40
    secret = served.password.partition(":")[2]
    assert secret not in served.output.read_text(errors="replace")
    assert not any(secret.encode() in Path(f"/proc/{p}/cmdline").read_bytes() for p in processes(str(port)))


def test_whole_runs_do_not_see_the_devices_that_stages_hold(served: Served) -> None:
    seen = {}
    for pool in ("cpu", "gpu"):
        found = [p for p in processes(f"worker start --pool {pool}") if str(served.project).encode() in environ(p)]
        seen[pool] = {b"\0CUDA_VISIBLE_DEVICES=\0" in b"\0" + environ(p) for p in found if not supervisor(p)}
    assert seen == {"cpu": {True}, "gpu": {False}}


def test_its_pages_ask_whom_they_came_from(served: Served) -> None:
    with urllib.request.urlopen(f"{served.url.removesuffix('/api')}/ui-settings") as answer:
        told = json.load(answer)
    assert (told["api_url"], told["auth"]) == ("/api", "BASIC")


@pytest.mark.parametrize("words", [["run", "--force", "first"], ["worker"]])
@pytest.mark.parametrize("password", ["", "tailforge:guess"])
def test_who_does_not_know_the_servers_password_is_told_in_a_line(
    served: Served, command: Command, toy: Path, words: list[str], password: str
) -> None:
    variables = {"PREFECT_API_URL": served.url, "PREFECT_API_AUTH_STRING": password} | COLD
    done = command(sys.executable, "-c", SERVE, *words, cwd=toy, check=False, **variables)
    said = [line for line in done.stderr.splitlines() if line != "error: the run failed; the lines above say why"]
    assert done.returncode == 2 and len(said) == 1, done.stderr
    assert said[0].endswith("wants another password; set PREFECT_API_AUTH_STRING to USER:PASSWORD")


def test_a_run_names_the_server_that_does_not_answer(command: Command, toy: Path) -> None:
    address = f"http://user:secret@127.0.0.1:{free_port()}/api"
    done = command(
        sys.executable, "-c", SERVE, "run", "--force", "first", cwd=toy, check=False, PREFECT_API_URL=address, **COLD
    )  # fmt: skip
    assert done.returncode == 2 and "Failed to reach API at http://127.0.0.1" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "secret" not in done.stdout + done.stderr


def test_a_worker_waits_for_the_server_that_does_not_answer(tmp_path: Path, toy: Path) -> None:
    environment = os.environ | {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api", "PYTHONPATH": str(ROOT)}
    output = tmp_path / "output"
    with open(output, "wb") as stream:
        worker = subprocess.Popen(
            [sys.executable, "-c", SERVE, "worker"], cwd=toy, env=environment, stdout=stream, stderr=stream
        )
    try:
        until(lambda: "waiting for it" in output.read_text(), "its line", **LONG)
    finally:
        worker.terminate()
        worker.wait()
    assert "Traceback" not in output.read_text()
