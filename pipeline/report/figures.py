"""Figures as inline SVG, a line of a table each, without a script.

x is a percentage of the plot's width and y is in pixels, so a figure follows the width of its box while its text, its
marks and its strokes keep their size; there is no viewBox. Colours come from the page's style sheet by class.
A value outside the scale is drawn as an arrow at its edge: the number stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from markupsafe import Markup

from pipeline.report.numbers import Interval, percent

EDGE = 3.0  # per cent of the width kept free on each side
HEIGHT = 36
CURVE_HEIGHT = 180
_MARKS = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "diamond": "M0-7 7 0 0 7-7 0z",
    "left": "M-2 0 6-5V5z",
    "right": "M2 0-6-5V5z",
}


@dataclass(frozen=True)
class Scale:
    """The values from `low` to `high` over the width of a plot, with `ticks` at round numbers."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def spanning(cls, values: Iterable[float], *, within: tuple[float, float] = (-math.inf, math.inf)) -> Scale:
        """The rounded span of `values`, never empty, cut to `within`."""
        present = list(values) or [0.0]
        low, high = min(present), max(present)
        if high - low < 1e-3:
            low, high = low - 0.01, high + 0.01
        low, high = max(low, within[0]), min(high, within[1])
        step = _round_step((high - low) / 4)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(round(step * i, 10) for i in range(first, last + 1))
        return cls(ticks[0], ticks[-1], ticks)

    @classmethod
    def differences(cls, rows: Iterable[Interval]) -> Scale:
        """A span around zero that one arm far from all others does not squeeze."""
        known = [row.known for row in rows if row.known]
        reaches = [max(map(abs, values)) for values in known]
        limit = 3 * median(reaches) if reaches and median(reaches) > 0 else math.inf
        near = [v for values, reach in zip(known, reaches, strict=True) if reach <= limit for v in values]
        return cls.spanning([0.0, *near])

    def at(self, value: float) -> float:
        """Where `value` stands, in per cent of the width; values outside stand at the edge."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(EDGE + (100 - 2 * EDGE) * share, 2)

    def holds(self, value: float) -> bool:
        """Whether `value` lies on the scale."""
        return self.low <= value <= self.high


def _round_step(width: float) -> float:
    power = 10.0 ** math.floor(math.log10(width))
    return float(next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= width * (1 - 1e-9)))


def _line(x1: float, x2: float, y: float, css: str) -> Markup:
    return Markup('<line x1="{}%" x2="{}%" y1="{}" y2="{}" class="{}"/>').format(x1, x2, y, y, css)


def _mark(x: float, y: float, shape: str, css: str) -> Markup:
    return Markup('<svg x="{}%" y="{}" overflow="visible"><path d="{}" class="{}"/></svg>').format(x, y, _MARKS[shape], css)


def _grid(scale: Scale, height: int) -> Markup:
    lines = Markup("")
    for tick in scale.ticks:
        css = "zero" if tick == 0 else "grid"
        lines += Markup('<line x1="{0}%" x2="{0}%" y1="0" y2="{1}" class="{2}"/>').format(scale.at(tick), height, css)
    return lines


def _svg(body: Markup, height: int, said: str) -> Markup:
    role = Markup('role="img" aria-label="{}"').format(said) if said else Markup('aria-hidden="true"')
    return Markup('<svg class="plot" width="100%" height="{}" {}>{}</svg>').format(height, role, body)


def _whisker(scale: Scale, value: Interval, y: float, shape: str, css: str) -> Markup:
    """A confidence interval as a line and its estimate as a mark; arrows where they leave the scale."""
    if value.estimate is None:
        return Markup("")
    low, high = (value.estimate if end is None else end for end in (value.low, value.high))
    if high < scale.low or low > scale.high:
        return _mark(scale.at(low), y, "left" if high < scale.low else "right", f"mark {css}")
    body = _line(scale.at(low), scale.at(high), y, f"whisker {css}")
    for end, arrow in ((low, "left"), (high, "right")):
        if not scale.holds(end):
            body += _mark(scale.at(end), y, arrow, f"mark {css}")
    return body + _mark(scale.at(value.estimate), y, shape, f"mark {css}") if scale.holds(value.estimate) else body


def interval(scale: Scale, value: Interval, *, synthetic: bool, said: str, height: int = HEIGHT) -> Markup:
    """One row of a forest plot: real-only arms are open circles, arms with synthetic images filled diamonds."""
    shape, css = ("diamond", "synthetic") if synthetic else ("circle", "real")
    return _svg(_grid(scale, height) + _whisker(scale, value, height / 2, shape, css), height, said)


def pair(scale: Scale, real: Interval, synthetic: Interval, *, said: str) -> Markup:
    """One class: the real-only arm above, the synthetic arm below, on one scale."""
    rows = _whisker(scale, real, 12, "circle", "real") + _whisker(scale, synthetic, 24, "diamond", "synthetic")
    return _svg(_grid(scale, HEIGHT) + rows, HEIGHT, said)


def curve(
    across: Scale, up: Scale, points: Sequence[tuple[float, Interval]], level: float | None, reached: Interval, *, said: str
) -> Markup:
    """Scores of real-only runs over `across`, joined, and a line at the score `level` of the synthetic arm.

    On that line lies where the curve reaches it. y rises from the lowest tick of `up` at the bottom to its highest at the top.
    """
    top, bottom = 8.0, CURVE_HEIGHT - 8.0

    def y(score: float) -> float:
        return round(bottom - (bottom - top) * (score - up.low) / (up.high - up.low), 1)

    body = _grid(across, CURVE_HEIGHT)
    for tick in up.ticks:
        body += _line(EDGE, 100 - EDGE, y(tick), "grid")
        body += Markup('<text x="0%" dx="-6" y="{}" text-anchor="end">{}</text>').format(y(tick) + 4, percent(tick))
    known = [(across.at(m), score) for m, score in points if score.estimate is not None]
    for (x1, a), (x2, b) in pairwise(known):
        body += Markup('<line x1="{}%" x2="{}%" y1="{}" y2="{}" class="whisker real"/>').format(
            x1, x2, y(a.known[0]), y(b.known[0])
        )
    for x, score in known:
        low, high = min(score.known), max(score.known)
        body += Markup('<line x1="{0}%" x2="{0}%" y1="{1}" y2="{2}" class="whisker real"/>').format(x, y(low), y(high))
        body += _mark(x, y(score.known[0]), "circle", "mark real")
    if level is not None:
        body += _line(EDGE, 100 - EDGE, y(level), "level") + _whisker(across, reached, y(level), "diamond", "synthetic")
    return _svg(body, CURVE_HEIGHT, said)


def axis(scale: Scale, label: Callable[[float], str]) -> Markup:
    """The ticks of a scale in words."""
    body = Markup("")
    for tick in scale.ticks:
        body += Markup('<text x="{}%" y="13" text-anchor="middle">{}</text>').format(
            scale.at(tick), label(tick).removesuffix(".0")
        )
    return _svg(body, 18, "")
