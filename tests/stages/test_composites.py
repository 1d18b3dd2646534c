"""From a folder with masks to a checked pool: the stages prepare, fit, sample and validate with the family compose."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from helpers.making import params
from pipeline.arms.data import TrainingData
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.encoders.judges import Judges
from pipeline.stages import fit, prepare, sample
from pipeline.validation import gate

SIDE = 16


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Faultless surfaces of random grain, and two kinds of faults in few of them, with masks."""
    monkeypatch.chdir(tmp_path)
    for label, count in {"faultless": 30, "dot": 8, "line": 8}.items():
        for i in range(count):
            rng = np.random.default_rng([count, len(label), i])
            image, mask = rng.integers(40, 120, (SIDE, SIDE), dtype=np.uint8), np.zeros((SIDE, SIDE), np.uint8)
            y, x = rng.integers(3, 9, 2)
            place = np.s_[y : y + 3, x : x + 3] if label == "dot" else np.s_[y : y + 1, x : x + 6]
            if label != "faultless":
                image[place], mask[place] = 250, 255
                Path("raw/masks", label).mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(Path("raw/masks", label, f"{i}.png"))
            Path("raw", label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(Path("raw", label, f"{label}{i}.png" if label == "faultless" else f"{i}.png"))
    return tmp_path


def test_composites_name_both_of_their_sources_and_are_no_copies_of_their_surroundings(project: Path) -> None:
    settings = params(
        data={"source": "folder", "path": "raw", "image_size": SIDE, "channels": 1, "regions": "masks"},
        generators=["compose"], compose={"symmetries": "both"}, sample={"fill_to": 40, "surplus": 1.0}, seed=1,
        judges={"steps": 40, "folds": 2, "width": 8}, engine={"workers": 1},
    )  # fmt: skip
    data = Prepared(Path("prepared"))
    prepare.run(settings, data.folder)
    shutil.copytree("prepared", "reference")
    folders = Path("prepared"), Path("reference")
    fit.run(settings, "compose", *folders, Path("model"), Path("fit.json"))
    sample.run(settings, "compose", *folders, Path("model"), Path("pool"), Path("sample.json"))

    train, pool = data.train(), Manifest.read(Path("pool"))
    labels = dict(zip(train.column("sample_id"), train.column("label"), strict=True))
    own = TrainingData.of(train, data.classes, pool)  # which refuses sources that are not train rows
    for row in pool.table.select(["label", "sources", "image"]).to_pylist():
        expected = [row["label"]] if row["label"] == "faultless" else [row["label"], "faultless"]
        assert [labels[name] for name in row["sources"]] == expected
    made = pool.column("label") != "faultless"
    assert (np.diff(own.first)[made] == 1).all()  # replay draws the object's image

    lent = gate._lent(pool, train)
    assert (lent[~made] == -1).all()
    assert [train.column("sample_id")[i] for i in lent[made]] == [
        names[1] for names in pool.table["sources"].to_pylist() if names[1:]
    ]
    judges = Judges.fit(train, data.classes, settings=settings.judges, flips="none", seed=0, folder=Path("judges"))
    outcome = gate.check_pool(
        Path("pool"),
        train,
        data.val(),
        judges,
        data.classes,
        family="compose",
        params=settings,
        out=Path("."),
        docs=Path("docs"),
    )
    images = pq.read_table("images.parquet")
    reasons = np.array(images["reason"].to_pylist(), dtype=object)
    nearest = images["nearest"].to_pylist()
    assert not any(
        names[-1] == near for names, near in zip(pool.table["sources"].to_pylist(), nearest, strict=True) if names[1:]
    )
    assert not outcome.failures and len(pool) == len(reasons)
    assert (reasons[~made] == "copy").all() and np.mean([reason in ("copy", "moved_copy") for reason in reasons[made]]) < 0.1
