"""Files whole or not at all; unfinished work taken up by an equal run alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.core import work
from pipeline.errors import StorageError


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Killed(BaseException):
    pass


@pytest.mark.fault(1, "unfinished work is taken up by an equal run")
def test_work_that_was_killed_is_taken_up_by_an_equal_run() -> None:
    out = Path("data/pools/x")
    with pytest.raises(Killed), work.resumable(out, 1, {"a": 2}) as folder:
        work.write(folder / "part-0", "done")
        raise Killed
    assert not out.exists()
    with work.resumable(out, 1, {"a": 2}) as folder:
        assert (folder / "part-0").read_text() == "done"
        work.write(folder / "part-1", "more")
        (folder / ".checkpoints").mkdir()
    assert sorted(p.name for p in out.iterdir()) == ["part-0", "part-1"]
    assert not any(work.PARTIAL.rglob("part-*"))


@pytest.mark.fault(1, "killed when a file is whole and its checkpoints are not removed yet: nothing of them is in the result")
def test_what_a_kill_leaves_beside_done_work_is_no_part_of_the_result() -> None:
    out = Path("data/runs/x")
    with pytest.raises(Killed), work.resumable(out, 1) as folder:
        work.write(folder / "arm/0.safetensors", "done")
        work.write(folder / "arm/.0/20.safetensors", "a checkpoint")
        work.write(folder / "arm/below/.1.safetensors.99.tmp", "torn")
        raise Killed
    with work.resumable(out, 1):
        pass
    assert [p.relative_to(out).as_posix() for p in sorted(out.rglob("*"))] == ["arm", "arm/0.safetensors", "arm/below"]


@pytest.mark.parametrize("change", ["setting", "file", "code"])
def test_work_of_another_run_is_not_taken_up(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, file = Path("out"), Path("input")
    file.write_text("1")
    with pytest.raises(Killed), work.resumable(out, 1, file) as folder:
        work.write(folder / "part-0", "done")
        raise Killed
    if change == "file":
        file.write_text("2")
    if change == "code":
        monkeypatch.setattr(work, "code_key", lambda: "other")
    with work.resumable(out, 2 if change == "setting" else 1, file) as folder:
        assert list(folder.iterdir()) == []


def test_finished_work_replaces_what_was_there() -> None:
    out = Path("out")
    for text in ("old", "new"):
        with work.resumable(out, text) as folder:
            (folder / "sub").mkdir()
            work.write(folder / "sub" / text, text)
    assert [p.name for p in (out / "sub").iterdir()] == ["new"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.fault(3, "a full, read-only or exhausted disk at fsync and rename: the old file stays")
def test_a_full_disk_leaves_the_old_file_and_says_so(number: int, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path("f.json")
    work.write(file, "old")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StorageError, match=r"f\.json.*free some space"):
            work.write(file, "new")
    assert file.read_text() == "old" and [p.name for p in Path().iterdir()] == ["f.json"]


def test_other_faults_of_the_disk_are_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PermissionError), work.storage(Path("x")):
        raise PermissionError(errno.EACCES, "no")


def test_not_a_number_is_no_json() -> None:
    with pytest.raises(ValueError):
        work.write_json(Path("m.json"), {"x": float("nan")})
