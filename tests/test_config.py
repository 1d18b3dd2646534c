"""The settings: defaults with their comments, what params.yaml may hold, and what is said when it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import config
from pipeline.errors import ConfigError
from pipeline.generators import registry
from pipeline.registry import GENERATORS

SHIPPED = Path(__file__).parents[1] / "params.yaml"


def changed(tmp_path: Path, change: Any) -> Path:
    values = yaml.safe_load(SHIPPED.read_text())
    change(values)
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_what_params_yaml_does_not_say_is_at_its_default(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("seed: 3\nclassifier: {steps: 7}\nflow_matching: {steps: 9}\n")
    params = config.read(file)
    assert params.model_copy(update={"families": {}}) == config.Params(seed=3, classifier=config.Classifier(steps=7))
    defaults = registry.settings(config.Params(), "flow_matching")
    assert registry.settings(params, "flow_matching") == defaults.model_copy(update={"steps": 9})
    assert registry.settings(params, "vae") == registry.family("vae").Config()


def test_the_shipped_settings_are_the_defaults() -> None:
    params = config.read(SHIPPED)
    assert params.model_copy(update={"families": {}}) == config.Params()
    for name in params.generators:
        assert registry.settings(params, name).model_dump() == dict(params.families[name])


@pytest.mark.parametrize("section", [name for name, field in config.sections().items() if name != "seed"])
def test_every_setting_has_a_valid_default_and_a_line_that_explains_it(section: str) -> None:
    kind: Any = config.sections()[section].annotation
    if section == "generators":
        assert config.sections()[section].description == " | ".join(GENERATORS.ours)
        return
    assert kind.model_validate(kind().model_dump()) == kind()
    assert [key for key, field in kind.model_fields.items() if not (field.description or "").strip()] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["data"].update(image_sise=8), r"unknown parameter data\.image_sise; did you mean image_size\?"),
        (lambda v: v.update(extra=1), r"unknown parameter extra"),
        (lambda v: v.update(valdate={}), r"unknown parameter valdate; did you mean validate\?"),
        (lambda v: v.update(flowmatching={}), r"unknown parameter flowmatching; did you mean flow_matching\?"),
        (lambda v: v.update(families={}), r"unknown parameter families"),
        (lambda v: v["data"].update(image_size="8"), r"data\.image_size='8'; expected a valid integer"),
        (lambda v: v["data"].update(source="web"), r"data\.source='web'; expected 'digits', 'folder'"),
        (lambda v: v["split"].update(val=1.5), r"split\.val=1\.5; expected less than 1"),
        (lambda v: v.update(generators=[]), r"generators=\[\]; expected"),
        (lambda v: v.update(generators=["gann"]), r"generators\.0='gann'; expected one of naive, .* \(did you mean gan\?\)"),
        (lambda v: v["arms"].update(curve=[10, 10]), r"arms\.curve=\[10, 10\]; expected numbers in ascending order"),
        (lambda v: v["arms"].update(curve=[0, 10]), r"arms\.curve\.0=0; expected greater than or equal to 1"),
        (lambda v: v["arms"].update(real=["self_distillation"]), r"arms\.real=.*; expected self_distillation and another arm"),
        (lambda v: v.update(flow_matching=3), r"params\.yaml: flow_matching=3; expected"),
        (lambda v: v.update(data=3), r"data=3"),
        (lambda v: v["arms"].update(doses=[0.5]), r"arms\.doses is called arms\.synthetic_fractions.*tailforge upgrade"),
        (lambda v: v.update(external={"path": "x"}), r"external\.path is called data\.external.*tailforge upgrade"),
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


def test_a_setting_that_has_no_default_is_asked_for() -> None:
    class Of(config.Section):
        lr: float

    with pytest.raises(ConfigError, match=r"mine\.lr is missing, and has no default; set mine\.lr"):
        config.parse(Of, {}, "mine")
