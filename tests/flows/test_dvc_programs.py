"""The programs of flows/dvc/programs; their effects are shown by test_dvc_stages.py, test_remote_stages.py and tests/faults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dvc
import pytest
from dvc.utils.serialize import _common, _yaml

from flows.dvc import commands
from flows.dvc.programs import whole_lock

TRIED = ("3.67.1",)  # versions of DVC with which dvc.lock was written whole (tests/faults/test_project.py)


def test_the_private_function_that_is_replaced_is_the_one_that_was_tried() -> None:
    assert dvc.__version__ in TRIED, "run tests/faults/test_project.py and tests/flows with this version, then add it to TRIED"
    assert _common._dump_data is _yaml._dump_data
    assert whole_lock.parameters(_common._dump_data) == whole_lock.REPLACED == "(path, data, dumper, fs=None, **dumper_args)"


OTHER_DVC = """\
import runpy, sys
from dvc.utils.serialize import _common, _yaml
{change}
sys.argv = ["dvc", "version"]
runpy.run_path({program!r}, run_name="__main__")
"""
CHANGES = {
    "gone": "del _yaml._dump_data",
    "another one": "_common._dump_data = lambda path, data, dumper, fs=None, **dumper_args: None",
    "other parameters": "_common._dump_data = _yaml._dump_data = lambda path, data: None",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_dvc_is_refused_in_one_line(change: str, tmp_path: Path) -> None:
    [program] = [word for word in commands.command(commands.DVC) if word.endswith(".py")]
    code = OTHER_DVC.format(change=change, program=program)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"ERROR: DVC {dvc.__version__} writes dvc.lock in a way that Tailforge does not know; ")


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "dvc.lock"
    file.write_text("old")

    def dump(data: str, stream: object, mode: str) -> None:
        print(data, mode, file=stream, end="")  # type: ignore[call-overload]
        assert file.read_text() == "old"

    whole_lock.write(file, "new", dump, mode="text")
    assert file.read_text() == "new text" and [*tmp_path.iterdir()] == [file]
