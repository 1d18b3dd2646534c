"""For all tests: one thread a process, no telemetry, no state of Prefect or git of the machine's user."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flows import warm
from helpers import database, reliability
from helpers import toy as toy_project
from pipeline import config
from pipeline.config import Engine

# Before torch is imported: two processes of two threads each on two cores stall each other.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.update(
    {
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "HF_HUB_OFFLINE": "1",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@localhost",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@localhost",
    }
)
# A shell's background job ignores SIGINT, and its children would: tests that stop them by it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(reliability.recorder(config))


# What takes longest, in the order in which it begins: at the end nobody would be left to work meanwhile. Files that mostly wait
# for servers come beside one that computes.
FIRST = (
    "flows/test_killed.py", "flows/test_scheduled.py", "end_to_end/test_pipeline.py", "flows/test_hosts.py",
    "flows/test_killed_serve.py", "end_to_end/test_versions.py", "flows/test_remote_stages.py", "flows", "faults", "tailforge",
    "test_traps.py", "test_install.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = [ROOT / "tests" / name for name in FIRST]

    def order(item: pytest.Item) -> int:
        return next((i for i, place in enumerate(places) if place in (item.path, *item.path.parents)), len(places))

    items.sort(key=order)


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command; raises with its output where it fails, unless `check=False`."""
    return toy_project.run_command


@pytest.fixture(scope="session")
def warmed() -> Iterator[dict[str, str]]:
    """Variables with which real stages are forks of one warm process of this session.

    For tests of what stages make under DVC: each would start with seconds of imports. How a stage starts by itself and from a
    run's own warm process is tested in tests/runtime/test_warm_server.py, tests/test_install.py and by `finished` of
    tests/end_to_end/test_pipeline.py.
    """
    variables = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}  # what imports read must be the same for all
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            stack.enter_context(warm.process(ROOT, grace=toy_project.WAIT))
        named = {name: os.environ.pop(name) for name in (warm.VARIABLE,) if name in os.environ}  # where it is for Linux
        yield variables | named  # not of this process: other tests start stages in their own ways
        os.environ |= named


@pytest.fixture
def points(record_property: Callable[[str, object], None]) -> Callable[[int], None]:
    """Tell how many crash points or cases a test went through, for docs/reliability.md."""
    return lambda n: record_property("points", n)


@pytest.fixture(scope="session", autouse=True)
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's files of this session, which the processes share that tests start."""
    home, base = tmp_path_factory.mktemp("prefect"), tmp_path_factory.getbasetemp()
    os.environ["PREFECT_HOME"] = str(home)
    os.environ[database.PLACE] = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "prefect-database")
    return home


@pytest.fixture(scope="session")
def prefect_database(prefect_home: Path) -> None:
    """For tests of runs that start a server: the first of this session would take seconds to make it."""
    if not (prefect_home / "prefect.db").exists():
        database.lay(prefect_home)


@pytest.fixture(scope="session")
def local() -> Engine:
    """One local worker."""
    return config.read(ROOT / "params.yaml").engine.model_copy(update={"kind": "local", "workers": 1})


CLUSTER = """\
import ray
told = ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=10**8, _node_ip_address="127.0.0.1")
print(told.address_info["gcs_address"], flush=True)
input()
"""


@pytest.fixture(scope="session")
def cluster(local: Engine) -> Iterator[Engine]:
    """Two workers on a cluster of Ray that runs already, on this machine."""
    os.environ.update({"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"})
    command, path = (
        [sys.executable, "-W", "ignore", "-c", CLUSTER],
        {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/runtime")])},
    )
    heeded = signal.getsignal(signal.SIGTERM)
    with subprocess.Popen(command, env=os.environ | path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        address = process.stdout.readline().strip()
        yield local.model_copy(update={"kind": "ray", "workers": 2, "address": address})
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        process.stdin.close()
    signal.signal(signal.SIGTERM, heeded)  # Ray has one of its own


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., subprocess.CompletedProcess[str]]) -> Path:
    """The small project of tests/helpers/toy.py after one `dvc repro`."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "dvc.yaml").write_text(toy_project.DVC_YAML)
    (folder / "stage.py").write_text(toy_project.STAGE)
    (folder / ".gitignore").write_text(".tailforge\n__pycache__\n")
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text() + toy_project.FAMILIES)
    toy_project.setting(folder, "generators: [flow_matching]", "generators: [naive, external]")
    for name in ("data/raw", "data/external"):
        (folder / name).mkdir(parents=True)
    command("git", "init", "--quiet", cwd=folder)
    toy_project.initialise(folder)
    command("dvc", "repro", "--quiet", cwd=folder)
    return folder


@pytest.fixture
def toy(made: Path, tmp_path: Path) -> Path:
    """A copy of the small project that is up to date."""
    return shutil.copytree(made, tmp_path / "toy", symlinks=True)
