"""Names that a package exports, each imported when it is first asked for (PEP 562): the package itself imports nothing heavy.

A package's `__init__.py` names them twice, since mypy does not follow names that are looked up in a running program:

    if TYPE_CHECKING:
        from pipeline.core.seeds import derive as derive
    else:
        __getattr__ = exports(__name__, {"pipeline.core.seeds": ("derive",)})

tests/test_lazy.py compares the two. Our own modules import a name from the module that has it, since a stage's dependencies in
dvc.yaml are compared with plain imports.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def exports(package: str, places: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of `package`, where `places` gives the names to export by the module that has them."""
    modules = {name: module for module, names in places.items() for name in names}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
