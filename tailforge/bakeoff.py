"""`tailforge bakeoff`: every family of generators on this project's data, measured alike, in one table.

The families run as DVC stages of a project of their own in .tailforge/bakeoff, with this project's data, settings and cache:
nothing of this project changes. In a project that `tailforge init` laid, what a run has made is taken from the cache, and
what the bake-off makes is there for a run that comes after it. A family that cannot take these data, or fails, is a row
that says why.

Families are compared on validation rows (pipeline/evaluation/measures.py); the test set stays shut.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from flows import dvc, warm
from pipeline.config import Params
from pipeline.core import work
from pipeline.errors import ConfigError, InputError, TailforgeError
from pipeline.registry import GENERATORS
from tailforge import project, running, scoreboard, settings

PLACE = Path(".tailforge/bakeoff")
APART = ("compose", "external")  # families that need masks, or images from elsewhere: compared where the project has them
CONFIG = """[core]
    analytics = false
    check_update = false
    no_scm = true
[cache]
    dir = {cache}
"""
HISTORY = ("data/prepared/sides.parquet", "data/drift")  # what stages take up from the version before
STAGES = ("settings", "prepare", "drift", "judges", "fit", "sample", "validate", "measure")


def run(folder: Path, families: Sequence[str], overrides: Sequence[str], out: Path, name: str | None, *, as_json: bool) -> None:
    """Compare `families` (all that suit, where none is named) and write bakeoff.md, bakeoff.csv and pictures to `out`.

    Raises TailforgeError.
    """
    project.opened(folder)
    try:
        place, params = _lay(folder, list(dict.fromkeys(families)), overrides)
    except dvc.DvcError as error:
        raise InputError(str(error), remedy="see `tailforge doctor`") from None
    dataset = name or _name(params)
    failed = _reproduce(place, params.generators)
    rows = [scoreboard.row(dataset, family, place, failed.get(family)) for family in params.generators]
    rows.sort(key=scoreboard.merit, reverse=True)
    for family in params.generators:
        if family not in failed:
            scoreboard.picture(place, family, out / "bakeoff" / f"{dataset}-{family}.png")
    scoreboard.write(rows, out)
    print(json.dumps(rows, indent=1) if as_json else scoreboard.table(rows))
    if len(failed) == len(params.generators):
        raise TailforgeError("no family could be measured", remedy="the lines above say why")


def _lay(folder: Path, families: Sequence[str], overrides: Sequence[str]) -> tuple[Path, Params]:
    """The project of the bake-off, made or brought up to date, and its settings."""
    place, text = folder / PLACE, (folder / "params.yaml").read_text(encoding="utf-8")
    text = settings.apply(text, settings.parse(overrides))
    given = settings.checked(text)
    running.sources(folder, given)
    if unknown := sorted(set(families) - set(GENERATORS.names)):
        raise ConfigError(f"families {', '.join(unknown)}", expected=f"some of {', '.join(GENERATORS.names)}")
    fitting = [name for name in GENERATORS.names if name not in APART or name in given.generators]
    values: dict[str, Any] = {"generators": list(families) or fitting}
    paths = {
        "data.path": given.data.path, "data.groups": given.data.groups, "scarcity.ids": given.scarcity.ids,
        "data.external": given.data.external,
    }  # fmt: skip
    for key, path in paths.items():
        if path:
            known = [p for p in (folder / path, folder / given.data.path / path) if p.exists()]
            values[key] = str((known or [folder / path])[0].resolve())
    text = settings.apply(text, values)
    params = settings.checked(text)
    stages = yaml.safe_load(project.stages())["stages"]
    pipeline = yaml.safe_dump({"stages": {name: stages[name] for name in STAGES}}, sort_keys=False, width=4096)
    files = {
        "params.yaml": text,
        "dvc.yaml": pipeline,
        ".dvcignore": project.template(".dvcignore"),
        ".dvc/config": CONFIG.format(cache=dvc.cache(folder)),
    }
    for name, content in files.items():
        if not (place / name).is_file() or (place / name).read_text(encoding="utf-8") != content:
            work.write(place / name, content)
    _inherit(folder, place)
    lists = place / "data" / "lists"
    if not lists.is_symlink():
        lists.parent.mkdir(exist_ok=True)
        (folder / "data" / "lists").mkdir(parents=True, exist_ok=True)
        lists.symlink_to((folder / "data" / "lists").resolve())
    return project.opened(place), params


def _inherit(folder: Path, place: Path) -> None:
    """Give the bake-off the project's history, so that rows stand on the same sides and generators are fitted on the same."""
    own = [name for name in HISTORY if (folder / name).exists()]
    noted, marker = work.key(*(folder / name for name in own)), place / "history"
    if not own or (marker.is_file() and marker.read_text(encoding="utf-8") == noted):
        return
    for name in own:
        if (place / name).is_dir():
            shutil.rmtree(place / name)
        (place / name).unlink(missing_ok=True)
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (folder / name).is_dir() else shutil.copyfile
        copy(folder / name, place / name)
    work.write(marker, noted)


def _reproduce(place: Path, families: Sequence[str]) -> dict[str, str]:
    """Bring every stage up to date; {family: why} of those that failed. Raises TailforgeError where a shared stage fails."""
    failed: dict[str, str] = {}
    try:
        stages = dvc.stages(place)
        dvc.sweep(place, stages)
        if not dvc.changed(place):
            return failed
    except dvc.DvcError as error:
        raise InputError(str(error), remedy="see `tailforge doctor`") from None
    began = time.monotonic()
    shared = [stage for stage in stages if "@" not in stage]
    of_family = {family: [stage for stage in stages if stage.partition("@")[2] == family] for family in families}
    order = [*shared, *itertools.chain.from_iterable(of_family.values())]
    # Shared stages first, then family after family, so that what is measured is there early.
    with warm.process(place, grace=dvc.GRACE):
        for family, names in {"": shared, **of_family}.items():
            with closing(dvc.reproduce(place, names, log=_tell)) as outcomes:
                for stage in names:
                    number = f"{order.index(stage) + 1}/{len(order)}"
                    print(f"[{number}, {time.monotonic() - began:.0f} s] {stage}", file=sys.stderr, flush=True)
                    try:
                        next(outcomes)
                    except dvc.StageFailed as error:
                        if not family:
                            raise TailforgeError(str(error)) from None
                        failed[family] = (error.lines or ("",))[-1].removeprefix("error: ")
                        break
    return failed


def _tell(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def _name(params: Params) -> str:
    data = params.data
    return {"digits": "digits", "torchvision": data.name.lower()}.get(data.source) or Path(data.path).name
