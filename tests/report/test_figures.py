"""Scales and marks."""

from __future__ import annotations

import re

from markupsafe import Markup

from pipeline.report import figures
from pipeline.report.figures import Scale
from pipeline.report.numbers import Interval, points


def xs(svg: Markup, what: str = r"x[12]?") -> list[float]:
    return [float(x) for x in re.findall(rf'\b{what}="([\d.]+)%"', svg)]


def test_a_scale_has_round_ticks_that_hold_the_values() -> None:
    scale = Scale.spanning([-0.013, 0.034])
    assert scale.low <= -0.013 and scale.high >= 0.034
    assert scale.ticks == (-0.02, 0.0, 0.02, 0.04)
    assert Scale.spanning([0.3, 1.4], within=(0.0, 1.0)).high == 1.0
    assert len(Scale.spanning([0.5]).ticks) > 1, "one value alone still spans a scale"
    assert len(Scale.spanning([]).ticks) > 1


def test_positions_rise_with_the_values_and_stay_inside() -> None:
    scale = Scale.spanning([-0.05, 0.03])
    places = [scale.at(v) for v in (-9.0, -0.05, 0.0, 0.01, 0.03, 9.0)]
    assert places == sorted(places)
    assert places[0] == scale.at(scale.low) >= 0 and places[-1] == scale.at(scale.high) <= 100
    assert scale.at(0.0) < scale.at(0.01)


def test_an_interval_is_drawn_where_its_numbers_are() -> None:
    scale = Scale.spanning([-0.02, 0.04])
    drawn = figures.interval(scale, Interval(0.02, 0.01, 0.03), synthetic=True, said="")
    whisker = re.search(r'<line x1="([\d.]+)%" x2="([\d.]+)%"[^>]*whisker synthetic', drawn)
    assert whisker and [float(g) for g in whisker.groups()] == [scale.at(0.01), scale.at(0.03)]
    assert f'<svg x="{scale.at(0.02)}%"' in drawn
    assert figures._MARKS["diamond"] in drawn and figures._MARKS["circle"] not in drawn
    real = figures.interval(scale, Interval(0.02, 0.01, 0.03), synthetic=False, said="")
    assert figures._MARKS["circle"] in real, "arms are told apart by shape, not by colour alone"


def test_an_arm_far_from_the_others_becomes_an_arrow() -> None:
    rows = [Interval(0.01 * k, 0.01 * k - 0.01, 0.01 * k + 0.01) for k in (-2, -1, 1, 2)]
    scale = Scale.differences([*rows, Interval(-0.5, -0.52, -0.48)])
    assert -0.1 < scale.low < -0.02 and scale.holds(0.0)
    drawn = figures.interval(scale, Interval(-0.5, -0.52, -0.48), synthetic=True, said="")
    assert figures._MARKS["left"] in drawn and figures._MARKS["diamond"] not in drawn
    half = figures.interval(scale, Interval(0.0, -0.5, 0.01), synthetic=True, said="")
    assert figures._MARKS["left"] in half and figures._MARKS["diamond"] in half
    assert all(0 <= x <= 100 for x in xs(drawn) + xs(half))


def test_nothing_to_draw_is_no_fault() -> None:
    scale = Scale.differences([])
    assert "whisker" not in figures.interval(scale, Interval(None), synthetic=True, said="")
    assert "mark" in figures.interval(scale, Interval(0.0), synthetic=True, said="")


def test_labels_are_escaped() -> None:
    drawn = figures.interval(Scale.spanning([]), Interval(0.0), synthetic=True, said='"><script>')
    assert "<script>" not in drawn and "&lt;script&gt;" in drawn
    assert ">+2<" in figures.axis(Scale.spanning([-0.02, 0.02]), points)


def test_a_curve_is_drawn_where_its_numbers_are() -> None:
    across, up = Scale.spanning([0.0, 100.0]), Scale.spanning([0.8, 0.9])
    points = [(0.0, Interval(0.8, 0.79, 0.81)), (40.0, Interval(0.9, 0.88, 0.91)), (100.0, Interval(0.85))]
    drawn = figures.curve(across, up, points, 0.85, Interval(20.0, 10.0, 100.0), said="a curve")
    joined = re.findall(r'<line x1="([\d.]+)%" x2="([\d.]+)%" y1="([\d.]+)" y2="([\d.]+)" class="whisker real"', drawn)
    segments = [tuple(map(float, line)) for line in joined if line[0] != line[1]]
    assert [(a, b) for a, b, *_ in segments] == [(across.at(0.0), across.at(40.0)), (across.at(40.0), across.at(100.0))]
    (first, top), (_, last) = segments[0][2:], segments[1][2:]
    assert top < last < first and last == (top + first) / 2  # a higher score stands higher
    level = re.search(r'y1="([\d.]+)" y2="([\d.]+)" class="level"', drawn)
    assert level and float(level[1]) == float(level[2]) == last
    assert f'<svg x="{across.at(20.0)}%" y="{last}"' in drawn and figures._MARKS["diamond"] in drawn
    assert drawn.count(figures._MARKS["circle"]) == 3
    assert "whisker" not in figures.curve(across, up, [], None, Interval(None), said="")
