"""What README and docs tell a user to type exists; links lead somewhere; nothing names a machine or a package index."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from tailforge import settings
from tailforge.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", TEXT[page]):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join(a or b for a, b in re.findall(r"```(?:sh|console|bash)?\n(.*?)```|`([^`\n]+)`", TEXT[page], re.DOTALL))
    for target in re.findall(r"(?:^|[;&|] *)make +([\w-]+)", code, re.MULTILINE):
        assert target in targets, target
    commands = getattr(get_command(app), "commands", {})
    for verb in re.findall(r"(?:^|[;&|$] *)tailforge +(\w+)", code, re.MULTILINE):
        assert verb in commands, verb


def typed(text: str) -> Iterator[list[str]]:
    """The arguments of each `tailforge …` that a page shows, comments and what stands behind ; & | left out.

    `tailforge run` within a sentence is the name of a command, not a line to type: there a verb alone is passed over.
    """
    blocks = [(block, True) for block in re.findall(r"```(?:sh|console|bash)\n(.*?)```", text, re.DOTALL)]
    blocks += [(code, False) for code in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))]
    for block, whole in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            if "tailforge " not in line:
                continue
            words = shlex.shlex(line, posix=True, punctuation_chars=True)
            words.whitespace_split = True
            command: list[str] = []
            for word in [*words, ";"]:
                if set(word) <= set(";&|"):
                    found, command = command, []
                    if found[:1] == ["tailforge"] and (whole or len(found) > 2):
                        yield found[1:]
                else:
                    command.append(word)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_parse(page: Path) -> None:
    """Each verb takes the options and arguments that are shown; nothing is run."""
    group: Any = get_command(app)
    for words in typed(TEXT[page]):
        with group.make_context("tailforge", list(words)) as context:
            verb, command, rest = group.resolve_command(context, words)
            command.make_context(
                verb, list(rest), parent=context
            )  # raises where an option is unknown or an argument is missing


def test_commands_are_found_where_they_stand() -> None:
    sentence = "Try `tailforge run`, `tailforge run --no` or\n"
    text = f"{sentence}```sh\ntailforge diff v1 v2; ls | wc  # tailforge x\ncd a && tailforge run\n```"
    assert list(typed(text)) == [["diff", "v1", "v2"], ["run"], ["run", "--no"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_settings_that_are_named_exist(page: Path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for key in re.findall(r"-S '?\+?([a-z][\w.]+)=", TEXT[page]):
        settings.apply(text, {key: 1})  # raises where it is unknown


def test_nothing_names_a_machine_or_a_package_index() -> None:
    import subprocess

    here = "|".join(re.escape(f"{folder}/") for folder in (ROOT, Path.home()))
    index = re.compile("index" + r"-url|find" + r"-links|https?://[^ \")]*/simple\b|" + here)
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\n")
    for name in filter(None, files):
        found = index.search((ROOT / name).read_text(encoding="utf-8", errors="ignore"))
        assert not found, (name, found)
