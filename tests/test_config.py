"""params.yaml: what it must hold and what it says when it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import config
from pipeline.errors import ConfigError
from pipeline.generators import registry

SHIPPED = Path(__file__).parents[1] / "params.yaml"


def changed(tmp_path: Path, change: Any) -> Path:
    values = yaml.safe_load(SHIPPED.read_text())
    change(values)
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_the_shipped_settings_are_whole() -> None:
    params = config.read(SHIPPED)
    for name in config.FAMILIES:
        assert registry.settings(params, name).model_dump() == dict(params.families[name])


def test_every_setting_carries_a_comment() -> None:
    bare = [line for line in SHIPPED.read_text().splitlines() if line.startswith("  ") and ":" in line and "#" not in line]
    assert not bare


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["data"].update(image_sise=8), r"unknown parameter data\.image_sise; did you mean image_size\?"),
        (lambda v: v.update(extra=1), r"unknown parameter extra"),
        (lambda v: v["data"].update(image_size="8"), r"data\.image_size='8'; expected a valid integer"),
        (lambda v: v["data"].update(source="web"), r"data\.source='web'; expected 'digits', 'folder'"),
        (lambda v: v["split"].update(val=1.5), r"split\.val=1\.5; expected less than 1"),
        (lambda v: v["classifier"].pop("lr"), r"classifier\.lr is missing"),
        (lambda v: v.update(generators=[]), r"generators=\[\]; expected"),
        (lambda v: v.update(generators=["gann"]), r"generators\.0='gann'"),
        (lambda v: v["arms"].update(curve=[10, 10]), r"arms\.curve=\[10, 10\]; expected numbers in ascending order"),
        (lambda v: v["arms"].update(curve=[0, 10]), r"arms\.curve\.0=0; expected greater than or equal to 1"),
        (lambda v: v["arms"].update(real=["self_distillation"]), r"arms\.real=.*; expected self_distillation and another arm"),
        (lambda v: v.pop("flow_matching"), r"section flow_matching is missing"),
        (lambda v: v.update(data=3), r"data=3"),
    ],
)
def test_a_bad_setting_is_named_with_value_and_expectation(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.read(changed(tmp_path, change))
    assert "\n" not in str(caught.value) and caught.value.exit_status == 2


@pytest.mark.parametrize("text", ["- 1", "a: [", "", "\x00"])
def test_a_file_that_is_no_settings_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"params\.yaml"):
        config.read(file)
    with pytest.raises(ConfigError, match="tailforge init"):
        config.read(tmp_path / "absent.yaml")


def test_a_family_s_own_mistake_is_named_with_its_section(tmp_path: Path) -> None:
    params = config.read(changed(tmp_path, lambda v: v["flow_matching"].update(widht=3)))
    with pytest.raises(ConfigError, match=r"unknown parameter flow_matching\.widht; did you mean width\?"):
        registry.settings(params, "flow_matching")
