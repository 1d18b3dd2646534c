"""The speed benchmark: its selections, shares and files; no time is asserted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.scale.measured import Figures
from benchmarks.speed import generator, overhead, packing, pool, results, scaling
from benchmarks.speed.generator import Setting
from pipeline import config
from pipeline.core.manifest import Manifest
from pipeline.generators.sampling import write_pool


def setting(name: str, speed: float, kid: float, high: float, evaluations: int = 1) -> Setting:
    return Setting(name, evaluations, speed, kid, kid - 0.1, high)


def test_fewer_steps_count_where_kid_lies_within_the_interval_of_the_best() -> None:
    ours = [setting("15", 100, 0.2, 0.3, 15), setting("9", 160, 0.29, 0.4, 9), setting("5", 300, 0.5, 0.6, 5)]
    theirs = [setting("50", 1, 0.9, 1.0, 50), setting("20", 2.5, 0.95, 1.1, 20), setting("10", 5, 1.4, 1.6, 10)]
    found = {name: value for name, value, _ in generator.sampling_figures(ours, theirs)}
    assert found["sampling_ratio"] == pytest.approx(160 / 2.5)
    assert (found["sampling_ratio_ours_evaluations"], found["sampling_ratio_plain_evaluations"]) == (9, 20)
    assert (found["ours_at_least_as_good"], found["plain_at_least_as_good"]) == (1, 0)
    assert found["sampling_ratio_at_their_quality"] == pytest.approx(
        300 / 2.5
    )  # worse images of theirs allow fewer steps of ours


def test_lent_weights_are_as_fast_as_the_plain_network() -> None:
    lent, other = [setting("lent", 700, 0.3, 0.4, 20)], [setting("50", 1, 9.0, 9.1, 50), setting("20", 2, 8.0, 8.1, 20)]
    assert generator.at_the_speed_of(lent, other) == [setting("lent", 2.5, 0.3, 0.4, 20)]


def test_a_quality_that_ours_never_reaches_is_said() -> None:
    found = {n: v for n, v, _ in generator.sampling_figures([setting("a", 9, 2.0, 2.1)], [setting("b", 1, 0.5, 0.6)])}
    assert (found["ours_at_least_as_good"], found["sampling_ratio_at_their_quality"]) == (0, 0)


def test_flop_of_a_linear_map_and_its_share_of_the_peak() -> None:
    layer, x = torch.nn.Linear(6, 5, bias=False), torch.randn(4, 6)
    assert generator.flop(lambda: layer(x)) == 2 * 4 * 6 * 5
    assert generator.flop(lambda: layer(x).sum().backward()) == 2 * 2 * 4 * 6 * 5  # no gradient of the input is asked for
    assert generator.share(240.0, 4, 100.0, 12_000.0) == 0.5


def test_rows_of_other_parts_stay_and_the_page_says_all(tmp_path: Path) -> None:
    file = tmp_path / "speed.csv"
    results.merged(
        file, [results.Row("overhead", "overhead_seconds", 12.5, "s", "m"), results.Row("packing", "workers", 2, "", "m")]
    )
    fresh = [
        results.Row("generator", "sampling|ours, Heun 8|KID", 0.25, "", "m"),
        results.Row("generator", "sampling|ours, Heun 8|speed", 130.0, "images/s", "m"),
        results.Row("generator", "sampling|plain, DDIM 50|speed", 1.5, "images/s", "m"),
        results.Row("generator", "training_ratio", 17.0, "", "m"),
    ]
    rows = results.merged(file, fresh)
    assert [row.part for row in rows] == ["generator"] * 4 + ["packing", "overhead"]
    assert results.merged(file, []) == rows
    assert file.read_text().splitlines()[0] == "part,name,value,unit,machine"
    assert results.last_lines(rows) == ["training_ratio 17", "overhead_seconds 12.5"]
    text = results.page(rows)
    assert "| sampling | KID | speed, images/s |" in text and "| ours, Heun 8 | 0.25 | 130 |" in text
    assert "| plain, DDIM 50 | – | 1.5 |" in text and "| training_ratio | 17 | at least 4 |" in text and "\n\n\n" not in text


def test_growth_is_of_the_time_a_row() -> None:
    assert scaling.growth({1000: 1.0, 10_000: 10.0, 100_000: 150.0}) == {10_000: 1.0, 100_000: 1.5}


@pytest.mark.parametrize("what", ["write", "read", "duplicates", "sampling"])
def test_each_work_does_what_it_says(what: str, tmp_path: Path) -> None:
    scaling.WORKS[what](2000, tmp_path)()


def test_fifty_runs_are_ten_arms_by_five_seeds(tmp_path: Path) -> None:
    shared = packing.campaign(8, 3)
    every = packing.runs(shared, 50, tmp_path)
    assert len({run.file for run in every}) == 50 and {run.number for run in every} == set(range(5))
    assert np.bincount(shared.data.targets).tolist() == generator.LONG_TAIL
    assert packing.fifty(8.0, 4) == 100.0


def test_stages_are_called_again_in_the_order_of_dvc() -> None:
    call = "cmd: python -m pipeline.stages"
    lock = f"stages:\n  b:\n    {call} fit --family a\n  a:\n    {call} prepare --out x\n"
    assert overhead.commands(lock, ["a", "b", "c"]) == [["prepare", "--out", "x"], ["fit", "--family", "a"]]


def test_what_does_not_grow_with_the_images_is_no_cost_of_an_image() -> None:
    assert pool.marginal({30: 5.0 + 30 * 0.25, 10: 5.0 + 10 * 0.25}) == pytest.approx(0.25)


@pytest.mark.parametrize("form", pool.FORMS, ids=lambda form: form.name)
def test_images_that_stand_for_a_model_come_out_as_they_went_in(form: pool.Form, tmp_path: Path) -> None:
    pixels = pool.pixels(form, 5)
    assert pixels.shape == (5, *form.shape) and len({image.numpy().tobytes() for image in pixels}) == 5
    engine = config.read(Path("params.yaml")).engine
    write_pool(
        lambda: pool.Made(pixels), "flow_matching", pool.plan(5), scaling.CLASSES, tmp_path, shard_images=2, where=engine
    )  # type: ignore[arg-type, return-value]
    assert torch.equal(Manifest.read(tmp_path).images(), pixels)


def test_operations_are_those_that_compute() -> None:
    x = torch.zeros(4, 6)
    with pool.Calls() as calls:
        torch.nn.functional.relu(x.view(6, 4).T + 1)
    assert calls.count == 2  # view and transpose move nothing


def test_the_network_that_is_counted_is_the_one_that_was_timed() -> None:
    counted = {name: value for name, value, _ in pool.counted(pool.FORMS[0])}
    timed = Figures()
    assert counted["28 x 28, U-Net|training|work"] == pytest.approx(timed("generator", "training|ours|work"), rel=1e-5)
    assert counted["28 x 28, U-Net|network|parameters"] == pytest.approx(
        timed("generator", "training|ours|parameters"), rel=1e-5
    )
