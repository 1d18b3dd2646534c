"""Releases: what a commit holds, when there is none, what a kill leaves, and that any machine gets the same images."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import dvc
from helpers.released import FIRST, OTHER, lay, run
from helpers.toy import add_remote
from pipeline.core import work
from pipeline.datasets import export
from pipeline.errors import DataError, InputError
from tailforge import difference, releases, tags

Command = Callable[..., subprocess.CompletedProcess[str]]
MAIN = (sys.executable, "-c", "from tailforge.cli import main; main()")


def commits(folder: Path) -> list[str]:
    return tags.ask(folder, "log", "--format=%s").splitlines()


def tagged(folder: Path) -> list[str]:
    return tags.ask(folder, "tag", "--list").split()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A project after its first run, without a release."""
    return lay(tmp_path_factory.mktemp("laid") / "project", command)


@pytest.fixture
def unreleased(laid: Path, tmp_path: Path) -> Path:
    return shutil.copytree(laid, tmp_path / "project", symlinks=True)


@pytest.fixture(scope="module")
def three(laid: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """v1 no_gain, from before there was a remote; v2 gain; v3 harm. The remote is the folder ../remote and has them all."""
    folder = shutil.copytree(laid, tmp_path_factory.mktemp("three") / "project", symlinks=True)
    releases.make(folder)
    add_remote(folder, "../../remote")  # which is taken from .dvc
    command("git", "commit", "--quiet", "--all", "--message", "Remote", cwd=folder)
    assert releases.make(folder, push=True)[1] is False
    for pool, verdict, estimate in ((OTHER, "gain", 0.02), (FIRST, "harm", -0.02)):
        run(folder, command, pool, verdict, estimate)
        assert releases.make(folder, push=True)[1] is True
    return folder


@pytest.fixture
def known(three: Path, tmp_path: Path) -> Path:
    shutil.copytree(three.parent / "remote", tmp_path / "remote")
    return shutil.copytree(three, tmp_path / "project", symlinks=True)


@pytest.fixture
def clone(known: Path, command: Command) -> Path:
    """A fresh clone of git beside the remote: no results, no cache."""
    folder = known.parent / "clone"
    command("git", "clone", "--quiet", known, folder, cwd=known.parent)
    shutil.rmtree(known)
    return folder


# --- making


def test_a_release_commits_the_files_of_the_run_and_nothing_else(unreleased: Path, command: Command) -> None:
    (unreleased / "notes.md").write_text("changed\n")
    (unreleased / "params.yaml").write_text("seed: 0  # a comment\n")
    (unreleased / "data/lists").mkdir()
    (unreleased / "data/lists/groups.json").write_text("[]")
    (unreleased / "mine.txt").write_text("mine\n")
    (unreleased / "staged.txt").write_text("staged\n")
    command("git", "add", "staged.txt", cwd=unreleased)
    command("git", "config", "status.showUntrackedFiles", "no", cwd=unreleased)
    done = command(*MAIN, "release", cwd=unreleased)
    assert done.stdout.startswith("released as v1 (dataset@v1.0.0): 3 images, pool naive ") and not done.stderr
    held = tags.ask(unreleased, "show", "--name-only", "--format=").split()
    assert sorted(held) == sorted(
        ["CHANGELOG.md", "data/lists/groups.json", "dvc.lock", "gains.csv", "metrics.json", "params.yaml", "release.json"]
    )
    left = tags.ask(unreleased, "status", "--porcelain", "--untracked-files").splitlines()
    assert left == [" M notes.md", "A  staged.txt", "?? mine.txt"]
    assert tagged(unreleased) == ["dataset@v1.0.0"]


def test_a_release_says_counts_gain_and_the_hash_of_dvc(unreleased: Path) -> None:
    made, new = releases.make(unreleased)
    assert new and made.name == "v1" and made.images == {"../up": 1, "a_b*": 0, "cat": 2}
    md5 = dvc.outs(unreleased)["make"]["data/pools/naive"]
    assert made.pools == {"naive": md5} and md5 in (unreleased / "dvc.lock").read_text()
    [line] = [line for line in (unreleased / "CHANGELOG.md").read_text().splitlines() if line.startswith("- ")]
    assert line.startswith("- v1 (2") and line.endswith(
        ", no_gain): 3 images of naive (../up 1, a\\_b\\* 0, cat 2); balanced accuracy +1.0 [+0.5, +1.5] points over augment; "
        f"pool naive {md5}"
    )


def test_a_release_names_the_encoder_and_the_hash_of_its_weights(unreleased: Path) -> None:
    origin = {"trained_on": "ImageNet-1k", "licence": "apache-2.0", "weights": "ab" * 32}
    settings = {"encoder": {"name": "tf_efficientnet_lite0.in1k"}, "encoder_origin": origin}
    (unreleased / "data/settings.json").write_text(json.dumps(settings))
    made, _ = releases.make(unreleased)
    assert made.record["encoder"] == {"name": "tf_efficientnet_lite0.in1k"} | origin
    assert json.loads((unreleased / "release.json").read_text())["encoder"]["weights"] == "ab" * 32
    assert "; encoder tf_efficientnet_lite0.in1k abababababab" in (unreleased / "CHANGELOG.md").read_text()


def test_the_same_state_is_released_once(known: Path, command: Command) -> None:
    before = commits(known), tagged(known)
    said = command(*MAIN, "release", cwd=known).stdout
    assert said == "this state is v3 (dataset@v3.0.0) already: no new release\n"
    assert json.loads(command(*MAIN, "release", "--json", cwd=known).stdout)["new"] is False
    run(known, command, OTHER, "gain", 0.02)  # what v2 holds, again
    (known / "notes.md").write_text("changed\n")
    said: Any = []
    for _ in range(2):
        release, new = releases.make(known, say=said.append)
        assert (release.name, new) == ("v2", False) and said == ["committed the settings that lead to what v2 holds"]
        assert (commits(known), tagged(known)) == (["Results of dataset@v2.0.0", *before[0]], before[1])
        assert tags.ask(known, "status", "--porcelain") == " M notes.md\n"
    for file in ("dvc.lock", "metrics.json"):
        assert tags.text(known, "HEAD", file) == tags.text(known, release.tag, file)


@pytest.mark.parametrize("how", ["--soft", "--mixed"])
def test_what_a_release_ahead_of_the_branch_holds_is_not_committed_beside_it(known: Path, command: Command, how: str) -> None:
    root = tags.ask(known, "rev-list", "--max-parents=0", "HEAD").strip()
    command("git", "reset", "--quiet", how, root, cwd=known)
    before = commits(known)
    release, new = releases.make(known)
    assert (release.name, new) == ("v3", False) and commits(known) == before


def test_only_a_gain_is_promoted_as_gto_reads_it(three: Path, command: Command) -> None:
    assert tagged(three) == ["dataset#prod#1", "dataset@v1.0.0", "dataset@v2.0.0", "dataset@v3.0.0"]
    told = json.loads(command("gto", "show", "--json", cwd=three).stdout)["dataset"]
    assert told["version"] == "v3.0.0" and told["stage"]["prod"] == "v2.0.0"
    known = json.loads(command(*MAIN, "releases", "--json", cwd=three).stdout)
    assert [(one["name"], one["verdict"], one["prod"]) for one in known] == [
        ("v3", "harm", False), ("v2", "gain", True), ("v1", "no_gain", False),
    ]  # fmt: skip
    rows = command(*MAIN, "releases", cwd=three).stdout.splitlines()
    assert rows[2].split()[2:5] == ["gain", "prod", "5"] and "+0.020 [+0.015, +0.025]" in rows[2]
    lines = [line[:4] for line in (three / "CHANGELOG.md").read_text().splitlines() if line.startswith("- ")]
    assert lines == ["- v3", "- v2", "- v1"]
    assert (
        releases.find(three, "prod").name == releases.find(three, "2").name == "v2"
        and releases.find(three, "latest").name == "v3"
    )


def test_a_promotion_that_was_taken_back_counts_no_more(known: Path, command: Command) -> None:
    command("gto", "assign", "dataset", "--version", "v1.0.0", "--stage", "prod", cwd=known)
    assert releases.find(known, "prod").name == "v1"
    command("gto", "deprecate", "dataset", "v1.0.0", "prod", cwd=known)
    with pytest.raises(InputError, match="'prod' is not known"):
        releases.find(known, "prod")
    command("git", "tag", "dataset@v9.0.0", "HEAD~9", cwd=known, check=False)
    command("git", "tag", "dataset@v9.0.0", tags.ask(known, "rev-list", "--max-parents=0", "HEAD").strip(), cwd=known)
    assert [release.name for release in releases.listed(known)] == ["v3", "v2", "v1"]  # v9 is a tag of somebody else's


@pytest.mark.parametrize("case", ["changed", "no cache", "damaged", "changelog", "no git", "no results"])
def test_what_is_not_whole_is_refused_and_left(unreleased: Path, command: Command, case: str) -> None:
    remedy = {"changelog": "commit or stash", "no git": "git status"}.get(case, "run `tailforge run`")
    if case == "changed":
        (unreleased / "params.yaml").write_text("seed: 1\n")
    elif case in ("no cache", "damaged"):
        md5 = dvc.outs(unreleased)["make"]["data/runs/real"]
        file = dvc.contents(unreleased, [md5], fetch=False)[md5]["0.safetensors"]
        if case == "damaged":  # as a disk does it: DVC trusts what is still protected
            before_it = file.stat()
            file.chmod(0o644)
            file.write_bytes(b"X" + file.read_bytes()[1:])
            file.chmod(before_it.st_mode)
            os.utime(file, ns=(before_it.st_atime_ns, before_it.st_mtime_ns))
        else:
            file.unlink()
    elif case == "changelog":
        (unreleased / "CHANGELOG.md").write_text("# Mine\n")
    elif case == "no git":
        shutil.rmtree(unreleased / ".git")
        (unreleased / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    else:
        (unreleased / "dvc.yaml").write_text("stages: {}\n")
    before = None if case == "no git" else tags.ask(unreleased, "status", "--porcelain")
    done = command(*MAIN, "release", cwd=unreleased, check=False)
    assert done.returncode == 2 and remedy in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert ("does not have the hash" in done.stderr) == (case == "damaged")
    if before is not None:
        assert commits(unreleased) == ["New project"] and not tagged(unreleased)
        assert tags.ask(unreleased, "status", "--porcelain") == before
    if case in ("no cache", "damaged"):  # the remedy is one
        file.unlink(missing_ok=True)
        command("dvc", "repro", "--quiet", cwd=unreleased)
        assert releases.make(unreleased)[1]


def test_images_that_came_since_are_the_next_runs(unreleased: Path, command: Command) -> None:
    (unreleased / "params.yaml").write_text("seed: 0\ndata: {path: elsewhere}\n")
    (unreleased / "source/new").write_text("new")
    with pytest.raises(InputError, match="has changed since its last run"):
        releases.make(unreleased)
    (unreleased / "params.yaml").write_text("seed: 0\ndata: {path: source}\n")
    assert releases.make(unreleased)[1]


class Killed(BaseException):
    """Nothing of the product's may catch it."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.fault(1, "a release, killed before and after each command of git and each file")
def test_a_kill_at_any_step_is_made_up_for_by_the_next_call(
    unreleased: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    metrics = unreleased / "metrics.json"
    metrics.write_text(metrics.read_text().replace("no_gain", "gain"))
    outs = dvc.outs(unreleased)["make"]
    outs.pop("gains.csv")
    monkeypatch.setattr(releases, "_state", lambda folder: outs)
    calls = 0
    deadly = 0

    def step(function: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == deadly and not after:
                raise Killed
            value = function(*arguments, **options)
            if calls == deadly:
                raise Killed
            return value

        return stepping

    monkeypatch.setattr(tags, "ask", step(tags.ask))
    monkeypatch.setattr(work, "write", step(work.write))
    untouched = shutil.copytree(unreleased, tmp_path / "untouched", symlinks=True)
    killed = 0
    for number in range(1, 100):
        folder = shutil.copytree(untouched, tmp_path / f"killed{number}", symlinks=True)
        calls, deadly = 0, number
        try:
            releases.make(folder)
            break  # fewer steps than this
        except Killed:
            killed += 1
        deadly = 0
        release, _ = releases.make(folder)
        assert release.name == "v1" and release.prod and releases.make(folder) == (release, False)
        assert commits(folder) == ["Release dataset@v1.0.0: gain", "New project"], number
        assert tagged(folder) == ["dataset#prod#1", "dataset@v1.0.0"], number
        assert (folder / "CHANGELOG.md").read_text().count("- v1 (") == 1
        assert not tags.ask(folder, "status", "--porcelain"), number
        shutil.rmtree(folder)
    assert killed > 12


@pytest.mark.fault(4, "a release without its tag, and another run before it is made up for")
def test_a_release_that_a_kill_left_without_tag_is_tagged_before_the_next(
    unreleased: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(releases, "_finish", lambda folder: None)
        with pytest.raises(InputError, match="not known"):
            releases.make(unreleased)
    first = tags.ask(unreleased, "rev-parse", "HEAD").strip()
    command("git", "commit", "--quiet", "--allow-empty", "--message", "mine", cwd=unreleased)
    run(unreleased, command, OTHER, "gain")
    made, _ = releases.make(unreleased)
    assert made.name == "v2" and releases.find(unreleased, "v1").commit == first


@pytest.mark.fault(13, "four releases at once make one")
def test_two_at_once_make_one(unreleased: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outs = dvc.outs(unreleased)["make"]
    monkeypatch.setattr(releases, "_state", lambda folder: outs)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: releases.make(unreleased), range(4)))
    assert sorted(new for _, new in made) == [False, False, False, True] and len({release.commit for release, _ in made}) == 1
    assert tagged(unreleased) == ["dataset@v1.0.0"]


@pytest.mark.parametrize(
    "text", ["", "# Mine\n", "## Dataset releases\n", "See ## Dataset releases.\n\n## Dataset releases\n\n## Else\n", "- one\n"]
)
def test_a_line_stands_below_the_heading(text: str) -> None:
    added = releases._with_line(releases._with_line(text, "- v1 (x"), "- v2 (y")
    assert "\n## Dataset releases\n\n- v2 (y\n- v1 (x\n" in f"\n{added}" and added.endswith("\n")
    assert [own for own in added.splitlines() if own and own in text.splitlines()] == [own for own in text.splitlines() if own]


def test_a_record_of_something_else_is_refused(unreleased: Path) -> None:
    (unreleased / "release.json").write_text('{"version": "1.2"}')
    tags.ask(unreleased, "add", "release.json")
    tags.ask(unreleased, "commit", "--quiet", "--message", "mine")
    with pytest.raises(DataError, match="no record of a release"):
        releases.make(unreleased)


def test_a_changelog_of_the_user_keeps_its_text(unreleased: Path, command: Command) -> None:
    own = "# Mine\n\nWords.\n\n## Dataset releases\n\n- v0: by hand\n\n## Else\n"
    (unreleased / "CHANGELOG.md").write_text(own)
    command("git", "add", "CHANGELOG.md", cwd=unreleased)
    command("git", "commit", "--quiet", "--message", "mine", "--", "CHANGELOG.md", cwd=unreleased)
    releases.make(unreleased)
    text = (unreleased / "CHANGELOG.md").read_text()
    assert "".join(line for line in text.splitlines(keepends=True) if not line.startswith("- v1 (")) == own
    assert text.index("## Dataset releases") < text.index("- v1 (") < text.index("- v0: by hand")


# --- comparing


def test_the_difference_of_two_releases(three: Path, command: Command) -> None:
    before = tags.ask(three, "status", "--porcelain"), tree(three / "data")
    found = json.loads(command(*MAIN, "diff", "v1", "v2", "--json", cwd=three).stdout)
    none = dict.fromkeys(["from", "to", "kept", "out", "in", "renamed", "redrawn"], 0)
    assert found["classes"] == {
        "../up": none | {"from": 1, "to": 1, "out": 1, "in": 1, "redrawn": 1},
        "a_b*": none,
        "cat": none | {"from": 2, "to": 3, "kept": 2, "in": 1, "renamed": 1},
        "dog": none | {"to": 1, "in": 1},
    }
    gain = found["metrics"]["synthetic"]["balanced_accuracy"]
    assert gain["from"]["estimate"] == 0.01 and gain["to"] == {"estimate": 0.02, "low": 0.015, "high": 0.025}
    assert (found["from"]["tag"], found["to"]["prod"]) == ("dataset@v1.0.0", True)
    text = [line.split() for line in command(*MAIN, "diff", "v1", "v2", cwd=three).stdout.splitlines()]
    assert text[0] == ["class", "v1", "v2", "kept", "out", "in", "renamed", "redrawn"]
    assert ["cat", "2", "3", "2", "0", "+1", "1", "0"] in text and ["all", "3", "5", "2", "-1", "+3", "1", "1"] in text
    assert ["synthetic", "0.010", "[0.005,", "0.015]", "0.020", "[0.015,", "0.025]"] in text
    assert text[-1] == ["v2:", "gain,", "naive", "over", "augment", "by", "+0.020", "[+0.015,", "+0.025]"]
    assert (tags.ask(three, "status", "--porcelain"), tree(three / "data")) == before


SIDE = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("1234"))


@given(SIDE, SIDE)
def test_images_in_and_out_add_up(before: dict[str, str], after: dict[str, str]) -> None:
    there, back = difference.compared(before, after), difference.compared(after, before)
    assert there["from"] - there["out"] + there["in"] == there["to"] and min(there.values()) >= 0
    assert (there["in"], there["out"], there["kept"]) == (back["out"], back["in"], back["kept"])
    assert there["renamed"] <= there["kept"] <= min(len(before), len(after))
    same = difference.compared(before, before)
    assert same["kept"] == len(before) and not any(same[key] for key in ("in", "out", "renamed", "redrawn"))


# --- taking


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_a_fresh_clone_pulls_the_bytes_of_every_release(clone: Path, tmp_path: Path, command: Command, version: str) -> None:
    run(clone, command, OTHER if version == "v2" else FIRST, "harm")  # what the release held, laid elsewhere
    export.export(clone / "source/data/pools/naive", clone / "source/data/checked/naive", tmp_path / "expected")
    for name in ("data", "source", ".dvc/cache"):
        shutil.rmtree(clone / name)
    tags.ask(clone, "checkout", "--quiet", "--", ".")
    done = command(*MAIN, "pull", version, cwd=clone)
    assert f"images in dataset-{version}" in done.stdout and not done.stderr
    assert tree(clone / f"dataset-{version}") == tree(tmp_path / "expected") != {}
    assert not (clone / "data").exists() and not tags.ask(clone, "status", "--porcelain")
    shutil.rmtree(clone.parent / "remote")  # the cache has it now
    assert json.loads(command(*MAIN, "pull", version, "--json", "--out", tmp_path / "again", cwd=clone).stdout)["images"]
    assert tree(tmp_path / "again") == tree(tmp_path / "expected")


@pytest.mark.fault(20, "names of classes in `tailforge pull`")
def test_classes_are_data_and_no_paths(three: Path, tmp_path: Path) -> None:
    _, out, counts = releases.pull(three, "v1", tmp_path / "out/one", classes=["../up"])
    assert counts == {"_._up": 1} and list(tree(out)) == ["_._up/naive-3.png"]
    assert [file.name for file in tmp_path.rglob("*.png")] == ["naive-3.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["v4"], "release 'v4' is not known; expected one of v3, v2, v1"),
        (["v1", "--class", "dog"], "--class dog; expected one of ../up, a_b*, cat"),
        (["v1", "--generator", "vae"], "--generator vae; expected one of naive"),
        (["v1", "--out", "."], "is not empty"),
    ],
)
def test_a_pull_that_cannot_be_is_one_line(three: Path, command: Command, arguments: list[str], said: str) -> None:
    done = command(*MAIN, "pull", *arguments, cwd=three, check=False)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(three.glob("dataset-*"))


@pytest.mark.fault(22, "a pull whose data are in no cache and no remote")
def test_data_that_are_nowhere_are_said_to_be(clone: Path, tmp_path: Path) -> None:
    shutil.rmtree(clone.parent / "remote/files")
    with pytest.raises(DataError, match=r"^release v1: \w+\.dir.* is neither in the cache .* nor in the remote"):
        releases.pull(clone, "v1", tmp_path / "out")
    tags.ask(clone, "config", "user.name", "test")
    (clone / ".dvc/config").write_text("")
    with pytest.raises(DataError, match="no remote"):
        releases.pull(clone, "v1", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.fault(12, "a damaged file behind a release: named, never written")
def test_a_damaged_file_is_named_and_never_written(known: Path, tmp_path: Path) -> None:
    md5 = releases.find(known, "v2").pools["naive"]
    shard = dvc.contents(known, [md5])[md5]["part-00000.parquet"]
    whole = shard.read_bytes()
    shard.chmod(0o644)
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=r"does not have the hash .*remove it") as caught:
        releases.pull(known, "v2", tmp_path / "out")
    assert str(shard) in str(caught.value) and not (tmp_path / "out").exists()
    shard.unlink()  # the remedy: it comes from the remote
    releases.pull(known, "v2", tmp_path / "out")
    assert shard.read_bytes() == whole


@pytest.mark.fault(22, "the remote gone when a release is pushed: one line, no release; once it is back the release is whole")
def test_a_remote_that_is_gone_leaves_no_release(unreleased: Path, tmp_path: Path, command: Command) -> None:
    remote = tmp_path / "remote"
    add_remote(unreleased, remote)
    command("git", "commit", "--quiet", "--all", "--message", "Remote", cwd=unreleased)
    remote.write_text("gone")
    done = command(*MAIN, "release", "--push", cwd=unreleased, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    assert not tagged(unreleased) and len(commits(unreleased)) == 2
    remote.unlink()
    release, new = releases.make(unreleased, push=True)
    assert new
    shutil.rmtree(unreleased / ".dvc/cache")  # its data are in the remote, all of them
    assert sum(releases.pull(unreleased, release.name, tmp_path / "out")[2].values()) == sum(release.images.values())
