"""For all tests: one thread a process, no telemetry, no state of Prefect or git of the machine's user."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers import reliability
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First those that wait for servers: they take longest, and at the end nobody would be left to work meanwhile."""
    items.sort(key=lambda item: ROOT / "tests/flows" not in item.path.parents)


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command; raises with its output where it fails, unless `check=False`."""

    def run(*words: str | Path, cwd: Path, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        here = str(Path(sys.executable).parent)
        path = {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            list(map(str, words)), cwd=cwd, env=os.environ | path | variables, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def points(record_property: Callable[[str, object], None]) -> Callable[[int], None]:
    """Tell how many crash points or cases a test went through, for docs/reliability.md."""
    return lambda n: record_property("points", n)


@pytest.fixture(scope="session", autouse=True)
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's files of this session; its database is made once and shared by the processes that tests start."""
    home = tmp_path_factory.mktemp("prefect")
    os.environ["PREFECT_HOME"] = str(home)
    return home


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
    command("dvc", "init", "--quiet", cwd=folder)
    command("dvc", "config", "core.check_update", "false", cwd=folder)
    command("dvc", "repro", "--quiet", cwd=folder)
    return folder


@pytest.fixture
def toy(made: Path, tmp_path: Path) -> Path:
    """A copy of the small project that is up to date."""
    return shutil.copytree(made, tmp_path / "toy", symlinks=True)
