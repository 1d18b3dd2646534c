"""DVC's command line, which writes dvc.lock whole: `python -P whole_lock.py ARGUMENTS OF dvc`.

DVC empties dvc.lock and writes it anew after each stage. A kill in between leaves the file empty or cut, and every later
command stops at it. Here the text goes to a file beside it, which is then renamed.

For that one private function of DVC is replaced. tests/flows/test_dvc_programs.py names the versions with which this was tried.
"""

from __future__ import annotations

import inspect
import io
import os
import sys
from collections.abc import Callable
from typing import Any

import dvc
from dvc.cli import main
from dvc.utils.serialize import _common, _yaml

REPLACED = "(path, data, dumper, fs=None, **dumper_args)"  # parameters of DVC's function


def write(path: str | os.PathLike[str], data: Any, dumper: Callable[..., object], fs: object = None, **options: Any) -> None:
    """What `dumper(data, stream, **options)` writes, as the file `path`: the old file or the new one, at any moment."""
    stream, (folder, name) = io.StringIO(), os.path.split(path)
    dumper(data, stream, **options)
    partial = os.path.join(folder, f".{name}.tmp")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(stream.getvalue())
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def replace() -> None:
    """Put `write` in the place of DVC's function. Raises SystemExit with one line where DVC has another one."""
    theirs = [vars(module).get("_dump_data") for module in (_common, _yaml)]
    if theirs[0] is None or theirs[0] is not theirs[1] or parameters(theirs[0]) != REPLACED:
        sys.exit(
            f"ERROR: DVC {dvc.__version__} writes dvc.lock in a way that Tailforge does not know; "
            "install the version that requirements.txt names, or a newer Tailforge"
        )
    for module in (_common, _yaml):
        vars(module)["_dump_data"] = write


def parameters(function: Callable[..., object]) -> str:
    """The parameters of a function without their types."""
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(inspect.Signature(bare))


if __name__ == "__main__":
    replace()
    sys.exit(main(sys.argv[1:]))
