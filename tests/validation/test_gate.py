"""The gate, and the stages that fit the judges and check a pool."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from helpers.judged import CLASSES, PARAMS, Digits, manifest
from pipeline import config
from pipeline.core import work
from pipeline.core.images import encode_png, to_float
from pipeline.core.manifest import Manifest
from pipeline.encoders.judges import Judges
from pipeline.errors import TailforgeError
from pipeline.generators import registry
from pipeline.stages import judges as judges_stage
from pipeline.stages import validate as validate_stage
from pipeline.validation import gate
from pipeline.validation.checks import CHECKS


@pytest.fixture(scope="module")
def judges(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Judges:
    """Judges that are good enough to be asked: how good they are is a matter of test_checks.py."""
    return digits.judges(tmp_path_factory.mktemp("judges"), steps=150)


@pytest.fixture
def project(digits: Digits, judges: Judges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with prepared rows, judges and a pool: 60 real images that nobody has seen, 6 copies, 5 of noise, 3 broken."""
    monkeypatch.chdir(tmp_path)
    prepared = tmp_path / "data/prepared"
    prepared.mkdir(parents=True)
    pq.write_table(digits.train.table, prepared / "train.parquet")
    pq.write_table(digits.val.table, prepared / "val.parquet")
    work.write_json(prepared / "dataset.json", {"classes": CLASSES, "image_size": 8, "channels": 1})
    judges.save(tmp_path / "data/judges")
    noise = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)
    images = np.concatenate([digits.images[:60], digits.train.images().numpy()[:6], noise])
    labels = [CLASSES[t] for t in digits.targets[:60]] + list(digits.train.column("label")[:6]) + ["5"] * 8
    pool = manifest(images, labels, "naive", family="naive", sources=[["train-1"]] * len(images))
    pngs = pool.table["image"].to_pylist()
    pngs[71], pngs[72], pngs[73] = None, b"torn", encode_png(torch.zeros(3, 9, 9, dtype=torch.uint8))
    write_pool(tmp_path, pool.table.set_column(1, "image", pa.array(pngs, pa.binary())))
    return tmp_path


def write_pool(project: Path, table: pa.Table, family: str = "naive") -> None:
    folder = project / "data/pools" / family
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(0, len(table), 40):
        pq.write_table(table.slice(i, 40), folder / f"part-{i // 40:05d}.parquet")


def validate(project: Path, family: str = "naive", params: config.Params = PARAMS) -> dict[str, object]:
    data = Path("data")
    validate_stage.run(
        params,
        family,
        data / "prepared",
        data / "judges",
        data / "models" / family,
        data / "pools" / family,
        data / "checked" / family,
        data / "docs" / family,
    )
    return summary(project, family)


def summary(project: Path, family: str = "naive") -> dict[str, object]:
    return dict(json.loads((project / "data/checked" / family / "summary.json").read_text()))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_pool_is_checked(project: Path, digits: Digits) -> None:
    told = validate(project)
    images = pq.read_table(project / "data/checked/naive/images.parquet").to_pandas()
    checks = pq.read_table(project / "data/checked/naive/checks.parquet").to_pandas()
    assert images["accepted"][:60].mean() > 0.85
    assert images["reason"][60:66].tolist() == ["copy"] * 6
    assert images["nearest"][60:66].tolist() == [f"train-{i}" for i in range(6)]
    assert not images["accepted"][66:].any()
    assert images["reason"][71:].tolist() == ["form"] * 3
    assert images["reason"].isna().equals(images["accepted"])
    assert len(checks) == len(images) * len(CHECKS)
    whole = checks.groupby("sample_id", sort=False)["passed"].all()
    assert whole.tolist() == images["accepted"].tolist()
    copy = checks[(checks["check"] == "copy") & ~checks["passed"] & checks["value"].notna()]
    assert (copy["value"] < copy["low"]).all() and copy["high"].isna().all()
    assert told["n"] == 74 and told["unknown_sources"] is False and told["expectations"]["success"] in (True, False)
    counted = sum(told["accepted"].values()) + sum(n for by in told["rejected"].values() for n in by.values())
    assert counted == 74
    assert set(told["thresholds"]) == set(CHECKS) and set(told["thresholds"]["copy"]) == set(CLASSES)
    assert {"kid", "unfiltered_kid", "coverage", "c2st", "near_copies"} <= set(told["fidelity"])
    assert told["fidelity"]["unfiltered_near_copies"]["estimate"] >= 6 / 71
    assert "needed" in told["fidelity"]["kid"]["warning"]
    assert (project / "data/docs/naive/index.html").exists()


def test_weak_judges_are_warned_of(project: Path, digits: Digits) -> None:
    assert not any("judges are weak" in str(line) for line in validate(project)["warnings"])  # type: ignore[attr-defined]
    settings = PARAMS.judges.model_copy(update={"steps": 1})
    Judges.fit(digits.train, CLASSES, settings=settings, flips="none", seed=0, folder=project / "data/weak")
    shutil.rmtree(project / "data/judges")
    (project / "data/weak").rename(project / "data/judges")
    assert any("judges are weak" in str(line) for line in validate(project)["warnings"])  # type: ignore[attr-defined]


def test_equal_inputs_give_equal_bytes(project: Path) -> None:
    validate(project)
    first = tree(project / "data/checked") | tree(project / "data/docs")
    validate(project)
    assert tree(project / "data/checked") | tree(project / "data/docs") == first


def test_a_critical_failure_ends_the_stage_when_all_is_written(
    project: Path, digits: Digits, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = manifest(digits.images[:9], ["1"] * 9, "naive", family="naive", sources=[["val-0"]] * 9)
    for old in (project / "data/pools/naive").iterdir():
        old.unlink()
    write_pool(project, pool.table)
    with pytest.raises(TailforgeError, match="1 critical expectation") as caught:
        validate(project)
    assert caught.value.exit_status == 1
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "critical" in one]
    assert "sources_in_train" in line and "naive-0" in line
    told = summary(project)
    assert told["expectations"]["success"] is False and sum(told["accepted"].values()) == 0
    assert pq.read_table(project / "data/checked/naive/images.parquet").num_rows == 0
    assert (project / "data/docs/naive/index.html").exists()


def test_unknown_sources_are_said_and_do_not_fail(project: Path, digits: Digits) -> None:
    labels = [CLASSES[t] for t in digits.targets[:20]]
    write_pool(
        project, manifest(digits.images[:20], labels, "external", family="external", sources=[None] * 20).table, "external"
    )
    told = validate(project, "external")
    assert told["unknown_sources"] is True
    assert any("sources unknown" in str(line) for line in told["warnings"])  # type: ignore[attr-defined]


def test_an_empty_pool_is_checked(project: Path) -> None:
    for old in sorted((project / "data/pools/naive").iterdir())[1:]:
        old.unlink()
    (old,) = (project / "data/pools/naive").iterdir()
    pq.write_table(Manifest.read(old).table.slice(0, 0), old)
    told = validate(project)
    assert told["n"] == 0 and sum(told["accepted"].values()) == 0
    assert told["fidelity"] == {} and told["expectations"]["success"] is False
    assert all("critical" not in str(line) for line in told["warnings"])  # type: ignore[attr-defined]


def test_the_judges_stage_gives_the_same_bytes_after_a_kill(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = PARAMS.model_copy(update={"judges": PARAMS.judges.model_copy(update={"steps": 3})})
    out = project / "data/judges2"
    judges_stage.run(params, Path("data/prepared"), Path("data/judges1"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Judges, "_save_shared", lambda self, folder: (_ for _ in ()).throw(KeyboardInterrupt))
        judges_stage.run(params, Path("data/prepared"), Path("data/judges2"))
    assert not out.exists()
    judges_stage.run(params, Path("data/prepared"), Path("data/judges2"))
    assert tree(out) == tree(project / "data/judges1")
    assert not (project / ".tailforge/partial/data-judges2").exists()


@pytest.mark.fault(16, "broken images in a pool")
def test_broken_images_are_told_one_by_one() -> None:
    good = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)
    pixels, form = gate.decode(
        [encode_png(good), b"", encode_png(good[:, :4]), encode_png(good)[:40], encode_png(good)], (1, 8, 8)
    )
    assert form.tolist() == [True, False, False, False, True]
    assert torch.equal(pixels[0], good) and not pixels[1].any()


def test_the_models_own_posterior_counts_as_much_as_a_judge(project: Path, digits: Digits) -> None:
    """A generator fitted on wrong labels is one term of four: it lowers every agreement."""
    asked = PARAMS.model_copy(update={"validate_": PARAMS.validate_.model_copy(update={"bayes": True})})
    kind = registry.family("naive")
    model = kind(registry.settings(PARAMS, "naive"), shape=(1, 8, 8), n_classes=len(CLASSES))
    images, targets = digits.train.training_tensors(CLASSES, "the test")
    model.fit(to_float(images), (targets + 1) % len(CLASSES), seed=0).save(project / "data/models/naive")  # wrong labels

    def agreement() -> np.ndarray:
        checks = pq.read_table(project / "data/checked/naive/checks.parquet").to_pandas()
        return np.asarray(checks["value"][checks["check"] == "label"])[:60]

    validate(project)
    alone = agreement()
    validate(project, params=asked)
    k = PARAMS.judges.folds
    np.testing.assert_allclose(np.median(agreement()), np.median(alone) * k / (k + 1), atol=0.02)


def test_a_family_without_a_posterior_leaves_labels_to_the_judges_and_that_is_said(project: Path) -> None:
    asked = PARAMS.model_copy(update={"validate_": PARAMS.validate_.model_copy(update={"bayes": True})})
    pool = Manifest.read(project / "data/pools/naive").table
    outside = pool.set_column(6, "generator", pa.array(["external"] * len(pool)))
    write_pool(project, outside, "external")
    external = registry.family("external")
    external(external.Config(), shape=(1, 8, 8), n_classes=len(CLASSES)).fit(
        torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64), seed=0
    ).save(project / "data/models/external")
    told = validate(project, "external", asked)
    assert any("no p(y | x) of its own" in line for line in told["warnings"])  # type: ignore[attr-defined]
