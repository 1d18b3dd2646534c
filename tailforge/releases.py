"""Releases of the dataset: one git commit and tag for each finished run, in the convention of gto.

    dataset@v3.0.0    release v3: a commit with the run's files (FILES), with release.json and a line in CHANGELOG.md
    dataset#prod#1    what is in use: only a release with the verdict `gain` is promoted; the others are kept and named

Images, checks and classifiers are DVC's: release.json has their hashes, which are those of dvc.lock. The dataset of a
release is the accepted images of the generator that `evaluate` chose, or of all generators where that is the ensemble.

A release is made in steps, each whole or not at all: release.json and CHANGELOG.md, the commit, the tags. What a kill left
out is made up by the next call, since it looks first for a release that is committed and has no tag.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from flows import dvc, git, images
from pipeline.config import ENSEMBLE
from pipeline.core import work
from pipeline.datasets import export
from pipeline.errors import DataError, InputError
from pipeline.metrics.registry import primary, title
from pipeline.report import numbers
from tailforge import project, records, tables, tags
from tailforge.records import CHECKED, POOLS

RECORD, CHANGES = "release.json", "CHANGELOG.md"
STATE = ("dvc.yaml", "dvc.lock", "params.yaml", "metrics.json", "gains.csv", "data/lists")
FILES = (*STATE, RECORD, CHANGES)
HEADING = "## Dataset releases"
RUNS, METRICS = "data/runs/", "metrics.json"
MARKUP, _ESCAPED = re.compile(r"([\\`*_<>\[\]&|])"), r"\\\1"  # of Markdown, which a class name may hold
PARTS = (POOLS, CHECKED, RUNS, METRICS)


@dataclass(frozen=True)
class Release:
    """One release. `record` is its release.json; `prod` says whether it is the one in use."""

    commit: str
    date: str
    prod: bool
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return f"v{self.record['version']}"

    @property
    def tag(self) -> str:
        return tags.name(self.record["version"])

    @property
    def generators(self) -> list[str]:
        """Whose images the dataset is."""
        return _generators(self.record)

    @property
    def images(self) -> dict[str, int]:
        """{class: accepted images} of the dataset."""
        return _images(self.record)

    @property
    def pools(self) -> dict[str, str]:
        """{generator: hash of its pool} of the dataset."""
        return {name: self.record["outs"][POOLS + name] for name in self.generators}

    def json(self) -> dict[str, Any]:
        own = {"name": self.name, "tag": self.tag, "commit": self.commit, "date": self.date, "prod": self.prod}
        return own | self.record | {"images": self.images, "pools": self.pools}


def make(folder: Path, *, push: bool = False, say: Callable[[str], object] = lambda line: None) -> tuple[Release, bool]:
    """The release of the results of the project in `folder`, and whether it is new: results are released once. Where other
    settings or other code have led to results that a release has, what led to them is committed without a tag, which is said.

    With `push` DVC's remote has its data before the release is there. Raises InputError, and leaves everything, where the
    state is not whole: changed since the last run, but for images that came since, or not in DVC's cache.
    """
    project.opened(folder)
    tags.ask(folder, "rev-parse", "--git-dir")
    with project.alone(folder, "release"):
        _finish(folder)
        outs = _state(folder)
        if push:
            with _refusals("see `dvc remote list` and `dvc push -v`"):
                dvc.push(folder)
        known = listed(folder)
        if same := [release for release in known if release.record["outs"] == outs]:
            if not _leads_to(folder, same[0]) and tags.commit(folder, STATE, f"Results of {same[0].tag}"):
                say(f"committed the settings that lead to what {same[0].name} holds")
            return same[0], False
        version = 1 + max(tags.read(folder).versions, default=0)
        text = (folder / METRICS).read_text(encoding="utf-8", errors="replace")
        metrics = records.read(records.Decided, text, f"{METRICS} holds no verdict")
        record = {
            "version": version,
            "tailforge": version_of("tailforge"),
            "metric": primary(metrics),
            **{key: metrics[key] for key in ("verdict", "generator", "baseline", "gain")},
            "classes": _counted(folder, outs),
            "outs": outs,
            **_encoder(folder),
        }
        changes = _changes(folder, record)
        work.write_json(folder / RECORD, record)
        work.write(folder / CHANGES, changes)
        tags.commit(folder, FILES, f"Release {tags.name(version)}: {metrics['verdict']}")
        _finish(folder)
        return find(folder, f"v{version}"), True


def listed(folder: Path) -> list[Release]:
    """All releases that git knows here, the newest first. Raises InputError."""
    known, found = tags.read(folder), []
    for version in sorted(known.versions, reverse=True):
        commit, date = known.versions[version]
        if record := _record(folder, commit):  # none where somebody else has set the tag
            found.append(Release(commit, date, commit == known.prod, record | {"version": version}))
    return found


def find(folder: Path, name: str) -> Release:
    """The release called `v3`, `3`, `latest` or `prod`. Raises InputError."""
    known = listed(folder)
    wanted = {"latest": known[:1], "prod": [release for release in known if release.prod]}
    chosen = wanted.get(name, [release for release in known if name in (release.name, release.name[1:], release.tag)])
    if not chosen:
        names = ", ".join(release.name for release in known[:10]) or "none yet"
        raise InputError(
            f"release {name!r} is not known",
            expected=f"one of {names}",
            remedy="see `tailforge releases`, or `git fetch --tags`",
        )
    return chosen[0]


def files(folder: Path, release: Release, generators: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """(shards of the pools, their images.parquet) of a release, in DVC's cache; the working tree stays as it is.

    What the cache lacks is fetched from DVC's remote. Raises DataError where it is not there either.
    """
    outs = release.record["outs"]
    pools, checked = ([outs[part + name] for name in generators] for part in (POOLS, CHECKED))
    try:
        found = dvc.contents(folder, [*pools, *checked])
    except dvc.DvcError as error:
        raise DataError(
            f"release {release.name}: {error}",
            expected="its data in the cache or in DVC's default remote",
            remedy="run `dvc push` where the release was made; see `dvc remote list`",
        ) from None
    shards = [found[pool][path] for pool in pools for path in sorted(found[pool]) if path.endswith(".parquet")]
    if not all("images.parquet" in found[one] for one in checked):
        raise DataError(f"release {release.name} has no checked images", expected="images.parquet in each of data/checked")
    return shards, [found[one]["images.parquet"] for one in checked]


def metrics(folder: Path, release: Release) -> dict[str, Any]:
    """metrics.json of a release. Raises DataError."""
    text = tags.text(folder, release.commit, METRICS)
    return records.read(records.Measured, "{}" if text is None else text, f"{METRICS} of {release.name} holds no figures")


def pull(
    folder: Path, name: str, out: Path | None, *, classes: Sequence[str] = (), generator: str | None = None
) -> tuple[Release, Path, dict[str, int]]:
    """Write the images of a release into the new folder `out` (dataset-v3), of some classes alone where they are named.

    Returns the release, the folder, and the number of images of each class folder. Raises InputError.
    """
    project.opened(folder)
    release = find(folder, name)
    made = release.record["classes"]
    if generator is not None and generator not in made:
        raise InputError(f"--generator {generator}", expected=f"one of {', '.join(made)}")
    if unknown := [label for label in classes if label not in release.images]:
        raise InputError(f"--class {', '.join(unknown)}", expected=f"one of {', '.join(map(plain, release.images))}")
    out = out or Path(f"dataset-{release.name}")
    export.vacant(out)  # before anything is fetched
    shards, checked = files(folder, release, [generator] if generator else release.generators)
    return release, out, export.write(shards, checked, out, only=classes or None)


def line(record: dict[str, Any], date: str) -> str:
    """What CHANGELOG.md says of a release."""
    metric, images = primary(record), _images(record)
    points = numbers.in_points(record["gain"][metric])
    counts = ", ".join(f"{re.sub(MARKUP, _ESCAPED, plain(label))} {n}" for label, n in images.items())
    pools = ", ".join(f"{name} {record['outs'][POOLS + name]}" for name in _generators(record))
    promoted = ", promoted" if record["verdict"] == "gain" else ""
    encoder = record.get("encoder")
    looks = f"; encoder {plain(encoder['name'])} {encoder['weights'][:12]}" if encoder else ""
    where = f"{points} points over {record['baseline']}; pool {pools}{looks}"
    return (
        f"- v{record['version']} ({date}, {record['verdict']}{promoted}): {sum(images.values())} images of "
        f"{record['generator']} ({counts}); {plain(title(metric))} {where}"
    )


def table(known: Sequence[Release]) -> str:
    """The releases as columns of text."""
    if not known:
        return "no release yet: `tailforge release` makes one of what `tailforge run` has made"
    rows = [("release", "date", "verdict", "in use", "images", "gain", "pool")]
    for release in known:
        metric = primary(release.record)
        gain = f"{plain(title(metric))} {numbers.difference(release.record['gain'][metric])}"
        pools = " ".join(md5[:12] for md5 in release.pools.values())
        prod, images = "prod" if release.prod else "-", str(sum(release.images.values()))
        rows.append((release.name, release.date[:10], release.record["verdict"], prod, images, gain, pools))
    return tables.table(rows)


def told(release: Release, new: bool) -> str:
    """What the user reads of `make`."""
    if not new:
        return f"this state is {release.name} ({release.tag}) already: no new release"
    promoted = " and promoted to prod" if release.record["verdict"] == "gain" else ""
    pools = ", ".join(f"{name} {md5}" for name, md5 in release.pools.items())
    return (
        f"released as {release.name} ({release.tag}){promoted}: {sum(release.images.values())} images, pool {pools}\n"
        "to share it: dvc push && git push --follow-tags"
    )


# --- the state


def _state(folder: Path) -> dict[str, str]:
    """{path: md5} of what a release holds. Raises InputError where that is not whole."""
    with _refusals("see `tailforge doctor`"):
        if dvc.changed(folder, but=images.folders(folder)):  # those that came since are the next run's
            raise InputError(
                "the project has changed since its last run",
                expected="results that are up to date",
                remedy="run `tailforge run`",
            )
        recorded, stages = dvc.outs(folder), dvc.stages(folder)
        everything = {path: md5 for stage in stages for path, md5 in recorded.get(stage, {}).items()}
        outs = {path: everything[path] for path in sorted(everything) if path.startswith(PARTS)}
        if METRICS not in outs or not any(path.startswith(POOLS) for path in outs):
            raise InputError(f"{folder.absolute()} has no results", expected="a finished run", remedy="run `tailforge run`")
    with _refusals("then run `tailforge run`"):
        dvc.contents(folder, [md5 for path, md5 in outs.items() if path != METRICS], fetch=False)
    return outs


def _leads_to(folder: Path, release: Release) -> bool:
    """Whether the last commit comes before `release` or is it, and the files of the run are as they are there, whether git
    knows them here or not."""
    if not git.precedes(folder, "HEAD", release.commit):
        return False
    now = git.snapshot(folder, [name for name in STATE if (folder / name).exists()], "State")
    return not tags.ask(folder, "diff", "--name-only", release.commit, now, "--", *STATE)


def _counted(folder: Path, outs: dict[str, str]) -> dict[str, dict[str, dict[str, int]]]:
    """{generator: {class: {"made": images of its pool, "accepted": images that passed}}}."""
    counts = {}
    for name in (path.removeprefix(POOLS) for path in outs if path.startswith(POOLS)):
        accepted = export.accepted_ids([folder / CHECKED / name / "images.parquet"])
        made, passed = Counter[str](), Counter[str]()
        for row in export.rows(sorted((folder / POOLS / name).glob("*.parquet")), ["sample_id", "label"]):
            made[row["label"]] += 1
            passed[row["label"]] += row["sample_id"] in accepted
        counts[name] = {label: {"made": made[label], "accepted": passed[label]} for label in sorted(made)}
    return counts


def _encoder(folder: Path) -> dict[str, Any]:
    """{"encoder": its name, what it was trained on, its licence and the hash of its weights}, {} where none is named."""
    file = folder / "data/settings.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    origin = found.get("encoder_origin")
    return {"encoder": {"name": found["encoder"]["name"], **origin}} if origin else {}


def _generators(record: dict[str, Any]) -> list[str]:
    return list(record["classes"]) if record["generator"] == ENSEMBLE else [record["generator"]]


def _images(record: dict[str, Any]) -> dict[str, int]:
    counts = Counter({label: 0 for made in record["classes"].values() for label in made})
    for name in _generators(record):
        counts.update({label: n["accepted"] for label, n in record["classes"][name].items()})
    return dict(sorted(counts.items()))


def plain(name: str) -> str:
    """A class name, which may be anything, as one line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())


def _changes(folder: Path, record: dict[str, Any]) -> str:
    """CHANGELOG.md with the line of a release. Raises InputError where the user has changed the file and not committed it."""
    number, file = record["version"], folder / CHANGES
    committed = tags.text(folder, "HEAD", CHANGES) or ""
    try:
        text = file.read_text(encoding="utf-8") if file.is_file() else committed
    except UnicodeDecodeError:
        raise InputError(f"{CHANGES} is not UTF-8", expected="text", remedy=f"store {CHANGES} as UTF-8 and commit it") from None
    added = _with_line(committed, line(record, datetime.now(UTC).date().isoformat()))

    def others(text: str) -> list[str]:
        return [own for own in text.splitlines() if not own.startswith(f"- v{number} (")]

    if others(text) not in (others(committed), others(added)):
        raise InputError(
            f"{CHANGES} has changes that are not committed",
            expected="none, since a release adds its line and commits the file",
            remedy=f"commit or stash {CHANGES}, then run `tailforge release`",
        )
    return added


def _with_line(text: str, line: str) -> str:
    """`text` with `line` first under the heading, which is added where it is not there."""
    if HEADING not in text.split("\n"):
        text = f"{text.rstrip() or '# Changes'}\n\n{HEADING}\n"
    before, _, after = f"\n{text}".partition(f"\n{HEADING}\n")
    rest = after.lstrip("\n")
    gap = "\n" if rest and not rest.startswith("- ") else ""
    return f"{before}\n{HEADING}\n\n{line}\n{gap}{rest}".removeprefix("\n")


def _record(folder: Path, revision: str) -> dict[str, Any] | None:
    """release.json as it stood at `revision`; None where there was none. Raises DataError where it is something else."""
    text = tags.text(folder, revision, RECORD)
    return None if text is None else records.read(records.Record, text, f"{RECORD} of {revision} is no record of a release")


def _finish(folder: Path) -> None:
    """Tag the last release that was committed, and promote it where it is a gain, unless both was done."""
    record = _record(folder, "HEAD")
    if record is None:
        return
    known, version = tags.read(folder), record["version"]
    if version in known.versions:
        commit, _ = known.versions[version]
    else:
        commit, date = tags.ask(folder, "log", "-1", "--format=%H %cs", "--", RECORD).split()
        tags.register(folder, version, commit, line(record, date).removeprefix("- "))
    if record["verdict"] == "gain" and commit not in [promoted for promoted, _ in known.promotions.values()]:
        tags.promote(folder, 1 + max(known.promotions, default=0), commit, f"v{version} is in use")


@contextmanager
def _refusals(remedy: str) -> Iterator[None]:
    """DVC's refusals as the user's faults."""
    try:
        yield
    except dvc.DvcError as error:
        raise InputError(str(error), remedy=remedy) from None
