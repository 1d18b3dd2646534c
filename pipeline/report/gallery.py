"""What is shown of the images: a strip per class, and the rejected ones by check and class.

A strip has three rows: real train images; accepted synthetic images; and below each of those its nearest real train
image. Rare classes come first, and a part of the page that has used up its bytes says how much it does not show.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.report import album
from pipeline.report.album import Budget, Candidate, Limit, Picture, Scan

CLASSES = 24  # classes with a strip
OPEN = 6  # of them before a fold
GROUPS = 8  # classes shown for one check
STRIP_BYTES = 5_500_000  # of all strips
REJECTED_BYTES = 1_500_000  # of all rejected images


@dataclass(frozen=True)
class Family:
    """A family of generators: its name, what validation wrote, and where its pool lies."""

    name: str
    summary: Mapping[str, Any]
    found: Scan
    checked: Path
    pool: Path

    @property
    def accepted(self) -> int:
        """Accepted images of all classes."""
        return self.found.accepted.total()

    @property
    def rejected(self) -> int:
        """Rejected images of all classes."""
        return self.found.rejected.total()

    @property
    def made(self) -> int:
        """Images in the pool, checked or not."""
        return int(self.summary.get("n", self.accepted + self.rejected))


@dataclass(frozen=True)
class Beside:
    """A synthetic image, its nearest real train image, and the distance between them as the check measured it."""

    synthetic: Picture
    nearest: Picture | None
    distance: float | None


@dataclass(frozen=True)
class Strip:
    """The pictures of one class."""

    name: str
    n_train: int
    real: list[Picture]
    families: list[tuple[str, int, list[Beside]]]  # family, accepted images, some of them


@dataclass(frozen=True)
class Rejected:
    """A rejected image with the value that condemned it."""

    beside: Beside
    limit: Limit | None


@dataclass(frozen=True)
class Group:
    """The rejected images of one check and class."""

    name: str
    n: int
    shown: list[Rejected]


@dataclass(frozen=True)
class Check:
    """The rejected images of one check: the worst-hit classes, and how many classes and images stand behind them."""

    name: str
    n: int
    groups: list[Group]
    other_classes: int
    other_images: int


def strips(classes: Sequence[tuple[str, int]], train: Path, families: Sequence[Family]) -> list[Strip]:
    """Strips of the first CLASSES of `classes` (name, train images), as far as STRIP_BYTES reach."""
    shown = classes[:CLASSES]
    real = album.draw_real(train, [name for name, _ in shown])
    picks = [family.found.accepted_picks for family in families]
    near = {c.nearest for pick in picks for name, _ in shown for c in pick.get(name, ()) if c.nearest}
    photographs = album.fetch([train], near | {c.sample_id for items in real.values() for c in items})
    made = [
        album.fetch(parts(f.pool), {c.sample_id for name, _ in shown for c in pick.get(name, ())})
        for f, pick in zip(families, picks, strict=True)
    ]
    budget, made_strips = Budget(STRIP_BYTES), []
    for name, n_train in shown:
        columns = [
            (family.name, family.found.accepted[name], _beside(pick.get(name, ()), pictures, photographs))
            for family, pick, pictures in zip(families, picks, made, strict=True)
        ]
        own = [photographs[c.sample_id] for c in real.get(name, ()) if c.sample_id in photographs]
        held = [p for _, _, items in columns for b in items for p in (b.synthetic, b.nearest) if p]
        if not budget.take([*own, *held]):
            break
        made_strips.append(Strip(name, n_train, own, columns))
    return made_strips


def rejections(family: Family, train: Path, budget: Budget) -> list[Check]:
    """The rejected images of a family, the checks that reject most and the classes hit worst first."""
    by_check: dict[str, list[tuple[str, int]]] = {}
    for (check, name), n in sorted(family.found.rejected.items(), key=lambda item: (-item[1], item[0])):
        by_check.setdefault(check, []).append((name, n))
    ordered = sorted(by_check.items(), key=lambda item: (-sum(n for _, n in item[1]), item[0]))
    keys = [(check, name) for check, names in ordered for name, _ in names[:GROUPS]]
    picks = {key: family.found.rejected_picks[key] for key in keys}
    photographs = album.fetch([train], {c.nearest for items in picks.values() for c in items if c.nearest})
    pictures = album.fetch(parts(family.pool), {c.sample_id for items in picks.values() for c in items})
    wanted = {(c.sample_id, check) for (check, _), items in picks.items() for c in items}
    limits = album.limits(family.checked / "checks.parquet", wanted)

    def tiles(check: str, name: str) -> list[Rejected]:
        shown = []
        for beside in _beside(picks[check, name], pictures, photographs):
            if budget.take([p for p in (beside.synthetic, beside.nearest) if p]):
                shown.append(Rejected(beside, limits.get((beside.synthetic.sample_id, check))))
        return shown

    return [
        Check(
            name=check,
            n=sum(n for _, n in names),
            groups=[Group(name, n, tiles(check, name)) for name, n in names[:GROUPS]],
            other_classes=len(names[GROUPS:]),
            other_images=sum(n for _, n in names[GROUPS:]),
        )
        for check, names in ordered
    ]


def parts(pool: Path) -> list[Path]:
    """The shards of a pool in order."""
    return sorted(pool.glob("*.parquet"))


def _beside(picks: Collection[Candidate], pictures: Mapping[str, Picture], photographs: Mapping[str, Picture]) -> list[Beside]:
    return [
        Beside(pictures[c.sample_id], photographs.get(c.nearest or ""), c.distance) for c in picks if c.sample_id in pictures
    ]
