"""Stages on workers of other hosts, by Prefect itself: `tailforge serve --no-devices` and `tailforge worker` in clones.

A host is a folder of its own with its clone, its DVC cache, its Prefect and its temporary files (so its locks of devices); in
one test it has a network of its own too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows import dvc, git
from helpers.nightly import by_hand, clone, heads, lay
from helpers.served import LONG, SERVE, Served, own_processes, serving
from helpers.toy import ROOT, until

Command = Callable[..., subprocess.CompletedProcess[str]]
PASSWORD = "night:watch"
WORKER = [sys.executable, "-P", "-c", SERVE, "worker"]


@contextmanager
def working(host: Path, url: str, *inside: str) -> Iterator[subprocess.Popen[bytes]]:
    """`tailforge worker` in the clone of a host until the end of the block; `inside` is what its command begins with."""
    for name in ("prefect", "temporary"):
        (host / name).mkdir()
    own = {"PREFECT_HOME": str(host / "prefect"), "TMPDIR": str(host / "temporary"), "PYTHONPATH": str(ROOT)}
    own |= {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": PASSWORD}
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"} | own
    output = host / "output"
    with open(output, "wb") as stream:
        process = subprocess.Popen(
            [*inside, *WORKER], cwd=host / "clone", env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
    try:

        def ready() -> bool:
            assert process.poll() is None, output.read_text(errors="replace")
            return "started!" in output.read_text(errors="replace")

        until(ready, "the worker", **LONG)
        yield process
    finally:
        process.terminate()
        process.wait()


def fits(host: Path) -> list[str]:
    """The families whose fit has begun on a host."""
    log = host / "control/log"
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def released(served: Served, model: str) -> None:
    """The run's release is in the project, with what the hosts made, and at git's remote."""
    assert git.ask(served.project, "log", "-1", "--format=%D").strip() == "HEAD -> main, tag: dataset@v1.0.0"
    assert not git.ask(served.project, "status", "--porcelain") and not dvc.changed(served.project)
    for family in {family for host in served.project.parent.glob("host*") for family in fits(host)}:
        assert (served.project / "data/models" / family / "model").read_text() == model
    assert "refs/tags/dataset@v1.0.0" in git.ask(served.project, "ls-remote", "--tags", "origin")
    assert served.fits() == [], "it was the project's own host that worked"


@pytest.mark.fault(
    10, "a host taken for dead that wakes up and sends its stage late: the run has that of the host that it saw end"
)
def test_a_host_that_wakes_up_too_late_changes_nothing(tmp_path: Path, command: Command) -> None:
    project = by_hand(lay(tmp_path / "project", command, families="[naive]"), "origin")
    slow, quick = tmp_path / "host1", tmp_path / "host2"
    clone(project, command, slow / "clone", quick / "clone")
    (slow / "control/add").write_text("late")
    (slow / "control/wait").write_text("")
    with serving(project, tmp_path / "home", "--no-devices", workers=1, password=PASSWORD) as served, working(slow, served.url):
        run = served.start("augment")
        until(lambda: fits(slow), "the fit on the first host", **LONG)
        asleep = own_processes(served.stages()[0])
        try:
            for process in asleep:
                os.kill(process, signal.SIGSTOP)
            with working(quick, served.url):
                ended = served.end(run)
                assert ended.state and ended.state.message == "v1: no_gain", served.output.read_text()
            assert heads(project, "origin") == ["refs/heads/main"]
        finally:
            (slow / "control/wait").unlink()
            for process in asleep:
                os.kill(process, signal.SIGCONT)
        late = served.stages()[-1]
        until(lambda: len(heads(project, "origin")) == 2, "the late push", **LONG)
        assert heads(project, "origin")[-1].endswith(f"--fit-naive--{late.id}")
        assert (fits(slow), fits(quick)) == (["naive"], ["naive"])
        released(served, (project / ".tailforge/worktrees/scheduled/data/prepared.txt").read_text())
        served.change("fail")
        (slow / "control/fail").write_text("")
        ended = served.end(served.start("augment"))
        assert ended.state and ended.state.is_failed() and "no luck today" in str(ended.state.message), ended.state
        assert len(heads(project, "origin")) == 2, "branches of the run that failed"


@contextmanager
def network() -> Iterator[tuple[str, list[str]]]:
    """A network namespace joined to this one by a pair of virtual devices: this end's address, and the words that run a command
    there. It is gone with its last process."""
    if missing := [name for name in ("unshare", "nsenter", "ip") if not shutil.which(name)]:
        pytest.skip(f"{missing[0]} is not installed: it is in the system's packages util-linux and iproute2")
    with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        inside = ["nsenter", "--net", "--target", str(holder.pid)]
        here, there, number = f"tf{holder.pid}", f"tg{holder.pid}", 4 * (holder.pid % (1 << 14))
        ends = [f"169.254.{(number + i) >> 8}.{(number + i) & 255}" for i in (1, 2)]  # of a link of two
        until(lambda: holder.poll() is not None or separate(holder.pid), "the namespace")
        for words in (
            ["ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", str(holder.pid)],
            ["ip", "address", "add", f"{ends[0]}/30", "dev", here],
            ["ip", "link", "set", here, "up"],
            [*inside, "ip", "address", "add", f"{ends[1]}/30", "dev", there],
            [*inside, "ip", "link", "set", there, "up"],
        ):
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                holder.terminate()
                pytest.skip(f"no network namespace here: {' '.join(words[:3])}: {done.stderr.strip()}")
        yield ends[0], inside


def separate(process: int) -> bool:
    return os.readlink(f"/proc/{process}/ns/net") != os.readlink("/proc/self/ns/net")


def reaches(inside: Sequence[str], url: str) -> bool:
    program = f"import urllib.request; urllib.request.urlopen('{url}/health', timeout=5)"
    return subprocess.run([*inside, sys.executable, "-c", program], capture_output=True).returncode == 0


def test_a_host_with_a_network_of_its_own_does_the_stages(tmp_path: Path, command: Command) -> None:
    project, host = by_hand(lay(tmp_path / "project", command), "origin"), tmp_path / "host"
    clone(project, command, host / "clone")
    with (
        network() as (address, inside),
        serving(project, tmp_path / "home", "--no-devices", host=address, workers=1, password=PASSWORD) as served,
        working(host, served.url, *inside) as worker,
    ):
        assert separate(worker.pid) and reaches(inside, served.url)
        assert not reaches(inside, served.url.replace(address, "127.0.0.1"))
        ended = served.end(served.start("augment"))
        assert ended.state and ended.state.message == "v1: no_gain", served.output.read_text()
        assert sorted(fits(host)) == ["gan", "naive"]
        released(served, (host / "clone/.tailforge/worktrees/stage-cpu/data/prepared.txt").read_text())
        assert heads(project, "origin") == heads(host / "clone", ".") == ["refs/heads/main"]
        assert dvc.cache(host / "clone") != dvc.cache(project) and not (host / "clone/source").exists()
