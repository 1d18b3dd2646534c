"""One stage on a device at a time: the lock of a device."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows import device
from helpers.toy import ROOT

HOLD = """\
from flows import device
with device.held(lambda line: print(line, flush=True)):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT), device.VARIABLE: "0"}


def hold(environment: dict[str, str]) -> subprocess.Popen[str]:
    """A process that holds the device until it gets a line."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.fault(10, "who holds a device killed: it is free for who waits, and was not before")
def test_a_device_is_held_by_one_and_free_when_that_is_killed(environment: dict[str, str]) -> None:
    with hold(environment) as first:
        assert first.stdout and first.stdout.readline() == "held\n"
        with hold(environment | {device.VARIABLE: "1"}) as other:
            assert other.stdout and other.stdout.readline() == "held\n"
            other.kill()
        with hold(environment) as second:
            assert second.stdout and second.stdout.readline() == "waiting for device 0, which another stage holds\n"
            first.kill()
            assert second.stdout.readline() == "held\n"
            second.communicate("\n")
    assert second.returncode == 0


def test_a_lock_is_for_all_users_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.VARIABLE, "GPU-1/2")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = os.umask(0o077)
    try:
        for _ in range(2):  # it makes the file, and finds it
            with device.held() as [descriptor]:
                assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
                assert (tmp_path / "tailforge-device-GPU-1-2.lock").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)
