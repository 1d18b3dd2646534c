"""Costs: noted once the work is done, and not told where its first part was done by another process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.runtime import costs


@pytest.mark.parametrize("resumed", [False, True])
def test_costs_are_noted_beside_the_work(resumed: bool, tmp_path: Path) -> None:
    for name in ("fit", "sample"):
        with costs.noted(tmp_path / f"{name}.json", images=120, resumed=resumed):
            assert not (tmp_path / f"{name}.json").exists()
    found = costs.read(tmp_path / "fit.json", tmp_path / "sample.json")
    assert (found["fit_seconds"] is None) == resumed == (found["images_per_second"] is None)
    assert found["peak_memory_mb"] > 50 and "core" in found["machine"] and len(found["date"]) == 10
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]


def test_work_that_fails_has_no_cost(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), costs.noted(tmp_path / "fit.json", images=1, resumed=False):
        raise ValueError("no")
    assert not list(tmp_path.iterdir())
