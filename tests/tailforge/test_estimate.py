"""What `tailforge init` says of the time that a first run takes."""

from __future__ import annotations

import pytest

from pipeline.config import Params
from tailforge import estimate

IMAGES = {"train": 1000, "val": 200, "test": 1000}


def params(**sections: dict[str, object]) -> Params:
    shared = {"data": {"image_size": 152}, "fit": {"image_size": 32}, "encoder": {"name": "tf_efficientnet_lite0.in1k"}}
    return Params.model_validate(shared | sections)


def test_each_mode_adds_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, both, tuned = (
        estimate.seconds(params(classifier={"modes": modes, "image_size": 32}), IMAGES, 6)
        for modes in (["frozen"], ["scratch", "frozen"], ["scratch", "frozen", "finetune"])
    )
    assert frozen["train_real"] < both["train_real"] < tuned["train_real"]
    assert frozen["prepare"] == both["prepare"] and frozen["fit"] == tuned["fit"]
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert estimate.seconds(params(), IMAGES, 6)["fit"] < frozen["fit"] / 4


def test_twice_the_images_take_longer_where_images_are_looked_at() -> None:
    classifier = {"mode": "frozen"}
    once = estimate.seconds(params(classifier=classifier), IMAGES, 6)
    twice = estimate.seconds(params(classifier=classifier), {name: 2 * n for name, n in IMAGES.items()}, 6)
    assert {name for name in once if twice[name] > once[name]} >= {"prepare", "judges", "train_real", "evaluate"}
    assert (twice["fit"], twice["train_synthetic"]) == (once["fit"], once["train_synthetic"])


def test_what_is_told_is_in_minutes_and_names_the_slow_stages() -> None:
    said = estimate.told(params(classifier={"mode": "frozen"}), IMAGES, 6)
    assert said.startswith("A first run takes about ") and "fit " in said and "prepare" not in said
