"""What is found by its name: ours, those of installed packages, and what is refused."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from pipeline import registry
from pipeline.errors import ConfigError
from pipeline.registry import GENERATORS, Registry

GROUP = "tailforge.things"


def things(monkeypatch: pytest.MonkeyPatch, *outside: tuple[str, str]) -> Registry:
    """A registry of `ours`, and of `outside` as (name, place)."""
    points = [EntryPoint(name, place, GROUP) for name, place in outside]
    monkeypatch.setattr(registry, "entry_points", lambda group: [point for point in points if point.group == group])
    return Registry(GROUP, "thing", {"ours": "collections:Counter"})


def test_ours_and_those_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import Counter, OrderedDict

    found = things(monkeypatch, ("theirs", "collections:OrderedDict"))
    assert found.names == ("ours", "theirs")
    assert found.load("ours") is Counter and found.load("theirs") is OrderedDict
    assert found.origin("ours") == "tailforge" and found.origin("theirs") == "collections"


def test_an_unknown_name_is_refused_with_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"thing 'other'; expected one of ours, theirs"):
        things(monkeypatch, ("theirs", "collections:OrderedDict")).load("other")


@pytest.mark.parametrize("names", [("ours",), ("theirs", "theirs")])
def test_no_name_stands_for_two_things(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    found = things(monkeypatch, *((name, "collections:OrderedDict") for name in names))
    with pytest.raises(ConfigError, match=f"thing {names[0]} of collections is there twice"):
        _ = found.names


@pytest.mark.parametrize("place", ["nowhere_at_all:Thing", "collections:Nothing"])
def test_what_a_package_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    found = things(monkeypatch, ("theirs", place))
    with pytest.raises(ConfigError, match="cannot be imported") as caught:
        found.load("theirs")
    assert "\n" not in str(caught.value)


def test_names_are_known_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys; from pipeline.registry import GENERATORS; GENERATORS.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_name_that_could_be_no_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"thing '\.\./up' of collections; expected a name of letters"):
        _ = things(monkeypatch, ("../up", "collections:OrderedDict")).names


def test_the_code_of_another_package_is_hashed_and_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "hashed_package"
    (package / "__pycache__").mkdir(parents=True)
    for name in ("__init__", "thing", "other"):
        (package / f"{name}.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = things(monkeypatch, ("theirs", "hashed_package.thing:Thing"))
    first = found.code("theirs")
    (package / "__pycache__/thing.pyc").write_bytes(b"compiled")
    assert found.code("theirs") == first
    (package / "other.py").write_text("# another version\n")
    assert found.code("theirs") != first
    for file in package.glob("*.py"):
        file.unlink()
    (package / "__pycache__/thing.pyc").unlink()
    (package / "__pycache__").rmdir()
    package.rmdir()
    with pytest.raises(ConfigError, match=r"theirs of hashed_package\.thing cannot be imported"):
        found.code("theirs")


def test_the_code_of_one_of_ours_is_its_module() -> None:
    assert len({GENERATORS.code(name) for name in GENERATORS.ours}) == len(GENERATORS.ours)
