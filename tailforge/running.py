"""`tailforge run`: settings, then the flow, then its result as a table.

The flow runs in a process of its own under a supervisor, so that nothing of it (Prefect's temporary server, DVC, a stage)
outlives this one, however this one ends. Where nothing has changed neither Prefect nor torch is imported.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from flows import children, dvc, images, warm
from pipeline import config
from pipeline.core import work
from pipeline.errors import ConfigError, DataError, InputError, TailforgeError
from pipeline.registry import GENERATORS
from pipeline.report import numbers, words
from tailforge import mounts, project, settings, tables

SETTINGS = "settings"  # the stage that resolves params.yaml
FLOW_GRACE = dvc.GRACE + 20.0  # seconds: a stage's own, and those in which Prefect notes how the flow ended


class Failed(TailforgeError):
    """The flow failed; its last lines have been shown."""

    def __init__(self, status: int) -> None:
        super().__init__("the run failed", remedy="the lines above say why")
        self.exit_status = status


def run(folder: Path, overrides: Sequence[str], force: Sequence[str], *, as_json: bool, release: bool = True) -> None:
    """Bring the project in `folder` up to date, print the outcome, and release it where `release`. Raises TailforgeError."""
    started, said = time.monotonic(), sys.stderr if as_json else sys.stdout
    project.opened(folder)
    with project.alone(folder, "run") as lock:
        _reproduced(folder, overrides, force, said, lock)
        _told(folder, as_json=as_json)
        if release:
            from tailforge import releases

            print(releases.told(*releases.make(folder, say=lambda line: print(line, file=said))), file=said)
    print(f"{time.monotonic() - started:.0f} s", file=said)


def _reproduced(folder: Path, overrides: Sequence[str], force: Sequence[str], said: TextIO, lock: int) -> None:
    """Bring the project up to date. Whoever runs a stage holds `lock`, so that it is free only when all of them have ended."""
    project.require_current(folder)
    params, checked = _settle(folder, overrides, said)
    try:
        names = dvc.stages(folder) if force else []
        if unknown := set(force) - set(names):
            raise InputError(f"--force {', '.join(sorted(unknown))}", expected=f"one of {', '.join(names)}")
        if _replaced(folder):
            force = [*force, SETTINGS]
        to_do = bool(force or images.unread(folder) or dvc.changed(folder))
    except dvc.DvcError as error:
        raise InputError(str(error), remedy="see `tailforge doctor`") from None
    if to_do:
        mounts.refuse_record()
        if not checked:
            settings.checked((folder / "params.yaml").read_text(encoding="utf-8"))
        _require_weights(params.encoder)
        _flow(folder, force, lock)
    else:
        print("Everything is up to date: nothing to run.", file=said)


def _require_weights(encoder: config.Encoder) -> None:
    """Download the encoder's weights where they are not here yet: stages do without a network. Raises ConfigError."""
    if encoder.name != "none":
        from pipeline.encoders import pretrained

        pretrained.weights_of(encoder)


def _told(folder: Path, *, as_json: bool) -> None:
    """Print the outcome."""
    metrics = (folder / "metrics.json").read_text(encoding="utf-8")
    if as_json:
        sys.stdout.write(metrics)
    else:
        show(json.loads(metrics), folder / "report" / "index.html", sys.stdout)
        details = folder / "data" / "evaluation" / "details.json"
        if details.is_file() and (said := json.loads(details.read_text(encoding="utf-8")).get("headroom")):
            print(said)
        drift = folder / "data" / "drift" / "drift.json"
        if drift.is_file():
            print(words.drift(json.loads(drift.read_text(encoding="utf-8"))))


def _settle(folder: Path, overrides: Sequence[str], said: TextIO) -> tuple[config.Params, bool]:
    """Write the overrides, and the sections of families that are new, into params.yaml once what they touch is right; the
    settings, and whether the families' sections were checked, for which torch is imported."""
    file = folder / "params.yaml"
    text, added = settings.with_families(before := _text(file))
    values = settings.parse(overrides)
    if values:
        text = settings.apply(text, values)
    settings.require_interpolated(text)
    touched = bool(added) or settings.touch_families(values)
    params = settings.checked(text) if touched else config.resolved(config.values(text))
    sources(folder, params)
    if any(key.startswith("encoder.") for key in values):
        _require_weights(params.encoder)
    if text != before:
        work.write(file, text)
    if added:
        print(f"params.yaml: added {', '.join(added)}", file=said)
    return params, touched


def _text(file: Path) -> str:
    config.read(file)  # raises where it cannot be read, or is no settings
    return file.read_text(encoding="utf-8")


def _replaced(folder: Path) -> bool:
    """Whether the code of a family of another package is not that of the last run. DVC does not see packages; the stage
    `settings` notes their code for it."""
    used = config.read(folder / "params.yaml").generators
    outside = [name for name in used if name not in GENERATORS.ours]
    if not outside:
        return False
    try:
        noted = json.loads((folder / "data" / "settings.json").read_text(encoding="utf-8"))["code"]
        return any(noted[name] != GENERATORS.code(name) for name in outside)
    except (OSError, ValueError, KeyError, TypeError):  # DVC sees that, and runs the stage
        return False


def sources(folder: Path, params: config.Params) -> None:
    """Folders that DVC wants to exist: the source must, one that is not used is made. Warns of a list that DVC does not see.

    Raises ConfigError, DataError.
    """
    for key, path, needed in (
        ("data.path", params.data.path, params.data.source not in ("digits", "torchvision")),
        ("data.external", params.data.external, "external" in params.generators),
    ):
        if not path:
            raise ConfigError(f"params.yaml: {key}={path!r}", expected="a folder", remedy=f"set {key}")
        if not (folder / path).is_dir():
            if needed:
                raise DataError(f"{key}={path!r} does not exist", expected="a folder with images", remedy=f"set {key}")
            (folder / path).mkdir(parents=True, exist_ok=True)
    if params.data.groups or params.scarcity.kind == "ids":
        from pipeline.datasets import lists

        seen = [(folder / place).resolve() for place in (params.data.path, "data/lists")]
        for key, file in lists.files(params).items():
            if not any(file.resolve().is_relative_to(place) for place in seen):
                remedy = f"copy it to data/lists and set {key}"
                print(f"warning: {key}={str(file)!r} lies where DVC does not see it change; {remedy}", file=sys.stderr)


def _flow(folder: Path, force: Sequence[str], lock: int) -> None:
    command = [*children.interpreter(folder), "-m", "flows.augment", *force]
    with (
        warm.process(folder, grace=FLOW_GRACE),
        children.supervised(command, cwd=folder, grace=FLOW_GRACE, output=sys.stderr, keep=[lock]) as process,
    ):
        process.wait()
    if process.returncode:
        raise Failed(process.returncode)


def show(metrics: dict[str, Any], report: Path, out: TextIO) -> None:
    """The arms as a table, then verdict, gain and the report's path."""
    names = {name: words.metric(name) for name in tables.shown(metrics)}
    rows = [("arm", *names.values())]
    rows += [
        (words.marked(arm, metrics), *(numbers.score(values.get(m)) for m in names)) for arm, values in metrics["arms"].items()
    ]
    print(tables.table(rows), file=out)
    if note := words.outside(metrics):
        print(note, file=out)
    gains = ", ".join(f"{name} {numbers.difference(metrics['gain'].get(m))}" for m, name in names.items())
    print(f"\nverdict: {metrics['verdict']}", file=out)
    print(f"gain of synthetic over {metrics['baseline']}: {gains}", file=out)
    if "equivalent_real_images" in metrics:
        print(f"synthetic is {words.real_images(metrics['equivalent_real_images'])}", file=out)
    print(f"report: {report.absolute()}", file=out)
