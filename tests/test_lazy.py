"""Packages that export names: both lists agree, every name is there, and nothing heavy is imported before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    ".".join(file.parent.relative_to(ROOT).parts): ast.parse(file.read_text(encoding="utf-8"))
    for file in sorted((ROOT / "pipeline").rglob("__init__.py"))
    if "exports(" in file.read_text(encoding="utf-8")
}
HEAVY = {"torch", "numpy", "pandas", "sklearn", "pyarrow", "pydantic"}


def for_types(tree: ast.Module) -> dict[str, set[str]]:
    """Module -> the names that are imported from it for types."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                assert isinstance(statement, ast.ImportFrom) and statement.module
                found.setdefault(statement.module, set()).update(alias.asname or "" for alias in statement.names)
    return found


def when_run(tree: ast.Module) -> dict[str, set[str]]:
    """Module -> the names that `exports` imports from it."""
    (call,) = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "exports")
    return {module: set(names) for module, names in ast.literal_eval(call.args[1]).items()}


def test_packages_are_found() -> None:
    assert "pipeline.generators" in PACKAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_types_and_program_name_the_same(package: str) -> None:
    assert for_types(PACKAGES[package]) == when_run(PACKAGES[package])


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_there_and_no_other(package: str) -> None:
    found = import_module(package)
    for module, names in when_run(PACKAGES[package]).items():
        for name in names:
            assert getattr(found, name) is getattr(import_module(module), name)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = found.nothing


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_the_package_imports_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print(*sorted({HEAVY} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""
