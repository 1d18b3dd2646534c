"""docs/reliability.md and the marks of the tests: no row without a name, no test without a row, no partial page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from helpers import reliability
from helpers.reliability import PAGE, ROWS, Recorder, marked, page


def test_every_mark_is_of_a_row_and_stands_on_the_page() -> None:
    text, tests = PAGE.read_text(encoding="utf-8"), list(marked())
    assert len(tests) > 40
    for row, test, shown in tests:
        assert row in ROWS and shown and "|" not in shown
        assert f"{shown}: `{test}`" in text, f"{test}: run `pytest -m fault`, which writes {PAGE.name}"


def test_the_page_names_no_test_that_is_not_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("::test_") == len(list(marked()))
    assert set(ROWS) == set(range(1, len(ROWS) + 1)) and [line for line in text.splitlines() if line.startswith("| 24 |")]


def test_rows_without_a_test_are_said_not_to_be_shown() -> None:
    shown = {row for row, _, _ in marked()}
    lines = {int(line.split("|")[1]): line for line in page(Counter()).splitlines() if line[2:3].isdigit()}
    assert {row for row, line in lines.items() if "**not shown**" in line} == set(ROWS) - shown
    assert all(ROWS[row].note for row in set(ROWS) - shown)


class Report:
    def __init__(self, test: str, outcome: str) -> None:
        self.nodeid, self.when = f"tests/{test}", "call"
        self.failed, self.skipped = outcome == "failed", outcome == "skipped"
        self.user_properties = [("points", 3)]


@pytest.mark.parametrize("case", ["whole", "part", "failed", "skipped", "selected"])
def test_the_page_is_written_by_a_whole_run_alone(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability, "PAGE", tmp_path / "page.md")
    tests = [test for _, test, _ in marked()]
    recorder = Recorder(case != "selected")
    for test in dict.fromkeys(tests[1:] if case == "part" else tests):
        recorder.pytest_runtest_logreport(Report(f"{test}[a]", "passed"))  # type: ignore[arg-type]
    if case in ("failed", "skipped"):
        recorder.pytest_runtest_logreport(Report(f"{tests[0]}[b]", case))  # type: ignore[arg-type]
    recorder.pytest_sessionfinish()
    assert (tmp_path / "page.md").exists() == (case == "whole")
    if case == "whole":
        assert "| 3 |" in (tmp_path / "page.md").read_text()
