"""The warm process with stages of the test's own: a fork is as good as a process, and nothing outlives who asked for it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows import children, warm
from helpers.toy import ROOT, WAIT, alive, until
from pipeline.runtime import stage_client

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the warm process is for Linux: elsewhere each stage starts by itself"
)

STAGES = """\
import json, multiprocessing, os, signal, sys, threading
from pathlib import Path

from pipeline.runtime import stage_client


def main():
    verb, *rest = sys.argv[1:]
    if verb == "show":
        told = {
            "pid": os.getpid(), "parent": os.getppid(), "arguments": rest, "folder": os.getcwd(), "path": sys.path,
            "variable": os.environ.get("GIVEN"), "warm": stage_client.VARIABLE in os.environ, "name": __name__,
            "spec": sys.modules["__main__"].__spec__.name, "threads": threading.active_count(),
            "streams": [os.fstat(n).st_ino for n in range(3)], "open": os.listdir("/proc/self/fd"),
            "signals": [repr(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        }
        print(json.dumps(told))
    elif verb == "leave":
        print("last words", end="")
        sys.exit(int(rest[0]))
    elif verb == "raise":
        raise RuntimeError("a fault")
    elif verb == "die":
        os.kill(os.getpid(), int(rest[0]))
    elif verb == "talk":
        print(os.getpid(), flush=True)
        print("error:", input(), file=sys.stderr, flush=True)
        print("done", flush=True)
    elif verb == "save":
        def leave(*_):
            print("saved", flush=True)
            sys.exit(143)
        signal.signal(signal.SIGTERM, leave)
        print(os.getpid(), flush=True)
        signal.pause()
    elif verb == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        signal.pause()
    elif verb == "edited":
        from pipeline.stages import edited
        print(edited.VALUE)
    elif verb == "workers":
        from pipeline.stages import working
        context = multiprocessing.get_context("forkserver")
        pipe, other = context.Pipe()
        context.Process(target=working.work, args=(other,), daemon=True).start()
        other.close()
        print(json.dumps([os.getpid(), *pipe.recv()]), flush=True)
        signal.pause()


if __name__ == "__main__":
    if (status := stage_client.asked(sys.argv[1:])) is not None:
        sys.exit(status)
    sys.exit(main() or 0)
"""

WORKING = """\
import os


def work(pipe):
    pipe.send([os.getpid(), os.getppid()])
    pipe.poll(None)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package `pipeline` that has the real client and warm process, nothing heavy to import, other stages."""
    folder = tmp_path_factory.mktemp("warm")
    package = folder / "pipeline" / "stages"
    package.mkdir(parents=True)
    for name in ("__init__.py", "stages/__init__.py", "runtime/__init__.py", "runtime/stage_client.py"):
        (folder / "pipeline" / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "pipeline" / name, folder / "pipeline" / name)
    text = (ROOT / "pipeline/runtime/warm_server.py").read_text()
    text, found = re.subn(r"(?s)^HEAVY = \(.*?\)", 'HEAVY = ("calendar",)', text, flags=re.M)
    assert found == 1
    (folder / "pipeline/runtime/warm_server.py").write_text(text)
    (package / "__main__.py").write_text(STAGES)
    (package / "working.py").write_text(WORKING)
    return folder


@pytest.fixture(autouse=True)
def not_for_ever() -> Iterator[None]:
    """A test that waits in vain for a line fails."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"nothing came for {WAIT:.0f} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(int(WAIT))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def kept(project: Path) -> Iterator[None]:
    with warm.process(project, grace=WAIT):
        yield


@pytest.fixture
def start(project: Path) -> Iterator[Start]:
    """Starts a stage as a command; those that still run at the test's end are killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*stage: str, cwd: Path = project, words: Sequence[str] = ("-P",), **variables: str) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        environment = children.environment() | {"PYTHONPATH": str(project)} | variables
        command = [sys.executable, *words, "-m", "pipeline.stages", *stage]
        process = subprocess.Popen(command, cwd=cwd, env=environment, text=True, **pipes)
        started.append(process)
        return process

    # The warm process is started with the same variables: what imports read must not differ.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(project)
    yield start
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def shown(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=WAIT)
    assert process.returncode == 0 and not errors, errors
    return dict(json.loads(output))


def test_a_stage_is_a_fork_that_has_what_its_client_has(start: Start, kept: None, project: Path, tmp_path: Path) -> None:
    client = start("show", "--out", "a b", cwd=tmp_path, GIVEN="ü\udcff")
    assert client.stdin is not None and client.stdout is not None and client.stderr is not None
    streams = [os.fstat(stream.fileno()).st_ino for stream in (client.stdin, client.stdout, client.stderr)]
    told = shown(client)
    other = shown(start("show"))
    assert len({client.pid, told["pid"], other["pid"]}) == 3 and told["parent"] == other["parent"] != os.getpid()
    assert told["arguments"] == ["--out", "a b"] and told["variable"] == "ü\udcff" and not told["warm"]
    assert (told["folder"], other["folder"]) == (str(tmp_path), str(project))
    assert told["streams"] == streams
    assert (told["name"], told["spec"], told["threads"]) == ("__main__", "pipeline.stages.__main__", 1)


@pytest.mark.parametrize("words", [["-P"], []])
def test_a_stage_imports_from_where_its_client_does(start: Start, project: Path, tmp_path: Path, words: list[str]) -> None:
    """With `-P` not from the working folder; without it from there first."""
    ordinary = shown(start("show", cwd=tmp_path, words=words))["path"]
    assert (str(tmp_path) in ordinary) == (not words)
    with warm.process(project, grace=WAIT):
        assert shown(start("show", cwd=tmp_path, words=words))["path"] == ordinary


def test_a_client_with_other_code_gets_a_fork_that_runs_that_code(
    start: Start, kept: None, project: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(project / "pipeline", tmp_path / "pipeline").parent
    stages = other / "pipeline/stages/__main__.py"
    stages.write_text(stages.read_text().replace('"folder": os.getcwd()', '"folder": __file__'))
    theirs, ours = (shown(start("show", cwd=place, words=[])) for place in (other, project))
    assert (theirs["folder"], ours["folder"]) == (str(stages), str(project)) and theirs["parent"] == ours["parent"]


def test_no_descriptor_of_others_is_open_in_a_stage(start: Start, project: Path) -> None:
    ordinary = shown(start("show"))["open"]
    with warm.process(project, grace=WAIT):
        beside = start("talk")
        line(beside)
        # its connection, and the pipe whose end tells its fork server of its own
        assert len(shown(start("show"))["open"]) == len(ordinary) + 2
        beside.communicate("heard\n", timeout=WAIT)


def test_signals_are_handled_as_in_a_process_of_its_own(start: Start, project: Path) -> None:
    ordinary = shown(start("show"))
    with warm.process(project, grace=WAIT):
        assert shown(start("show"))["signals"] == ordinary["signals"]
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the supervisor has it, so that DVC and its stages do
        try:
            ignoring = shown(start("show"))["signals"]
        finally:
            signal.signal(signal.SIGINT, before)
    assert "IGN" in ignoring[0] and ignoring[1:] == ordinary["signals"][1:]


@pytest.mark.parametrize("status", [0, 2, 143])
def test_exit_status_and_last_words(start: Start, kept: None, status: int) -> None:
    process = start("leave", str(status))
    assert process.communicate(timeout=WAIT) == ("last words", "") and process.returncode == status


def test_a_fault_is_shown_and_is_status_1(start: Start, kept: None) -> None:
    process = start("raise")
    _, errors = process.communicate(timeout=WAIT)
    assert errors.endswith("RuntimeError: a fault\n") and process.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_signal_that_ends_the_stage_ends_the_client(start: Start, kept: None, number: signal.Signals) -> None:
    process = start("die", str(int(number)))
    process.communicate(timeout=WAIT)
    assert process.returncode == -number


def test_output_comes_as_it_is_written(start: Start, kept: None) -> None:
    process = start("talk")
    assert process.stdin is not None and process.stderr is not None
    assert int(line(process)) != process.pid
    process.stdin.write("heard\n")
    process.stdin.flush()
    assert process.stderr.readline() == "error: heard\n" and line(process) == "done"
    assert process.wait(WAIT) == 0


def test_sigterm_gives_the_stage_its_grace(start: Start, kept: None) -> None:
    process = start("save")
    assert alive(int(line(process)))
    process.terminate()
    assert line(process) == "saved" and process.wait(WAIT) == 143


def test_a_killed_client_takes_its_stage_along_and_no_other(start: Start, kept: None) -> None:
    victim, other = start("stubborn"), start("talk")
    fork, beside = int(line(victim)), int(line(other))
    victim.kill()
    until(lambda: not alive(fork), "the end of the stage")
    assert alive(beside) and other.communicate("heard\n", timeout=WAIT) == ("done\n", "error: heard\n")


@pytest.mark.fault(1, "the warm process, killed: its stage starts by itself")
def test_when_the_warm_process_is_killed_its_stage_ends_and_starts_by_itself(start: Start, kept: None) -> None:
    parent = shown(start("show"))["parent"]
    process = start("talk")
    fork = int(line(process))
    os.kill(parent, signal.SIGKILL)
    assert int(line(process)) == process.pid
    until(lambda: not alive(fork), "the end of the fork, which has closed what it had open")
    output, errors = process.communicate("heard\n", timeout=WAIT)
    assert (output, process.returncode) == ("done\n", 0)
    assert errors == "no warm process (it ended): this stage starts by itself\nerror: heard\n"
    later = start("talk")
    assert int(line(later)) == later.pid
    said = later.communicate("heard\n", timeout=WAIT)[1]
    # reset: who supervised the warm process had its socket open still, and was ending
    assert re.match(r"no warm process \(\[Errno \d+\] Connection (refused|reset by peer)\): ", said), said


def test_a_stopped_client_does_not_start_again_when_the_warm_process_is_killed(start: Start, kept: None) -> None:
    parent = shown(start("show"))["parent"]
    process = start("stubborn")
    fork = int(line(process))
    os.kill(parent, signal.SIGSTOP)
    process.terminate()
    os.kill(parent, signal.SIGKILL)
    assert process.communicate(timeout=WAIT) == ("", "") and process.returncode == -signal.SIGTERM
    until(lambda: not alive(fork), "the end of the fork")


def test_a_stage_that_stays_is_killed_after_the_grace_of_the_block(start: Start, project: Path) -> None:
    with warm.process(project, grace=0.1):
        fork = int(line(start("stubborn")))
    assert not alive(fork) and warm.VARIABLE not in os.environ


ASK = """\
import subprocess, sys
from pathlib import Path
from flows import children, warm
with warm.process(Path(), grace=0.1):
    subprocess.run([sys.executable, "-m", "pipeline.stages", "stubborn"], env=children.environment())
"""


def test_when_the_asker_is_killed_nothing_stays(project: Path) -> None:
    asker = subprocess.Popen(
        [sys.executable, "-c", ASK], cwd=project, env=os.environ | {"PYTHONPATH": f"{project}{os.pathsep}{ROOT}"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    fork = int(line(asker))
    parent = int(Path(f"/proc/{fork}/stat").read_text().rsplit(")", 1)[1].split()[1])
    try:
        asker.kill()
        until(lambda: not alive(fork) and not alive(parent), "the end of the warm process and its fork")
    finally:
        os.killpg(asker.pid, signal.SIGKILL)  # its client is in its session, as yet without a supervisor
        asker.communicate()


def test_other_values_of_what_imports_read_are_not_for_a_fork(start: Start, kept: None) -> None:
    process = start("talk", OMP_NUM_THREADS="7")
    assert int(line(process)) == process.pid
    _, errors = process.communicate("heard\n", timeout=WAIT)
    assert errors.startswith("no warm process (OMP_NUM_THREADS changed after its start): ")


def test_a_file_edited_meanwhile_is_read_as_it_stands(start: Start, kept: None, project: Path) -> None:
    for value in ("1", "22"):
        (project / "pipeline/stages/edited.py").write_text(f"VALUE = {value}\n")
        assert start("edited").communicate(timeout=WAIT) == (f"{value}\n", "")


def test_workers_are_forks_too_and_end_with_their_stage(start: Start, kept: None) -> None:
    parent = shown(start("show"))["parent"]
    process = start("workers")
    stage, worker, server = json.loads(line(process))
    arguments = Path(f"/proc/{server}/cmdline").read_bytes()
    assert arguments == Path(f"/proc/{parent}/cmdline").read_bytes() and server not in (stage, parent)
    process.kill()
    until(lambda: not any(map(alive, (stage, server, worker))), "the end of the stage, its fork server and its worker")


def test_without_a_socket_stages_start_by_themselves(
    start: Start, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with warm.process(project, grace=WAIT):
        process = start("talk")
        assert int(line(process)) == process.pid
    assert "AF_UNIX path too long" in capsys.readouterr().err


IMPORT = """\
import importlib, os, sys, threading
from pathlib import Path
from pipeline.runtime import warm_server as warm
for name in warm.HEAVY:
    importlib.import_module(name)
import torch
assert threading.active_count() == 1
names = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
assert len(names - {"jemalloc_bg_thd"}) == 1, names  # the allocator's own thread, which it takes care of at a fork
ours = {name for name in sys.modules if name.startswith("pipeline")}
assert ours == {"pipeline", "pipeline.runtime", "pipeline.runtime.stage_client", "pipeline.runtime.warm_server"}, ours
if fork := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]))
os._exit(torch.cuda._is_in_bad_fork())
"""


def test_imports_leave_a_process_that_can_fork(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """No thread that a fork would miss, none of our code, and no device that was asked for: CUDA does not survive a fork."""
    command(sys.executable, "-c", IMPORT, cwd=ROOT)


def test_client_and_asker_mean_the_same_variable() -> None:
    assert warm.VARIABLE == stage_client.VARIABLE
