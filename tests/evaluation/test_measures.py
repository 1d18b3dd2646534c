"""What a family is worth: held-out digits in the place of its images, on validation rows alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import digits_project
from pipeline.core import work
from pipeline.core.images import to_float
from pipeline.core.prepared import Prepared
from pipeline.generators import registry
from pipeline.stages import measure

PARAMS = digits_project.params(
    sample={"fill_to": 12}, measure={"seeds": 2, "rows": 40}, evaluate={"bootstrap": 100}, classifier={"steps": 60, "width": 16}
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = digits_project.write(tmp_path)
    data, kind = Prepared(folder / "prepared"), registry.family("naive")
    images, targets = data.train().training_tensors(data.classes, "the test")
    model = kind(registry.settings(PARAMS, "naive"), shape=data.shape, n_classes=10)
    model.fit(to_float(images), targets, seed=0).save(folder / "models/naive")
    closeness = {"unfiltered_kid": {"estimate": 0.5, "low": 0.4, "high": 0.6}, "kid": {"estimate": 0.1}}
    summary = {"fidelity": closeness, "accepted": {"0": 30, "1": 66}, "n": 120}
    work.write_json(folder / "checked/naive/summary.json", summary)
    (folder / "prepared/test.parquet").unlink()  # nobody may ask for it
    return folder


def measured(project: Path, params: Any = PARAMS) -> dict[str, Any]:
    measure.run(
        params, "naive", project / "prepared", project / "models/naive", project / "pools/naive",
        project / "checked/naive", project / "measures/naive",
    )  # fmt: skip
    return dict(json.loads((project / "measures/naive/measures.json").read_text()))


def test_real_digits_teach_and_a_gaussian_classifies(project: Path) -> None:
    found = measured(project)
    assert found["cas"]["estimate"] > 0.5 and found["cas"]["low"] <= found["cas"]["estimate"] <= found["cas"]["high"] <= 1
    assert found["bayes"]["estimate"] > 0.7
    assert 3 < found["bits_per_dim"]["low"] <= found["bits_per_dim"]["estimate"] <= found["bits_per_dim"]["high"] < 9
    assert found["closeness"] == {"kid": {"estimate": 0.5, "low": 0.4, "high": 0.6}}  # of the pool before any check
    assert found["accepted"] == pytest.approx(96 / 120)
    assert found["parameters"] > 32 * 64
    assert [f.name for f in (project / "measures/naive").iterdir()] == ["measures.json"]


def test_wrong_labels_are_worth_nothing(project: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = project / "pools/naive/part-00000.parquet"
    table = pq.read_table(file)
    labels = np.random.default_rng(0).permutation(table["label"].to_pylist())
    pq.write_table(table.set_column(2, "label", pa.array(list(labels))), file)
    assert measured(project)["cas"]["estimate"] < 0.4


def test_no_rows_ask_no_density(project: Path) -> None:
    none = digits_project.params(measure={"seeds": 1, "rows": 0}, sample={"fill_to": 12}, evaluate={"bootstrap": 100})
    found = measured(project, none)
    assert found["bayes"] is None and found["bits_per_dim"] is None and found["likelihood"] == "exact"
