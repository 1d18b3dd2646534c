"""The plan for a million images: its formulas against examples done by hand, what must rise and fall, and the page."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gain import FLOW
from benchmarks.scale import __main__ as command
from benchmarks.scale import arithmetic, page
from benchmarks.scale.assumed import DAY, FITS, GPUS, Cluster, Task
from benchmarks.scale.measured import SHAPES, Figures, accepted_share, costs, image
from benchmarks.scale.plan import ALL, CURRENT, SHARDS, STATES, Plan
from pipeline.errors import DataError


@pytest.fixture(scope="module", params=SHAPES)
def plan(request: pytest.FixtureRequest) -> Plan:
    figures = Figures()
    return Plan.of(image(figures, request.param), costs(figures))


def test_images_and_shards_are_whole() -> None:
    assert arithmetic.images_to_make(900, 0.9) == 1000 and arithmetic.images_to_make(1000, 0.96) == 1042
    assert arithmetic.shards(1000, 500) == 2 and arithmetic.shards(1001, 500) == 3
    assert arithmetic.rounds_seconds(9, 4, 2.0) == 6.0  # four, four and one


def test_a_pass_takes_its_arithmetic_or_its_launches() -> None:
    assert arithmetic.pass_seconds(100, 2e9, 1e12, 10, 1e-3) == pytest.approx(0.2)
    assert arithmetic.pass_seconds(1, 2e9, 1e12, 10, 1e-3) == pytest.approx(0.01)


def test_a_ring_sends_nothing_alone_and_twice_the_size_among_many() -> None:
    assert arithmetic.ring_bytes(100.0, 1) == 0 and arithmetic.ring_bytes(100.0, 4) == 150
    assert arithmetic.ring_bytes(100.0, 10**6) == pytest.approx(200, rel=1e-5)


def test_speed_up_ends_at_the_serial_part() -> None:
    assert arithmetic.speed_up(10, 90, 9) == pytest.approx(5)
    assert arithmetic.speed_up(10, 90, math.inf) == 10 and arithmetic.speed_up(0, 90, 8) == pytest.approx(8)


def test_the_best_interval_loses_least() -> None:
    assert arithmetic.best_interval_seconds(2, 10_000) == 200
    assert arithmetic.lost_share(2, 200, 100, 10_000) == pytest.approx(0.01 + 0.01 + 0.01)
    least = arithmetic.lost_share(2, 200, 100, 10_000)
    assert all(arithmetic.lost_share(2, t, 100, 10_000) > least for t in (100, 190, 210, 400))


def test_failures_are_a_poisson_count() -> None:
    assert arithmetic.expected_failures(3600, 10, 36_000) == 1
    assert arithmetic.probability_of_failure(1) == pytest.approx(1 - 1 / math.e)
    assert arithmetic.retried_seconds(2, 60, 100) == 260
    # Llama 3: 419 among 16,384 GPUs in 54 days, one in about three hours.
    assert arithmetic.expected_failures(54 * DAY, 16_384, Cluster().gpu_mtbf_seconds) == pytest.approx(419)


def test_more_gpus_and_more_changes_take_no_longer(plan: Plan) -> None:
    for state in STATES:
        walls = [plan.wall_seconds(n, state) for n in (1, *GPUS)]
        assert walls == sorted(walls, reverse=True)
        assert walls[0] / walls[-1] <= plan.most_speed_up(state)
    for n in GPUS:
        walls = [plan.wall_seconds(n, state) for state in STATES]
        assert walls == sorted(walls, reverse=True) and walls[0] == plan.wall_seconds(1, CURRENT)


def test_a_step_spreads_what_it_says_and_nothing_else(plan: Plan) -> None:
    def changed(state: int) -> list[str]:
        return [s.name for s in plan.stages if s.seconds(8, state) < s.seconds(1, CURRENT)]

    assert changed(CURRENT) == [] and changed(SHARDS) == ["sample"]
    serial = {s.name for s in plan.stages} - set(changed(ALL))
    assert {"DVC: hash and copy the pool", "validate: rows of all shards", "evaluate"} <= serial


def test_faster_gpus_more_images_and_fewer_accepted(plan: Plan) -> None:
    faster = replace(plan, cluster=replace(plan.cluster, share_of_peak=0.6))
    assert faster.wall_seconds(1, CURRENT) <= plan.wall_seconds(1, CURRENT)
    more = replace(plan, task=replace(Task(), wanted_images=2_000_000))
    assert more.made == pytest.approx(2 * plan.made, abs=1) and more.wall_seconds(8, ALL) > plan.wall_seconds(8, ALL)
    worse = replace(plan, costs=replace(plan.costs, accepted_share=0.5))
    assert worse.made == 2_000_000 and worse.pool_gigabytes > plan.pool_gigabytes


def test_serial_work_is_the_measured_cost_of_an_image_times_the_images(plan: Plan) -> None:
    seconds = {s.name: s.one_seconds for s in plan.stages}
    assert seconds["validate: rows of all shards"] == pytest.approx(plan.made * plan.image.rest_seconds)
    shards = math.ceil(plan.made / plan.shard_images)
    hashed = shards * plan.costs.dvc_file_seconds + plan.made * plan.image.shard_bytes / 1e9 * plan.costs.dvc_gigabyte_seconds
    assert seconds["DVC: hash and copy the pool"] == pytest.approx(hashed)
    assert seconds["sample"] == pytest.approx(shards * plan.shard_images * plan.made_seconds)


def test_a_fit_is_shared_by_no_more_gpus_than_its_batch_has_images_for(plan: Plan) -> None:
    batch = plan.fitting_gpus(10**6) * plan.task.least_images_per_gpu
    assert plan.fitting_gpus(10**6) == plan.fitting_gpus(10**9) and plan.fitting_gpus(8) == 8
    assert plan.fitting_seconds(10**6) == plan.fitting_seconds(batch // plan.task.least_images_per_gpu)
    assert plan.gradient_seconds(1) == 0 and plan.gradient_seconds(8) < plan.gradient_seconds(16)


def test_what_was_measured_can_be_so(plan: Plan) -> None:
    i = plan.image
    assert 0 < i.encode_seconds < i.write_seconds and 0 < i.decode_seconds < i.look_alone_seconds < i.look_seconds
    assert all(stage.one_seconds > 0 for stage in plan.stages) and 0 < i.png_bytes < 2 * i.pixel_bytes


def test_sizes_that_are_said_to_be_of_benchmarks_gain_are() -> None:
    task, fit = Task(), FITS["28 x 28"]
    assert (fit.steps, fit.batch_images) == (FLOW["flow_matching.steps"], FLOW["flow_matching.batch_images"])
    assert (task.classifier_steps, task.classifier_batch) == (FLOW["classifier.steps"], FLOW["classifier.batch_images"])


def test_memory_that_is_short_is_said_first(plan: Plan) -> None:
    enough = replace(plan, cluster=replace(plan.cluster, gpu_memory_bytes=1e15, memory_bytes=1e15))
    short = replace(plan, cluster=replace(plan.cluster, gpu_memory_bytes=1e6))
    assert "**fails** today" in page.page([short]) and "**fails** today" not in page.page([enough])
    assert short.worst.name == "train: accepted images of a run, on its GPU"


def test_numbers_are_told_in_units_that_suit_them() -> None:
    told = [page.seconds(x) for x in (5e-6, 2e-3, 1.5, 90, 150, 7200, 200_000)]
    assert told == ["5 µs", "2 ms", "1.5 s", "90 s", "2.5 min", "2 h", "2.31 d"]
    assert [page.size(x) for x in (12.0, 1500, 2.5e12)] == ["12 B", "1.5 kB", "2.5 TB"]
    assert page.number(1234.5) == "1,234" and page.percent(0.5) == "50 %"


def test_a_figure_that_was_not_measured_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "speed.csv"
    file.write_text("part,name,value,unit,machine\ngenerator,peak,1,GFLOP/s,m\n")
    with pytest.raises(DataError, match="pool, 28 x 28"):
        image(Figures(file), "28 x 28")
    table = tmp_path / "bakeoff.csv"
    table.write_text("dataset,family,accepted\na,flow_matching,0.9\nb,flow_matching,0.8\nb,gan,0.1\n")
    assert accepted_share(table) == 0.8


def test_the_page_is_what_the_script_writes() -> None:
    assert Path("docs/scale.md").read_text(encoding="utf-8") == command.text(), "run `make scale`"
