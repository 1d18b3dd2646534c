"""What the source text says: which modules call a method, which hold a string."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def callers(method: str, folder: Path = ROOT / "pipeline") -> set[str]:
    """Modules that call `something.method()` without arguments."""
    found = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args
            if called and node.func.attr == method:
                found.add(file.relative_to(folder).as_posix())
    return found


def mentions(text: str, folder: Path = ROOT / "pipeline") -> set[str]:
    """Modules with a string, other than a docstring, that holds `text`."""
    found = set()
    for file in folder.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        prose = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in prose and text in str(node.value):
                found.add(file.relative_to(folder).as_posix())
    return found
