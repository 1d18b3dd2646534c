"""docs/reliability.md, written by the tests: which fault does no harm, which test shows it, at how many points.

A test says by `@pytest.mark.fault(row, "what is shown")` to which of ROWS it belongs, and by the fixture `points` through how
many crash points or cases it went. Where all marked tests were run and passed (`make test`, or `pytest -m fault`), the
session's end writes the page. It holds no time and no path, so that it changes only when the tests do.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"


@dataclass(frozen=True)
class Row:
    """A fault or an attack; `bar` is what must hold after it, `note` what is to be known beside the tests, or why none is."""

    fault: str
    bar: str
    note: str = ""


ROWS = {
    1: Row("SIGKILL anywhere", "old or new, never between", "Whole runs at thirty random moments: [`make kills`](kills.md)."),
    2: Row("power loss", "done or rolled back", "What DVC and git write is theirs to sync."),
    3: Row("disk full, I/O error", "one line, no corruption after"),
    4: Row("crash during recovery", "as 1"),
    5: Row("SIGTERM in training", "the same weights, bit by bit"),
    6: Row("torn checkpoint, damaged shard", "found, named, made again"),
    7: Row("a loop of kills", "one result"),
    8: Row("lock of a dead process, torn lock, id given to another", "taken over"),
    9: Row(
        "network mount", "SQLite is refused there, in one line", "Judged by the kernel's table of mounts, not on a real mount."
    ),
    10: Row(
        "zombie, lost lease",
        "a late writer is refused",
        "A device and a worktree are held by locks of the kernel's until the last process is gone, so on one machine there is "
        "no late writer. Between machines each attempt at a stage writes a branch of its own, and a run reads that of the "
        "attempt that it saw end.",
    ),
    11: Row("a schedule fires twice", "one run", "Slots are in UTC: daylight saving moves none."),
    12: Row("silent damage in the cache", "found, named, made again", "`tailforge doctor --verify`; releases always check."),
    13: Row("two runs at once", "one waits and says so", "A bare `dvc repro` beside a run: DVC says that it is busy."),
    14: Row("a project of an older version", "one line says what to do; `tailforge upgrade` does it"),
    15: Row("malicious model file", "no code runs"),
    16: Row(
        "image bomb, damaged image",
        "set aside, listed",
        "Memory for all threads together: 32 bytes for each of 8,192 x 8,192 pixels, 2 GiB.",
    ),
    17: Row("paths and links that lead outside", "nothing outside is read, written or removed", "No archive is unpacked."),
    18: Row("script in names of classes and files", "inert text", "By an HTML parser and the policy, not in a browser."),
    19: Row(
        "cross-site request, DNS rebinding",
        "refused",
        "Prefect's server always has a password: that of `tailforge serve` the user's or one that it makes, the temporary one "
        "of a run one that nobody else knows. Without it anybody may see that it is there and load the files of its pages. The "
        "report is one file without script, form or request.",
    ),
    20: Row(
        "path escape in a viewer",
        "refused",
        "There is no viewer; what is named by a user or by data is where files are written.",
    ),
    21: Row("clock set back", "changes are seen, results stay"),
    22: Row("remote gone during a push", "no release without its data; the next call makes it"),
    23: Row("secrets", "in no log and no result"),
    24: Row("torn or hostile input (fuzz)", "one line, or a right result; never a traceback"),
    25: Row("Prefect's server killed in a run", "the run goes on"),
    26: Row("memory runs out", "the batch is halved, which is said; a fit names what to lower"),
    27: Row(
        "a machine asleep, a server that does not answer or stands still",
        "no live run is called dead",
        "Answers of the server are counted, not seconds.",
    ),
    28: Row("images come during a run", "it is released without them; the next run reads them"),
}
HEAD = """\
# Reliability

What may go wrong, and what still holds then. Rows 1 to 20 are the bar; the others were added. A *point* is a moment of a crash,
or a case, that a test went through. After each fault the work is done again. Where a test compares results, they have the bytes
of an undisturbed run.

The tests write this page once all that are named here have passed: `make test`, or `.venv/bin/python -m pytest -m fault`.

| # | fault | bar | result | tests | points |
|---|---|---|---|---|---|
"""


def marked() -> Iterator[tuple[int, str, str]]:
    """(row, test as `file::name`, what it shows) of each mark in the tests' sources, in the order of files and lines."""
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    row, shown = (ast.literal_eval(argument) for argument in mark.args)
                    yield row, f"{file.relative_to(ROOT / 'tests').as_posix()}::{node.name}", shown


def page(points: Counter[str]) -> str:
    """docs/reliability.md where all marked tests passed; `points` of each test. A line a row, then a fold a row."""
    lines, folds, shown = [], [], sorted(marked())
    for number, row in ROWS.items():
        own = [(test, what) for of, test, what in shown if of == number]
        counts = sum(points[test] for test, _ in own)
        result = "holds" if own else "**not shown**"
        lines.append(f"| {number} | {row.fault} | {row.bar} | {result} | {len(own) or '–'} | {counts or '–'} |")
        notes = [row.note, ""] if row.note else []
        tests = [f"- {what}: `{test}`" for test, what in own]
        folds += ["", f"<details><summary>{number}. {row.fault}</summary>", "", *notes, *tests, "", "</details>"]
    return HEAD + "\n".join([*lines, "", "## What shows it", *folds]) + "\n"


class Recorder:
    """Notes marked tests as they pass, and writes the page at the end of a session that ran all of them."""

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self.passed, self.failed, self.points = set[str](), set[str](), Counter[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid.removeprefix("tests/").partition("[")[0]
        if report.failed or report.skipped:
            self.failed.add(test)
        elif report.when == "call":
            self.passed.add(test)
            self.points[test] += sum(n for name, n in report.user_properties if name == "points" and isinstance(n, int))

    def pytest_sessionfinish(self) -> None:
        wanted = {test for _, test, _ in marked()}
        if self.whole and wanted <= self.passed and not wanted & self.failed:
            text = page(self.points)
            if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
                PAGE.write_text(text, encoding="utf-8")


def recorder(config: pytest.Config) -> Recorder:
    """A recorder for this session: it is whole where nothing was named or deselected but what is not marked."""
    chosen = config.getoption("keyword") or config.getoption("deselect") or config.getoption("lf", False)
    named = config.args_source != pytest.Config.ArgsSource.TESTPATHS
    return Recorder(not chosen and not named and config.getoption("markexpr") in ("", "fault"))
