"""dvc.yaml: stages in order, rooms that cover what a stage imports, the test set opened by one stage alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from pipeline import config
from pipeline.registry import ENCODERS, GENERATORS
from pipeline.stages.__main__ import VERBS

ROOT = Path(__file__).parents[1]
PIPELINE = ROOT / "pipeline"
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
FAMILIES = tuple(GENERATORS.ours)

# Files that cannot change what a stage writes: settings, with their defaults, are parameters, and so is the code of a family.
# The rest are messages, the reading of options, lists of names. As dependencies of every stage they would rerun all for a word.
LISTS = ("registry.py", "generators/registry.py", "lazy.py")
NOT_RESULTS = {PIPELINE / name for name in ("errors.py", "config.py", "stages/__main__.py", *LISTS)}
NOT_RESULTS |= {PIPELINE / f"generators/{family}.py" for family in FAMILIES}


@cache
def imported(file: Path) -> tuple[str, ...]:
    """Dotted names of modules of the package that `file` imports, at the top or in a function, but for types alone."""
    return tuple(_imported(file))


def _imported(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports are not followed"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def files_of(module: str) -> tuple[Path, ...]:
    """The files that run when a module of the package is imported: its own and its parents'. None for other modules."""
    names = module.split(".")
    if names[0] != "pipeline":
        return ()
    places = [ROOT.joinpath(*names[:n]) for n in range(1, len(names) + 1)]
    return tuple(f for place in places for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file())


def closure(*modules: str) -> set[Path]:
    """Files that importing `modules` can reach, those without code and NOT_RESULTS left out."""
    waiting = [file for module in modules for file in files_of(module)]
    found: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += [other for module in imported(file) for other in files_of(module)]
    return {file for file in found - NOT_RESULTS if has_code(file) and not exports_alone(file)}


@cache
def has_code(file: Path) -> bool:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


@cache
def exports_alone(file: Path) -> bool:
    """Whether `file` is a package's list of exported names (pipeline/lazy.py)."""
    return file.name == "__init__.py" and "exports(" in file.read_text(encoding="utf-8")


def rooms(verb: str, family: str | None) -> set[Path]:
    """The files that the dependencies of a stage must cover."""
    if verb == "settings":  # what says how settings are resolved; it runs nothing of what it imports
        return {PIPELINE / "stages/settings.py", PIPELINE / "config.py", PIPELINE / "registry.py"} | {
            file for file in (PIPELINE / "generators").rglob("*.py") if has_code(file)
        }
    return closure(f"pipeline.stages.{verb}", *lazily_imported(verb, family))


def lazily_imported(verb: str, family: str | None) -> list[str]:
    """Modules that a stage imports by name, which no AST shows."""
    places = {name: place.partition(":")[0] for name, place in ENCODERS.ours.items()}
    if verb in ("judges", "drift"):
        return [place for name, place in places.items() if verb == "judges" or name != "small"]  # drift: none that is fitted
    if verb in ("fit", "sample", "validate", "measure"):
        return [f"pipeline.generators.{family}", *(places.values() if verb == "validate" else ())]
    if verb == "prepare":
        return [f"pipeline.datasets.{source}" for source in get_args(config.Data.model_fields["source"].annotation)]
    return []


def expanded() -> Iterator[tuple[str, str, str | None, dict[str, Any]]]:
    """(stage, verb, family, its entry) for each stage and each family there is."""
    for name, entry in DVC.items():
        for family in FAMILIES if "matrix" in entry else [None]:
            verb = entry["cmd"].split("pipeline.stages ")[1].split()[0]
            yield f"{name}@{family}" if family else name, verb, family, entry


def path_of(dependency: str, family: str | None) -> str:
    for key, value in (
        ("item.family", family),
        ("data.path", PARAMS["data"]["path"]),
        ("data.external", PARAMS["data"]["external"]),
    ):
        dependency = dependency.replace(f"${{{key}}}", str(value))
    return dependency


def missing(verb: str, family: str | None, deps: list[str]) -> list[str]:
    """Files that the stage imports and that no dependency covers."""
    declared = [ROOT / path_of(dep, family) for dep in deps]
    needed = rooms(verb, family)
    return sorted(str(f.relative_to(ROOT)) for f in needed if not any(f == d or d in f.parents for d in declared))


STAGES = list(expanded())
IDS = [stage for stage, *_ in STAGES]


@pytest.mark.parametrize(("stage", "verb", "family", "entry"), STAGES, ids=IDS)
def test_code_dependencies_cover_the_imports(stage: str, verb: str, family: str | None, entry: dict[str, Any]) -> None:
    assert missing(verb, family, entry["deps"]) == []


@pytest.mark.parametrize(("stage", "verb", "family", "entry"), STAGES, ids=IDS)
def test_each_code_dependency_exists_and_is_imported(stage: str, verb: str, family: str | None, entry: dict[str, Any]) -> None:
    every_family = {file for name in FAMILIES for file in rooms(verb, name)}
    for dep in entry["deps"]:
        if dep.startswith("pipeline/"):
            path = ROOT / path_of(dep, family)
            assert path.exists(), f"{stage} depends on {dep}, which is not there"
            used = [file for file in every_family if file == path or path in file.parents]
            assert used, f"{stage} depends on {dep}, which it does not import"


def test_a_missing_room_is_found() -> None:
    """Each line of code is missed when it goes: by every stage, or by one family of a matrix."""
    for name, entry in DVC.items():
        runs = [(verb, family) for stage, verb, family, _ in STAGES if stage.split("@")[0] == name]
        for dep in entry["deps"]:
            if dep.startswith("pipeline/"):
                others = [other for other in entry["deps"] if other != dep]
                assert any(missing(verb, family, others) for verb, family in runs), (name, dep)


def test_imports_in_functions_and_lazy_ones_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    for_types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pipeline.arms\n"
    file.write_text(f"{for_types}def f():\n    from pipeline.core import seeds\n")
    assert "pipeline.core.seeds" in set(imported(file)) and "pipeline.arms" not in set(imported(file))


def test_a_familys_file_reruns_that_family_alone() -> None:
    """No stage but `settings` depends on it; those that run it have its hash as a parameter."""
    for stage, verb, family, entry in STAGES:
        own = {ROOT / path_of(dep, family) for dep in entry["deps"]}
        files = {PIPELINE / f"generators/{name}.py" for name in FAMILIES}
        covered = [file for file in files if any(place == file or place in file.parents for place in own)]
        assert bool(covered) == (verb == "settings"), stage
        runs_it = verb in ("fit", "sample", "validate", "measure")
        assert ("code.${item.family}" in resolved(entry)) == runs_it, stage


def test_stages_stand_in_topological_order() -> None:
    made: list[str] = []
    for name, entry in DVC.items():
        for dep in map(str, entry["deps"]):
            makers = [out for out in made if out == dep or out.startswith(f"{dep}/") or dep.startswith(f"{out}/")]
            is_result = dep.startswith("data/") and dep != "data/lists"
            assert makers or (not is_result and not dep.endswith((".json", ".csv"))), (
                f"{name} depends on {dep}, made later or never"
            )
        made += outs(entry)


def outs(entry: dict[str, Any]) -> list[str]:
    listed = [*entry.get("outs", []), *entry.get("metrics", []), *entry.get("plots", [])]
    return [next(iter(out)) if isinstance(out, dict) else out for out in listed]


def test_headroom_is_told_before_any_generator_is_fitted() -> None:
    order = list(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    assert order.index("train_real") < order.index("fit")


def test_only_train_real_opens_the_reserve() -> None:
    made = [name for name, entry in DVC.items() if "data/prepared/reserve.parquet" in outs(entry)]
    readers = [name for name, entry in DVC.items() if "data/prepared/reserve.parquet" in entry["deps"]]
    assert (made, readers) == (["prepare"], ["train_real"])


def test_generators_see_the_rows_that_drift_chose_and_no_others() -> None:
    """A dependency on data/prepared would fit them anew whenever anything changed; all others see the present rows."""
    for name, entry in DVC.items():
        rows = [dep for dep in entry["deps"] if dep.endswith("train.parquet") or dep == "data/drift/reference"]
        assert rows == (
            ["data/drift/reference"]
            if name in ("fit", "sample")
            else ["data/prepared/train.parquet"] * (name not in ("settings", "prepare"))
        )
    assert not any(dep.startswith("data/prepared") for name in ("fit", "sample") for dep in DVC[name]["deps"])


def test_what_a_stage_takes_up_from_the_version_before_outlives_its_rerun() -> None:
    """DVC removes other outputs before it runs a stage, and gives them back from its run cache, whatever came before."""
    kept = {
        name: [next(iter(out)) for out in entry["outs"] if isinstance(out, dict) and out[next(iter(out))].get("persist")]
        for name, entry in DVC.items()
    }
    assert {name: outs for name, outs in kept.items() if outs} == {
        "prepare": ["data/prepared/sides.parquet"],
        "drift": ["data/drift/before", "data/drift/drift.json", "data/drift/reference"],
    }


def test_only_evaluate_opens_the_test_set() -> None:
    readers = [
        name for name, entry in DVC.items() if "data/prepared/test.parquet" in entry["deps"] or "data/prepared" in entry["deps"]
    ]
    assert readers == ["evaluate"]
    for verb in VERBS:
        if verb != "evaluate":
            text = (PIPELINE / f"stages/{verb}.py").read_text(encoding="utf-8")
            assert ".test()" not in text and "test.parquet" not in text.replace("test.parquet,", ""), verb


@pytest.mark.parametrize(("stage", "verb", "family", "entry"), STAGES, ids=IDS)
def test_commands_give_the_options_that_the_verb_takes(
    stage: str, verb: str, family: str | None, entry: dict[str, Any]
) -> None:
    words = entry["cmd"].split()
    assert words[:3] == ["python", "-m", "pipeline.stages"]
    given = {word.removeprefix("--") for word in words if word.startswith("--")}
    required = {option for option in VERBS[verb] if not option.endswith("?")}
    assert required <= given <= {option.rstrip("?") for option in VERBS[verb]}


def resolved(entry: dict[str, Any]) -> list[str]:
    """The keys of data/settings.json that are parameters of a stage; all of them are [""]."""
    [keys] = [keys for file in entry.get("params", []) for name, keys in file.items() if name == "data/settings.json"] or [[]]
    return [""] if keys is None else list(map(str, keys))


def test_parameters_are_resolved_settings() -> None:
    """Of params.yaml itself only `settings` sees a change: what it does not say has its default there."""
    for name, entry in DVC.items():
        files = [file for p in entry.get("params", []) for file in p]
        assert set(files) <= {"data/settings.json", "data/prepared/inputs.json"}, name
        assert ("params.yaml" in entry["deps"]) == (name == "settings"), name


def test_what_dvc_reads_in_params_yaml_is_known_to_be_needed_there() -> None:
    text = re.sub(r"#.*", "", (ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    assert set(re.findall(r"\$\{([\w.]+)\}", text)) - {"item.family"} == set(config.INTERPOLATED)


def test_a_family_depends_on_its_own_settings_alone() -> None:
    for name in ("fit", "sample", "validate", "measure", "train_synthetic"):
        assert not {"families", "code", "generators", ""} & set(resolved(DVC[name])), name
    assert "families.${item.family}" in resolved(DVC["fit"])


def test_every_setting_is_a_parameter_of_a_stage_that_uses_it() -> None:
    named = {key.split(".")[0] for name, entry in DVC.items() for key in resolved(entry) if name != "evaluate"}
    assert set(config.sections()) - {"engine"} <= named and named <= {*config.sections(), "families", "code", "encoder_origin"}
    assert "engine" not in named and resolved(DVC["evaluate"]) == [""]
