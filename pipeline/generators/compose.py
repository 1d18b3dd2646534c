"""Compose: an object of class y in surroundings where it has not been seen.

    x = a (o + l) + (1 - a) b,    o an object of class y with its mask, b a train image that lends its surroundings

A rare object is in nine pictures, and what may surround it in thousands. o comes from a train image of class y whose region is
known, b from a class that lends surroundings, and the pair is new (Dwibedi et al., Cut, Paste and Learn, 2017):

    object   one of class y, mirrored or turned as far as `symmetries` allows
    seam     a falls from 1 on the object to 0 at the end of the margin, so what touches the object comes along
    place    d(p), how much the object's old and new surroundings differ, is known for all places p in `surroundings` images
             (shared/placement.py). p is drawn evenly among those within `spread` where d(p) is the least, or a tenth above it
    light    l, of each channel, is `harmony` times the mean difference b - o around the margin

A spur is a spur only where it touches a trace: the margin takes the joint along, and the surroundings must go on from there.

A class of which no region is known gives its images as they are, at most turned: the gate knows them as copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Count, Section, Share
from pipeline.core.images import to_float, to_uint8
from pipeline.core.seeds import noise
from pipeline.errors import ConfigError, DataError
from pipeline.generators.shared.base import GenerativeModel, Surroundings, Traits, in_blocks
from pipeline.generators.shared.placement import Objects, Places, Seam, seam

NAME = "compose"
OBJECTS, LENT = 500, 2000  # objects of a class and images that lend surroundings, at most: they are the model's file
BLOCK = 256  # objects whose seams are made at once
SLACK = 1.1  # how many times the least d a place may have
SYMMETRIES = {"none": (0,), "mirror": (0, 4), "turn": (0, 1, 2, 3), "both": tuple(range(8))}  # as Objects.turned takes them
ROUNDING = 1e-4  # of d^2, by which equal places may differ


class ComposeConfig(Section):
    """The section `compose` of params.yaml."""

    backgrounds: list[str] = Field(default_factory=list)
    """classes whose images lend surroundings; []: those without a region, or the one with the most images"""
    symmetries: Literal["none", "mirror", "turn", "both"] = "none"
    """none | mirror | turn (by right angles) | both: how else objects may lie than train shows them"""
    margin: Share = 0.03
    """what comes along around an object and fades into its surroundings, as a share of the image's side"""
    surroundings: Count = 8
    """images among which a place is looked for"""
    context: bool = True
    """whether a place must agree with what surrounded the object"""
    spread: Annotated[float, Field(ge=0.0)] = 1.0
    """how far an object may move from its place, down and right, as a share of the image's side"""
    harmony: Share = 0.5
    """share of the difference in light and colour from its surroundings that an object loses"""
    block_images: Count = 32
    """images made at once, always as many, so that none depends on its neighbours"""


class Compose(GenerativeModel):
    """Objects of train images in the surroundings of others."""

    traits = Traits(density="implicit", likelihood="none", regions=True)
    name = NAME
    Config = ComposeConfig
    config: ComposeConfig

    def build(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.reach = max(1, round(self.config.margin * self.shape[1]))  # pixels
        self.places = Places(self.shape[1], self.reach)

    def fit(
        self, images: Tensor, labels: Tensor, *, seed: int, folder: Path | None = None, around: Surroundings | None = None
    ) -> Self:
        """Without `around` no region is known. Raises ConfigError for a class in `backgrounds` that is not there."""
        masks = torch.zeros(len(images), 1, *self.shape[1:], dtype=torch.uint8) if around is None else around.regions
        known = (masks > 0).flatten(1).any(1)
        lends = torch.isin(labels, self._lending(labels, known, () if around is None else around.classes))
        composed = torch.zeros(self.n_classes, dtype=torch.bool)
        composed[labels[known & ~lends]] = True
        usable = known | ~composed[labels]
        objects = torch.cat([_some((usable & (labels == y)).nonzero().squeeze(1), OBJECTS) for y in range(self.n_classes)])
        masks = torch.where(composed[labels[objects]].view(-1, 1, 1, 1), masks[objects], 255).to(torch.uint8)
        lent = _some(lends.nonzero().squeeze(1), LENT)
        self.state = {
            "objects": to_uint8(images[objects]), "masks": masks, "labels": labels[objects], "rows": objects,
            "lent": to_uint8(images[lent]), "lent_rows": lent, "composed": composed,
        }  # fmt: skip
        return self

    def sample(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        return self.sample_with_sources(labels, seeds)[0]

    def sample_with_sources(self, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (n, c, h, w) in [-1, 1], and int64 (n, 2): rows of the train images of the object and of its surroundings."""
        sources = [torch.empty(0, 2, dtype=torch.int64)]

        def made(labels: Tensor, seeds: list[int]) -> Tensor:
            images, rows = self._composed(labels, seeds)
            sources.append(rows)
            return images

        images = in_blocks(made, labels, seeds, self.config.block_images, self.shape)
        return images, torch.cat(sources)[: len(labels)]

    def tensors(self) -> dict[str, Tensor]:
        return self.state

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.state = tensors

    def _lending(self, labels: Tensor, known: Tensor, classes: Sequence[str]) -> Tensor:
        """The numbers of the classes that lend surroundings."""
        if unknown := [name for name in self.config.backgrounds if name not in classes]:
            raise ConfigError(
                f"compose.backgrounds={unknown}",
                expected=f"classes among {', '.join(classes)}",
                remedy="set compose.backgrounds in params.yaml",
            )
        if self.config.backgrounds:
            return torch.tensor([list(classes).index(name) for name in self.config.backgrounds])
        counts, shown = (torch.bincount(rows, minlength=self.n_classes) for rows in (labels, labels[known]))
        without = ((counts > 0) & (shown == 0)).nonzero().squeeze(1)
        return without if len(without) and bool(known.any()) else counts.argmax()[None]

    @cached_property
    def _seam(self) -> Seam:
        made = [seam(masks, self.reach) for masks in torch.split(self.state["masks"], BLOCK)]
        return Seam(*map(torch.cat, zip(*made, strict=True)))

    def _objects(self, rows: Tensor) -> Objects:
        own = Seam(*(part[rows] for part in self._seam))
        return Objects.of(to_float(self.state["objects"][rows]), self.state["masks"][rows], own, self.reach)

    def _composed(self, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (n, c, h, w) of one block, and the rows (n, 2) that they were made of."""
        state, config, n, m = self.state, self.config, len(labels), self.config.surroundings
        u = torch.special.ndtr(noise(seeds, (3 + m,)).double())
        counts = torch.bincount(state["labels"], minlength=self.n_classes)
        if bool((counts[labels] == 0).any()):
            raise DataError("compose was asked for a class without train images", expected="at least one")
        chosen = (counts.cumsum(0) - counts)[labels] + _below(counts[labels], u[:, 0])  # objects stand class by class
        turns = torch.tensor(SYMMETRIES[config.symmetries])
        turns = turns[_below(torch.tensor(len(turns)), u[:, 1])]
        objects = self._objects(chosen).turned(turns)
        lent = _below(torch.tensor(len(state["lent"])), u[:, 3:])
        around = to_float(state["lent"][lent.flatten()]).view(n, m, *self.shape)
        good = self.places.allowed(objects, config.spread * self.shape[1])[:, None].expand(-1, m, -1, -1)
        if config.context:
            apart = self.places.disagreement(objects, around).masked_fill(~good, torch.inf)
            good = apart <= apart.amin((1, 2, 3), keepdim=True) * SLACK**2 + ROUNDING
        rank = good.flatten(1).cumsum(1, dtype=torch.int32)
        at = (rank <= _below(rank[:, -1], u[:, 2])[:, None]).sum(1)
        taken, place = at // self.places.period**2, at % self.places.period**2
        o, b = objects.shifted(self.places.shift(place, objects)), around[torch.arange(n), taken]
        light = config.harmony * ((b - o.pixels) * o.ring).sum((2, 3)) / o.ring.sum((2, 3)).clamp(min=1.0)
        image = o.alpha * (o.pixels + light[:, :, None, None]) + (1 - o.alpha) * b
        rows = torch.stack([state["rows"][chosen], state["lent_rows"][lent[torch.arange(n), taken]]], 1)
        return image.clamp(-1.0, 1.0), torch.where(state["composed"][labels][:, None], rows, rows[:, :1])


def _some(rows: Tensor, most: int) -> Tensor:
    """At most so many of `rows`, evenly spread over them."""
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()]


def _below(n: Tensor, uniform: Tensor) -> Tensor:
    """Whole numbers below `n`, from numbers in (0, 1)."""
    n = n.view(-1, *[1] * (uniform.ndim - 1))
    return (uniform * n).long().clamp(max=n - 1)
