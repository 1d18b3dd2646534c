"""A release goes to a remote and comes back on another machine: S3 (a moto server) and SSH (a real sshd), both on 127.0.0.1.

SSH needs the programs sshd and ssh-keygen; says so where they are absent.
A local remote is tested in test_releases.py.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.released import lay
from helpers.toy import add_remote, until
from tailforge import releases

Command = Callable[..., subprocess.CompletedProcess[str]]
Remote = tuple[str, dict[str, str]]  # its address, and options that belong into .dvc/config.local


def needs(*programs: str) -> None:
    for program in programs:
        if program_path(program) is None:
            pytest.skip(f"{program} is not installed: it is in the system's package openssh-server or openssh-client")


def program_path(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))


@contextmanager
def serving(words: list[str], port: int, log: Path, **variables: str) -> Iterator[None]:
    """A server on 127.0.0.1 from the first connection that it takes until the end of the block."""
    with open(log, "wb") as output:
        server = subprocess.Popen(words, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def listens() -> bool:
        assert server.poll() is None, log.read_text(errors="replace")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(listens, "the start of the server")
        yield
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    secret = {"access_key_id": "test", "secret_access_key": "test"}
    with serving([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, tmp_path / "moto.log"):
        import boto3

        client = boto3.client(
            "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
        )
        client.create_bucket(Bucket="cracks")
        yield "s3://cracks/store", {"endpointurl": address, "region": "us-east-1", **secret}
        held = client.list_objects_v2(Bucket="cracks", Prefix="store/files/md5/")["KeyCount"]
        client.close()
    assert held > 5


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[Remote]:
    needs("sshd", "ssh-keygen")
    home, port = tmp_path / "sshd", free_port()
    home.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / name], check=True)
    shutil.copy(home / "user.pub", home / "authorized_keys")
    (home / "config").write_text(
        f"""\
ListenAddress 127.0.0.1:{port}
HostKey {home / "host"}
PidFile none
AuthorizedKeysFile {home / "authorized_keys"}
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
"""
    )
    if os.geteuid() == 0:  # where sshd leaves its rights; a service manager would make it
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with serving([str(program_path("sshd")), "-D", "-e", "-f", str(home / "config")], port, tmp_path / "sshd.log"):
        yield (
            f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path / 'store'}",
            {"keyfile": str(home / "user"), "allow_agent": "false"},
        )
    assert len(list((tmp_path / "store/files/md5").rglob("*"))) > 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning:boto.*")
@pytest.mark.parametrize("kind", ["s3", "ssh"])
def test_a_release_goes_there_and_comes_back(
    kind: str, tmp_path: Path, command: Command, request: pytest.FixtureRequest
) -> None:
    address, options = request.getfixturevalue(kind)
    folder = lay(tmp_path / "project", command)

    def secrets(place: Path) -> None:
        """As `dvc remote modify --local` writes them."""
        lines = [f"    {name} = {value}\n" for name, value in options.items()]
        (place / ".dvc/config.local").write_text("".join(["['remote \"store\"']\n", *lines]))

    add_remote(folder, address)
    command("git", "commit", "--quiet", "--all", "--message", "Remote", cwd=folder)
    secrets(folder)
    assert releases.make(folder, push=True)[1]
    releases.pull(folder, "v1", tmp_path / "here")
    clone = tmp_path / "clone"
    command("git", "clone", "--quiet", folder, clone, cwd=tmp_path)
    shutil.rmtree(folder)
    secrets(clone)
    releases.pull(clone, "v1", tmp_path / "there")
    held = [
        {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*.png")}
        for place in (tmp_path / "here", tmp_path / "there")
    ]
    assert held[0] == held[1] and len(held[0]) == 3
