"""The command line: what it prints, its exit statuses, and that nothing is written before all of it is right."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from helpers.annotated import made
from helpers.toy import COLD, ROOT, setting
from pipeline import config
from pipeline.errors import ConfigError, DataError, InputError
from pipeline.generators import registry
from pipeline.registry import GENERATORS
from tailforge import project, running, settings, survey

Command = Callable[..., subprocess.CompletedProcess[str]]
MAIN = (sys.executable, "-c", "from tailforge.cli import main; main()")
PARAMS = (ROOT / "params.yaml").read_text(encoding="utf-8")
HALF = config.Split(val=0.15, test=0.35)


def test_help_imports_nothing_heavy(command: Command) -> None:
    heavy = "{'torch', 'prefect', 'pandas', 'numpy', 'pyarrow', 'pydantic', 'yaml', 'PIL'}"
    command(sys.executable, "-c", f"import sys, tailforge.cli; assert not {heavy} & set(sys.modules)", cwd=ROOT)
    assert "doctor" in command(*MAIN, "--help", cwd=ROOT).stdout


# --- the result


def test_the_worth_in_real_images_is_printed_where_it_was_measured(tmp_path: Path) -> None:
    score = {"estimate": 0.9, "low": 0.8, "high": 0.95}
    metrics = {
        "arms": {"synthetic": {"balanced_accuracy": score}}, "gain": {"balanced_accuracy": score}, "verdict": "gain",
        "baseline": "augment",
    }  # fmt: skip
    worth = {"real_images_per_class": 12.3, "low": 2.0, "high": 30.0, "beyond": False, "high_beyond": True}
    said = "synthetic is worth about 12 real images a class [2.0, more than 30]\n"
    for value, there in ((metrics, False), (metrics | {"equivalent_real_images": worth}, True)):
        out = io.StringIO()
        running.show(value, tmp_path, out)
        assert (said in out.getvalue()) == there and "report: " in out.getvalue()


@pytest.mark.parametrize(("decision", "said"), [("same", "fitted on these"), ("reuse", "re-used: 3 train images came")])
def test_a_run_says_whether_generators_were_re_used(
    toy: Path, command: Command, no_heavy: str, decision: str, said: str
) -> None:
    (toy / "data/drift").mkdir(parents=True)
    found = {"decision": decision, "came": 3, "reasons": []}
    (toy / "data/drift/drift.json").write_text(json.dumps(found))
    lines = command(*MAIN, "run", "--no-release", cwd=toy, PYTHONPATH=no_heavy).stdout.splitlines()
    assert [line for line in lines if line.startswith(f"generators {said}")]


# --- settings


def test_overrides_keep_comments_and_mean_the_same_to_both_yamls() -> None:
    given = [
        "data.path=/a b/c",
        "generators=[external]",
        "flow_matching.lr=1e-5",
        "data.name=no",
        "data.table=",
        "seed=3",
    ]
    text = settings.apply(PARAMS, settings.parse(given))
    values = yaml.safe_load(text)
    assert values["data"]["path"] == "/a b/c" and values["data"]["name"] == "no" and values["data"]["table"] == ""
    assert values["generators"] == ["external"] and values["flow_matching"]["lr"] == 1e-5 and values["seed"] == 3
    changed = [new for old, new in zip(PARAMS.splitlines(), text.splitlines(), strict=True) if old != new]
    assert len(changed) == 5 and all("#" in line for line in changed if "lr" not in line)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "expected key=value"),
        ("data.image_sise=8", "did you mean data.image_size?"),
        ("seed.x=1", "unknown parameter"),
        ("vae.stepz=3", "did you mean vae.steps?"),
        ("flowmatching.steps=3", "did you mean flow_matching.steps?"),
        ("classifer.steps=3", "did you mean classifier.steps?"),
        ("scarcity.counts.cat=3", "unknown parameter"),
        ("external.path=x", "unknown parameter"),
        ("generators=[naive", "a YAML value"),
    ],
)
def test_bad_overrides_are_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match="-S") as caught:
        settings.apply(PARAMS, settings.parse([override]))
    assert said in str(caught.value)


def test_what_params_yaml_does_not_show_is_added_to_it() -> None:
    """A key with its comment; a section of a family whole, with what suits the size of the images."""
    text = settings.apply(PARAMS, {"vae.steps": 100, "data.image_size": 32})
    values = yaml.safe_load(text)
    assert values["vae"] == survey_start("vae", 32) | {"steps": 100} and values["vae"]["patch"] == 2
    assert values == yaml.safe_load(PARAMS) | {"vae": values["vae"], "data": values["data"]}
    assert list(values).index("vae") == list(values).index("flow_matching") + 1
    short = "seed: 3 # mine\ngenerators: [naive]\nnaive:\n  kind: kernel\n"
    text = settings.apply(short, {"classifier.steps": 7, "naive.bandwidth": 0.5, "data.channels": 3})
    assert yaml.safe_load(text) == {
        "seed": 3, "generators": ["naive"], "naive": {"kind": "kernel", "bandwidth": 0.5},
        "classifier": {"steps": 7}, "data": {"channels": 3},
    }  # fmt: skip
    assert "seed: 3 # mine" in text and "# optimiser steps, equal for all arms" in text and settings.checked(text).seed == 3


def test_a_family_that_is_named_gets_its_section() -> None:
    values = yaml.safe_load(settings.apply(PARAMS, {"generators": ["flow_matching", "gan", "external"], "data.image_size": 32}))
    assert values["gan"] == survey_start("gan", 32) and "external" not in values
    assert values["flow_matching"] == yaml.safe_load(PARAMS)["flow_matching"]


def survey_start(name: str, size: int) -> dict[str, object]:
    return registry.family(name).Config().model_dump() | survey.fitting(name, size, 1)


def test_the_repositorys_params_yaml_is_rendered_from_the_config_classes() -> None:
    params = config.read(ROOT / "params.yaml")
    families = {name: registry.settings(params, name) for name in params.generators}
    assert settings.rendered(params, families) == PARAMS


def test_settings_are_told_with_default_and_origin(tmp_path: Path, toy: Path, command: Command) -> None:
    text = PARAMS.replace("seed: 0 ", "seed: 5 ").replace("  bootstrap: 2000", "  # bootstrap: 2000")
    told = {setting.key: setting for setting in settings.listed(text)}
    assert (told["seed"].value, told["seed"].default, told["seed"].origin) == (5, 0, "params.yaml")
    assert (told["evaluate.bootstrap"].value, told["evaluate.bootstrap"].origin) == (2000, "default")
    assert told["evaluate.bootstrap"].comment == "resamples: seeds, then groups"
    assert "flow_matching.steps" in told and "vae.steps" not in told
    everything = {setting.key for setting in settings.listed(text, everything=True)}
    assert everything >= {f"{name}.{key}" for name in GENERATORS.names for key in registry.family(name).Config.model_fields}
    table = settings.table(list(told.values())).splitlines()
    assert len(table) == 1 + len(told) and table[1].split()[:4] == ["seed", "5", "0", "params.yaml"]
    printed = json.loads(command(*MAIN, "settings", "--json", cwd=toy).stdout)
    assert printed[0].keys() == {"key", "value", "default", "origin", "comment"}


@pytest.mark.parametrize("key", config.INTERPOLATED)
def test_what_dvc_reads_must_stand_in_params_yaml(toy: Path, command: Command, key: str) -> None:
    values = yaml.safe_load((toy / "params.yaml").read_text())
    *path, last = key.split(".")
    del (values[path[0]] if path else values)[last]
    (toy / "params.yaml").write_text(yaml.safe_dump(values))
    done = command(*MAIN, "run", "--no-release", cwd=toy, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"params.yaml lacks {key}" in done.stderr and "tailforge upgrade" in done.stderr


def test_a_run_adds_the_section_of_a_family_that_is_new(toy: Path, command: Command) -> None:
    text = (toy / "params.yaml").read_text()
    (toy / "params.yaml").write_text(text.replace("[naive, external]", "[naive, gan]"))
    done = command(*MAIN, "run", "--no-release", "--force", "nosuch", cwd=toy, check=False)
    assert "params.yaml: added gan\n" in done.stdout and "--force nosuch" in done.stderr
    assert yaml.safe_load((toy / "params.yaml").read_text())["gan"] == registry.family("gan").Config().model_dump()


def test_a_familys_own_section_is_checked() -> None:
    assert settings.checked(PARAMS).generators == yaml.safe_load(PARAMS)["generators"]
    with pytest.raises(ConfigError, match=r"naive\.kind"):
        settings.checked(settings.apply(PARAMS, {"naive.kind": "nosuch", "generators": ["naive"]}))


# --- run


def test_run_outside_a_project_says_what_to_do(tmp_path: Path, command: Command) -> None:
    done = command(*MAIN, "run", cwd=tmp_path, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "tailforge init" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_heavy(tmp_path: Path) -> str:
    """A PYTHONPATH on which importing prefect or torch fails."""
    folder = tmp_path / "no_heavy"
    for name in ("prefect", "torch"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise SystemExit('heavy import')")
    return f"{folder}{os.pathsep}{ROOT}"


def test_a_run_with_nothing_to_do_says_so_without_prefect_or_torch(toy: Path, command: Command, no_heavy: str) -> None:
    done = command(*MAIN, "run", "--no-release", cwd=toy, PYTHONPATH=no_heavy)
    lines = done.stdout.splitlines()
    assert lines[0] == "Everything is up to date: nothing to run."
    assert lines[1].split() == ["arm", "balanced", "accuracy", "tail", "recall"]
    assert lines[2].startswith("real") and "0.750 [0.500, 1.000]" in lines[2]
    assert "verdict: no_gain" in lines
    assert (
        "gain of synthetic over real: balanced accuracy +0.750 [+0.500, +1.000], tail recall +0.750 [+0.500, +1.000]" in lines
    )
    assert f"report: {toy / 'report/index.html'}" in lines and lines[-1].endswith(" s")
    assert "\x1b" not in done.stdout + done.stderr
    assert not command("git", "tag", "--list", cwd=toy).stdout


def test_a_change_of_what_is_no_familys_is_checked_without_torch(toy: Path, command: Command, no_heavy: str) -> None:
    lines = command(
        *MAIN, "run", "--no-release", "-S", "evaluate.bootstrap=500", cwd=toy, PYTHONPATH=no_heavy
    ).stdout.splitlines()
    assert lines[0] == "Everything is up to date: nothing to run."
    assert yaml.safe_load((toy / "params.yaml").read_text())["evaluate"]["bootstrap"] == 500


def test_json_is_alone_on_standard_output(toy: Path, command: Command, no_heavy: str) -> None:
    done = command(*MAIN, "run", "--no-release", "--json", cwd=toy, PYTHONPATH=no_heavy)
    assert json.loads(done.stdout) == json.loads((toy / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-S", "data.image_sise=8"], "did you mean data.image_size?"),
        (["-S", "seed=minus one"], "params.yaml: seed='minus one'"),
        (["-S", "naive.shrinkage=3"], "naive.shrinkage=3"),
        (["-S", "vae.stepz=3"], "did you mean vae.steps?"),
        (["-S", "data.source=folder", "-S", "data.path=nowhere"], "data.path='nowhere' does not exist"),
        (["-S", "generators=[naive, external]", "-S", "data.external=nowhere"], "data.external='nowhere' does not exist"),
        (
            ["-S", "encoder.name=resnet18.a1_in1k", "-S", "encoder.weights=no.safetensors"],
            "encoder.weights=no.safetensors does not",
        ),
        (["--force", "nosuch"], "expected one of first"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(toy: Path, command: Command, arguments: list[str], said: str) -> None:
    before = (toy / "params.yaml").read_bytes()
    done = command(*MAIN, "run", *arguments, cwd=toy, check=False)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert (toy / "params.yaml").read_bytes() == before


def test_weights_of_the_encoder_are_at_hand_before_a_stage_starts(toy: Path, command: Command) -> None:
    """Stages do without a network, so this process downloads them."""
    setting(toy, "  name: none", "  name: resnet18.a1_in1k")
    done = command(*MAIN, "run", "--force", "last", cwd=toy, check=False, HF_HUB_OFFLINE="1", HF_HOME=str(toy / "hub"))
    assert done.returncode == 2 and done.stderr.startswith("error: the weights of resnet18.a1_in1k are not on this machine")
    assert done.stderr.count("\n") == 1


class Hub(BaseHTTPRequestHandler):
    """A hub that has every file; all are the same."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        for name, value in {"ETag": '"e"', "X-Repo-Commit": "0" * 40, "Content-Length": "7"}.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"weights")

    def log_message(self, *_: object) -> None:
        pass


def test_weights_come_from_the_hub_where_there_is_a_network(tmp_path: Path, toy: Path, command: Command) -> None:
    """`--force nosuch` ends the run before a stage starts."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever).start()
        try:
            done = command(
                *MAIN, "run", "-S", "encoder.name=resnet18.a1_in1k", "--force", "nosuch", cwd=toy, check=False,
                HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "hub"), HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}",
            )  # fmt: skip
        finally:
            hub.shutdown()
    assert "--force nosuch" in done.stderr, done.stderr
    [kept] = (tmp_path / "hub").rglob("model.safetensors")
    assert kept.read_bytes() == b"weights"


def test_a_list_that_dvc_does_not_see_is_warned_of(toy: Path, command: Command) -> None:
    (toy / "data/groups.json").write_text("[]")
    (toy / "data/lists").mkdir()
    (toy / "data/lists/groups.json").write_text("[]")
    outside = command(*MAIN, "run", "-S", "data.groups=data/groups.json", "--force", "nosuch", cwd=toy, check=False).stderr
    inside = command(*MAIN, "run", "-S", "data.groups=data/lists/groups.json", "--force", "nosuch", cwd=toy, check=False).stderr
    assert "warning: data.groups=" in outside and "copy it to data/lists" in outside and "warning" not in inside


def test_a_failed_stage_gives_its_exit_status_and_its_lines(toy: Path, command: Command, prefect_database: None) -> None:
    done = command(*MAIN, "run", "-S", "seed=13", cwd=toy, check=False, **COLD)
    assert done.returncode == 2 and "error: seed=13; expected a lucky one; change seed" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


def test_doctor_says_a_line_each(toy: Path, command: Command) -> None:
    lines = command(*MAIN, "doctor", cwd=toy).stdout.splitlines()
    found = {line.split()[0] for line in lines}
    assert {"python", "torch", "prefect", "dvc", "cores", "bf16", "disk", "git", "project"} <= found
    assert any(line.startswith("dvc state") and "up to date" in line for line in lines)


# --- init


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Class folders with coloured JPEGs of mixed sizes, and a groups file beside them."""
    folder, rng = tmp_path / "photographs", np.random.default_rng(0)
    for label, n in {"cat": 8, "black dog": 4}.items():
        (folder / label).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 255, (30 + i, 44, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{label}{i}.jpg")
    (folder / "cat" / "torn.png").write_bytes(b"\x89PNG")
    (tmp_path / "groups.json").write_text(json.dumps([{"id": "cat0", "group": "a"}]))
    return folder


def test_a_groups_file_of_other_images_is_left_alone(photographs: Path) -> None:
    assert survey.survey(photographs, split=HALF).groups == photographs.parent / "groups.json"
    (photographs.parent / "groups.json").write_text(json.dumps([{"id": "BloodImage_1", "group": "a"}]))
    assert survey.survey(photographs, split=HALF).groups is None


def test_init_reads_settings_off_a_folder(photographs: Path, tmp_path: Path, command: Command) -> None:
    made = tmp_path / "made"
    command(*MAIN, "init", made, "--data", photographs, cwd=tmp_path)
    params = config.read(made / "params.yaml")
    assert (params.data.source, params.data.path) == ("folder", str(photographs))
    assert (params.data.image_size, params.data.channels, params.data.flips) == (32, 3, "horizontal")
    assert params.data.groups == "data/lists/groups.json" and (made / params.data.groups).is_file()
    assert params.scarcity.kind == "as_is" and params.classifier.augment == "flip_affine"
    assert (made / "params.yaml").read_text().count("#") == PARAMS.count("#")
    assert not command("git", "status", "--porcelain", cwd=made).stdout
    assert command("git", "log", "--format=%s", cwd=made).stdout == "New project\n"
    deps = [dep for entry in yaml.safe_load((made / "dvc.yaml").read_text())["stages"].values() for dep in entry["deps"]]
    code = [dep for dep in deps if "pipeline/" in dep]
    assert code and all(dep.startswith(".tailforge/code/pipeline/") for dep in code)
    assert all((made / dep.replace("${item.family}", "naive")).exists() for dep in code)
    assert "prepare" in command("dvc", "stage", "list", "--name-only", cwd=made).stdout.split()


def test_larger_images_are_looked_at_through_an_encoder_where_there_is_one(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in ("cat", "black dog"):
        for i in range(9):
            Image.new("RGB", (300, 90 + i), (i, 99, 0)).save(photographs / label / f"large{i}.png")
    values = survey.survey(photographs, split=HALF).values
    assert (values["data.image_size"], values["fit.image_size"]) == (224, 32)
    assert (values["encoder.name"], values["classifier.mode"]) == ("tf_efficientnet_lite0.in1k", "frozen")
    assert "through tf_efficientnet_lite0.in1k (ImageNet)" in survey.why(values)
    params = config.resolved(config.values(settings.initial(values)))
    assert params.judges.encoder == "pretrained" and params.generator_size == 32
    assert settings.start("flow_matching", params).model_dump() == survey_start("flow_matching", 32)
    monkeypatch.setattr(survey, "find_spec", lambda _: None)
    values = survey.survey(photographs, split=HALF).values
    assert values["data.image_size"] == 32 and "encoder.name" not in values
    assert "pip install 'tailforge[encoder]'" in survey.why(values)


def test_a_folder_of_masks_is_no_class_and_its_objects_are_composed(photographs: Path) -> None:
    for label in ("cat", "black dog"):
        for i in range(9):
            Image.new("RGB", (300, 90 + i), (i, 99, 0)).save(photographs / label / f"large{i}.png")
    (photographs / "ground_truth/cat").mkdir(parents=True)
    Image.new("L", (300, 90), 255).save(photographs / "ground_truth/cat/large0_mask.png")
    read = survey.survey(photographs, split=HALF)
    assert read.classes == 2 and read.values["data.regions"] == "ground_truth"
    assert read.values["generators"] == ["compose"] and read.values["fit.image_size"] == 0
    assert "generators work at 224" in survey.why(read.values)
    params = config.resolved(config.values(settings.initial(read.values)))
    assert params.generators == ["compose"] and params.generator_size == params.data.image_size == 224
    for ending in ("_mask.png", ".png"):  # beside a JPEG
        shutil.rmtree(photographs / "ground_truth", ignore_errors=True)
        for image in list(photographs.glob("*/*.png")):
            image.unlink()
        assert survey.survey(photographs, split=HALF).values.get("data.regions") is None
        Image.new("L", (44, 30), 255).save(photographs / f"cat/cat0{ending}")
        read = survey.survey(photographs, split=HALF)
        assert read.values["data.regions"] == f"*{ending.removesuffix('_mask.png') or '_mask'}" and read.classes == 2


def test_init_reads_a_table_and_idx(tmp_path: Path) -> None:
    Image.new("L", (28, 28), 7).save(tmp_path / "a.png")
    text = io.StringIO()
    csv.writer(text).writerows([["path", "label", "split"], *[["a.png", label, "train"] for label in "aab"]])
    (tmp_path / "list.csv").write_text(text.getvalue())
    values, groups, images, _ = survey.survey(tmp_path, split=config.Split())
    assert values["data.source"] == "table" and values["data.table"] == "list.csv" and groups is None
    assert images == {"train": 3, "val": 0, "test": 0}
    assert values["data.image_size"] == 28 and values["data.channels"] == 1 and values["sample.fill_to"] == 2
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 8]) + bytes(128))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 4, 5]))
    values = survey.survey(tmp_path, split=config.Split()).values
    assert values["data.source"] == "idx" and values["data.image_size"] == 8 and values["classifier.augment"] == "affine"


@pytest.mark.parametrize("source", ["coco", "voc", "yolo", "labelme"])
def test_init_reads_photographs_with_objects(tmp_path: Path, source: str) -> None:
    boxes = [("cell", 2.0, 2.0, 15.0, 15.0), ("crack", 20.0, 4.0, 33.0, 14.0)]
    data = made(source, tmp_path / "data", {f"{i}": boxes for i in range(8)})
    (tmp_path / "groups.json").write_text(json.dumps([{"id": "3", "group": "a"}]))
    read = survey.survey(data, split=config.Split())
    assert read.values["data.source"] == source and read.images["train"] + read.images["val"] + read.images["test"] == 16
    assert read.values["data.image_size"] == 16  # of crops of 17 pixels, in photographs of 40
    assert read.groups == tmp_path / "groups.json" and read.classes == 2


def test_class_folders_with_other_files_stay_class_folders(photographs: Path) -> None:
    for name, content in {
        "data.yaml": "names: [cat, dog]", "cat/1.xml": "<html/>", "cat/2.json": "{", "info.json": '{"images": 3}',
    }.items():  # fmt: skip
        (photographs / name).write_text(content)
    assert survey.survey(photographs, split=HALF).values["data.source"] == "folder"


@pytest.mark.parametrize("size", [8, 12, 16, 20, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_family_takes_what_init_writes(size: int, channels: int) -> None:
    params = config.Params(data=config.Data(image_size=size, channels=channels))
    for name in GENERATORS.ours:
        registry.family(name)(settings.start(name, params), shape=(channels, size, size), n_classes=3)


@pytest.mark.parametrize("case", ["missing", "file", "occupied", "inside", "no classes", "unreadable"])
def test_init_refuses_and_leaves_nothing(photographs: Path, tmp_path: Path, case: str) -> None:
    made, data, kind = tmp_path / "made", photographs, InputError
    if case == "missing":
        data = tmp_path / "nowhere"
    elif case == "file":
        data = photographs / "cat" / "torn.png"
    elif case == "occupied":
        made.mkdir()
        (made / "mine").write_text("mine")
    elif case == "inside":
        made = photographs / "cat" / "made"
    elif case == "no classes":
        data, kind = tmp_path / "empty", DataError
        data.mkdir()
    else:
        kind = DataError
        for file in photographs.rglob("*.jpg"):
            file.write_bytes(b"no image")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind) as caught:
        project.init(made, data)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_link_to_the_code_is_mended(toy: Path) -> None:
    link = toy / project.CODE
    assert project.opened(toy) == toy and link.resolve() == ROOT
    link.unlink()
    link.symlink_to("/nowhere")
    project.opened(toy)
    assert link.resolve() == ROOT


def test_real_cells_are_read_right(tmp_path: Path) -> None:
    datasets = os.environ.get("TAILFORGE_DATASETS")
    if not datasets:
        pytest.skip("TAILFORGE_DATASETS is not set")
    values = survey.survey(Path(datasets) / "mnist", split=config.Split()).values
    assert values["data.source"] == "idx" and values["data.image_size"] == 28 and values["data.channels"] == 1
