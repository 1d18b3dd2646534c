"""Faults around a project: locks of the dead, two at once, a damaged cache, an older version, mounts, clocks, secrets."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from flows import dvc
from flows.dvc import commands, locks
from helpers.toy import ROOT, WAIT, setting, until
from pipeline import config
from pipeline.errors import ConfigError, InputError
from pipeline.generators import registry
from pipeline.registry import GENERATORS
from tailforge import commented, mounts, project, running, serving, settings, survey, upgrading

Command = Callable[..., subprocess.CompletedProcess[str]]
Points = Callable[[int], None]
MAIN = (sys.executable, "-c", "from tailforge.cli import main; main()")
PARAMS = (ROOT / "params.yaml").read_text(encoding="utf-8")


# --- locks


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A living process that is no DVC."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.mark.fault(8, "DVC's list of processes empty, torn, of the dead, or with an id that another program has now")
@pytest.mark.parametrize("text", ["", '{"write": {"first.t', "[]", '{"write": {"PATH": {"pid": PID, "cmd": "repro"}}}'])
def test_the_locks_of_dead_processes_are_taken_over(toy: Path, sleeper: int, text: str, points: Points) -> None:
    file = toy / ".dvc/tmp/rwlock"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text.replace("PID", str(sleeper)).replace("PATH", str(toy / "first.txt")))
    said: list[str] = []
    assert list(dvc.reproduce(toy, ["first"], force=["first"], log=said.append)) == ["ran"]
    assert "DVC's list of running processes" in said[0]
    points(1)


@pytest.mark.fault(8, "DVC's list of processes torn, as one killed in its write leaves it: what asks DVC first removes it too")
def test_a_torn_list_of_processes_stops_no_question(toy: Path, capsys: pytest.CaptureFixture[str], points: Points) -> None:
    for text in ("", '{"write": {"first.t'):
        (toy / ".dvc/tmp").mkdir(exist_ok=True)
        (toy / ".dvc/tmp/rwlock").write_text(text)
        assert dvc.changed(toy) == []
        assert capsys.readouterr().err.count("DVC's list of running processes") == 1
        points(1)


def test_a_living_dvc_keeps_its_lock(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {"write": {"/a": {"pid": os.getpid(), "cmd": "repro"}}, "read": {"/b": [{"pid": 2**22 + 1, "cmd": "x"}]}}
    (toy / ".dvc/tmp").mkdir(exist_ok=True)
    (toy / ".dvc/tmp/rwlock").write_text(json.dumps(listed))
    monkeypatch.setattr(locks, "is_dvc", lambda pid: pid == os.getpid())
    locks.forget_dead_processes(toy, print)
    assert json.loads((toy / ".dvc/tmp/rwlock").read_text()) == {"write": listed["write"], "read": {}}


KILLED = """\
import os, signal, sys
from dvc.utils.serialize import _yaml
from dvc.cli import main
from flows.dvc.programs import whole_lock
where, dump, replace = sys.argv.pop(1), _yaml._dump, os.replace
def die_in_write(data, file, **options):
    if where == "write" and "stages" in data:
        file.write("schema: '2.0'\\nstages:\\n  first:\\n")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    dump(data, file, **options)
def die_before_replace(old, new):
    if where == "replace" and str(new).endswith("dvc.lock"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(old, new)
_yaml._dump, os.replace = die_in_write, die_before_replace
whole_lock.replace()
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.fault(1, "DVC killed while it notes a finished stage: dvc.lock is whole, and the stage is taken from the cache")
def test_dvc_killed_as_it_writes_leaves_its_old_lock(toy: Path, command: Command, points: Points) -> None:
    setting(toy, "seed: 0", "seed: 5")
    whole = (toy / "dvc.lock").read_bytes()
    for where in ("write", "replace"):
        options = ("repro", "--single-item", "--force", "first")
        done = command(sys.executable, "-c", KILLED, where, *options, cwd=toy, check=False, PYTHONPATH=str(ROOT))
        assert done.returncode == -signal.SIGKILL and "hello from first" in done.stdout, done.stderr
        assert (toy / "dvc.lock").read_bytes() == whole
    assert list(dvc.reproduce(toy, ["first"], log=[].append)) == ["cached"]
    assert "seed: 5" in (toy / "dvc.lock").read_text() and not dvc.changed(toy, "first")
    assert not [file.name for file in toy.iterdir() if file.name.endswith(".tmp")]
    points(2)


HOLD = """\
import subprocess, sys
from pathlib import Path
from flows import children
from tailforge import project
stubborn = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\\n" + (
    "from pathlib import Path\\nwhile not Path('go').exists(): time.sleep(0.02)"
)
with project.alone(Path(), "run") as lock:
    command = [sys.executable, "-c", stubborn]
    with children.supervised(command, cwd=Path(), output=sys.stdout, grace=600, keep=[lock]) as process:
        process.wait()
"""


def is_free(lock: Path) -> bool:
    with open(lock, "a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.fault(13, "a run killed by SIGKILL: its lock is held until its stage has left, then it is free")
def test_the_lock_of_a_killed_run_is_held_by_what_still_runs(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    lock = tmp_path / ".tailforge/run.lock"
    assert holder.stdout is not None and holder.stdout.readline() == b"up\n"
    try:
        holder.kill()
        holder.wait(WAIT)
        assert not is_free(lock)
    finally:
        (tmp_path / "go").touch()
        holder.stdout.close()
    until(lambda: is_free(lock), "the end of what the killed run had started")


@pytest.mark.fault(13, "a second `tailforge run` says that another one works there, and waits for its end")
def test_a_second_run_waits_and_says_so(toy: Path) -> None:
    with project.alone(toy, "run"):
        second = subprocess.Popen(
            [*MAIN, "run", "--no-release"], cwd=toy, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert second.stderr is not None
        assert "another `tailforge run` works in" in second.stderr.readline()
        setting(toy, "seed: 0", "seed: 00")  # what it reads, it reads after the first has ended
        setting(toy, "seed: 00", "seed: 0")
        assert second.poll() is None
    out, _ = second.communicate(timeout=WAIT)
    assert second.returncode == 0 and out.startswith("Everything is up to date")


# --- the cache


def flip(file: Path) -> None:
    """A flipped bit, as a disk does it: time and protection stay."""
    stat = file.stat()
    file.chmod(0o644)
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    file.chmod(stat.st_mode)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.fault(
    12, "a bit flipped in a file of the cache and in a list of a folder: named, removed, made again by the next run"
)
def test_a_damaged_cache_is_named_and_made_again(toy: Path, command: Command, points: Points) -> None:
    hashed, damaged = dvc.verify(toy)
    assert hashed >= 5 and not damaged
    known, store = dvc.outs(toy), dvc.cache(toy) / "files/md5"
    model = dvc.contents(toy, [known["second@naive"]["data/runs/naive"]], fetch=False).popitem()[1]["model"]
    listed = known["second@external"]["data/runs/external"]
    flip(model)
    assert not dvc.changed(toy)  # DVC trusts it
    flip(store / listed[:2] / listed[2:])
    done = command(*MAIN, "doctor", "--verify", cwd=toy, check=False)
    assert done.returncode == 1 and "2 damaged files were removed" in done.stderr and done.stderr.count("\n") == 1
    assert "data/runs/naive/model: " in done.stdout and "data/runs/external: " in done.stdout
    assert list(dvc.reproduce(toy, dvc.stages(toy), log=print)) and dvc.outs(toy) == known
    assert dvc.verify(toy) == (hashed, [])
    points(2)


@pytest.mark.fault(
    17, "dvc.lock names the project itself, git's folder or one outside as a result to be swept: nothing is removed"
)
@pytest.mark.parametrize("path", ["..", ".", ".git", ".dvc/config", "/etc/hostname", "data/../..", "outside/it"])
def test_nothing_but_results_is_swept(path: str, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    (folder / ".git").mkdir(parents=True)
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").touch()
    (tmp_path / "it").touch()
    (folder / "outside").symlink_to(tmp_path)
    (folder / "dvc.lock").write_text(yaml.safe_dump({"stages": {"gone": {"outs": [{"path": path, "md5": "0" * 32}]}}}))
    assert dvc.sweep(folder, []) == [] and (tmp_path / "it").exists() and (folder / ".git").exists()


# --- an older version


def older(text: str) -> str:
    """The shipped settings as the last version had them: keys that have another name now, sections of all families."""
    text = re.sub(r"(?m)^  external: .*\n", "", text).replace("  synthetic_fractions: ", "  doses: ")
    blocks = commented.blocks(text.splitlines(), "")
    classifier = commented.blocks(blocks["classifier"], "  ")
    for gone in (blocks["drift"], classifier["tau_strong"], classifier["drw_share"]):
        text = text.replace("\n".join(gone) + "\n", "")
    for name in GENERATORS.ours:
        if name not in ("flow_matching", "external"):
            text += f"\n{settings.section(name, registry.settings(config.Params(), name), None)}\n"
    return text + "\nexternal:\n  path: data/external    # class folders\n"


@pytest.mark.fault(
    14, "settings of an older version: keys are renamed, sections that nobody uses go, values and comments are kept"
)
def test_settings_of_an_older_version_are_translated(points: Points) -> None:
    old = older(PARAMS).replace("seed: 0 ", "seed: 7 ").replace("path: data/external ", "path: renders ")
    old = old.replace("  latent_dim: 16 ", "  latent_dim: 24 ") + "# the end\n"
    with pytest.raises(ConfigError, match=r"arms\.doses is called arms\.synthetic_fractions.*run `tailforge upgrade`"):
        config.resolved(config.values(old))
    text, done = upgrading.params_text(old)
    kept = registry.settings(config.Params(), "vae").model_dump() | {"latent_dim": 24}  # not as it was laid
    values = yaml.safe_load(PARAMS)
    assert yaml.safe_load(text) == values | {"seed": 7, "data": values["data"] | {"external": "renders"}, "vae": kept}
    assert settings.checked(text).data.external == "renders"
    laid = [name for name in GENERATORS.ours if name not in ("flow_matching", "vae", "external")]
    assert done == [
        "params.yaml: renamed arms.doses to arms.synthetic_fractions, external.path to data.external",
        f"params.yaml: dropped, as they were laid: {', '.join(laid)}",
        "params.yaml: added drift, classifier.tau_strong, classifier.drw_share",
    ]
    lost = set(old.splitlines()) - set(text.splitlines())
    assert not [line for line in lost if "seed" in line or "latent_dim" in line or line == "# the end"]
    assert all(line in text for line in PARAMS.splitlines() if not re.search("seed: 0|external: |synthetic_fractions: ", line))
    assert upgrading.params_text(text) == (text, [])
    points(len(done))


@pytest.mark.parametrize("name", [name for name in GENERATORS.ours if survey.fitting(name, 32, 3)])
def test_sections_that_init_laid_for_larger_images_go_too(name: str) -> None:
    params = config.Params(data=config.Data(image_size=32, channels=3))
    text = settings.rendered(
        params, {"flow_matching": settings.start("flow_matching", params), name: settings.start(name, params)}
    )
    assert upgrading.params_text(text)[0] == settings.rendered(
        params, {"flow_matching": settings.start("flow_matching", params)}
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arms: {doses: [0.5], seeds: 3} # mine\n", "[0.5]"),
        ("arms:\n  seeds: 3\n  # a doses: comment\n  doses: [0.5]\n", "[0.5]"),
        ("arms:\n  doses: [0.5]\n  synthetic_fractions: [0.5]\n", "has both arms.doses and arms.synthetic_fractions"),
        ("? arms\n: doses: [0.5]\n", "arms.doses is called arms.synthetic_fractions"),
    ],
)
def test_a_key_is_renamed_or_left_to_the_user(text: str, said: str) -> None:
    try:
        made, _ = upgrading._renamed(text)
    except ConfigError as error:
        assert said in str(error) and "\n" not in str(error)
    else:
        assert str(yaml.safe_load(made)["arms"]["synthetic_fractions"]) == said
        assert "# mine" in made or "# a doses: comment" in made


def test_a_section_on_one_line_is_left_to_the_user() -> None:
    with pytest.raises(ConfigError, match=r"lacks split\.val.*by hand"):
        commented.completed("split: {test: 0.2}\n", "split:\n  test: 0.2\n  val: 0.1\n")


@pytest.mark.fault(
    14, "a project laid by an older version: `run` says in one line what to do, `upgrade` does it, git has the old one"
)
def test_a_project_of_an_older_version_is_upgraded(tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    stages = yaml.safe_load(project.stages())
    del stages["stages"]["settings"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(stages))
    (folder / "params.yaml").write_text(older(PARAMS))
    old = {"verdict": "no_gain", "best_real_arm": "augment", "arms": {"again": {}, "real": {}}}
    (folder / "metrics.json").write_text(json.dumps(old))
    (folder / ".gitignore").write_text(".tailforge\n")
    command("git", "init", "--quiet", cwd=folder)
    with pytest.raises(InputError, match="not committed"):
        project.upgrade(folder)
    command("git", "add", "--all", cwd=folder)
    command("git", "commit", "--quiet", "--message", "old", cwd=folder)
    done = command(*MAIN, "run", cwd=folder, check=False)
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "tailforge upgrade" in done.stderr
        and "settings" in done.stderr
    )
    said = command(*MAIN, "upgrade", cwd=folder).stdout
    assert "params.yaml: renamed arms.doses to" in said and "dvc.yaml: laid anew" in said
    assert "metrics.json: renamed best_real_arm to baseline" in said
    new = {"verdict": "no_gain", "baseline": "augment", "arms": {"aa_control": {}, "real": {}}}
    assert json.loads((folder / "metrics.json").read_text()) == new
    project.require_current(folder)
    assert config.read(folder / "params.yaml") == config.read(ROOT / "params.yaml")
    command("git", "commit", "--quiet", "--all", "--message", "new", cwd=folder)
    assert "up to date" in command(*MAIN, "upgrade", cwd=folder).stdout


def test_stages_of_the_users_own_are_let_be(toy: Path, tmp_path: Path) -> None:
    project.require_current(toy)
    project.require_current(ROOT)
    stages = yaml.safe_load(project.stages())
    stages["stages"]["mine"] = {"cmd": "true"}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(stages))
    project.require_current(tmp_path)


# --- mounts, clock, secrets


@pytest.mark.fault(9, "Prefect's database on NFS, CIFS or SSHFS by the kernel's table: refused in one line before a run")
@pytest.mark.parametrize(("kind", "refused"), [("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("ext4", False)])
def test_a_network_mount_is_refused_for_databases(
    kind: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, home = tmp_path / "mountinfo", tmp_path / "a mount" / "prefect"
    place = str(tmp_path / "a mount").replace(" ", r"\040")
    table.write_text(f"22 1 0:1 / / rw - ext4 /dev/a rw\n36 22 0:3 / {place} rw,nosuid shared:1 - {kind} server:/b rw\n")
    monkeypatch.setenv("PREFECT_HOME", str(home))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert mounts.network(home, table) == (kind if refused else None) and mounts.network(tmp_path, table) is None
    if refused:
        with pytest.raises(InputError, match=f"network mount .{kind}.*set PREFECT_HOME"):
            mounts.refuse_record(table)
        monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    mounts.refuse_record(table)


@pytest.mark.fault(9, "a run, and a server that a schedule starts, ask for the mount before they begin")
def test_runs_and_servers_are_refused_there(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "network", lambda *_: "nfs4")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(InputError, match=r"network mount .nfs4.*or PREFECT_API_URL"):
        running.run(toy, [], ["first"], as_json=False, release=False)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")  # of another server
    with pytest.raises(InputError, match=r"network mount .nfs4.*or PREFECT_SERVER_DATABASE"):
        serving.serve(toy, "127.0.0.1", 0, devices=True)


@pytest.mark.fault(
    21, "files changed under a clock that was set back, to the same size: the change is seen and the stage runs again"
)
def test_a_clock_set_back_hides_no_change(toy: Path) -> None:
    file = toy / "first.txt"
    text = file.read_text()
    file.write_text(text[:-1] + "!")
    os.utime(file, (1, 1))  # 1970
    assert dvc.changed(toy)
    assert list(dvc.reproduce(toy, ["first"], log=print)) != ["skipped"] and file.read_text() == text


SECRET = "planted-4f1c9d"


@pytest.mark.fault(
    23, "secrets in the environment, in DVC's local configuration and in a remote's address: in no output, log or file"
)
def test_secrets_reach_no_log_and_no_result(toy: Path, command: Command, tmp_path: Path) -> None:
    local = toy / ".dvc/config.local"
    local.write_text(
        f"['remote \"s\"']\n    url = http://user:{SECRET}@127.0.0.1:9/x\n    password = {SECRET}\n[core]\n    remote = s\n"
    )
    secrets = {name: SECRET for name in ("AWS_SECRET_ACCESS_KEY", "PREFECT_API_KEY", "HF_TOKEN")}
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in secrets.items():
            patch.setenv(name, value)
        assert list(dvc.reproduce(toy, dvc.stages(toy), force=["last"], log=lines.append))[-1] == "ran"
        with pytest.raises(dvc.DvcError) as refused:
            dvc.push(toy)
    done = command(*MAIN, "doctor", cwd=toy, check=False, **secrets)
    said = "\n".join([*lines, str(refused.value), done.stdout, done.stderr])
    assert SECRET not in said
    found = [file for file in toy.rglob("*") if file.is_file() and file != local and SECRET.encode() in file.read_bytes()]
    assert not found


def test_a_password_in_a_remotes_address_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "refuse.py").write_text(f"import sys; sys.exit('cannot reach ssh://me:{SECRET}@host/x')")
    monkeypatch.setattr(commands, "PROGRAMS", tmp_path)
    with pytest.raises(dvc.DvcError, match=r"cannot reach ssh://me:\*\*\*@host/x") as caught:
        commands.run(tmp_path, "refuse")
    assert SECRET not in str(caught.value)


@pytest.mark.fault(8, "our own lock: its owner killed by SIGKILL, whatever stands in the file, the next one takes it")
def test_our_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    code = "from pathlib import Path; from tailforge import project\n"
    code += "with project.alone(Path(), 'run'): print('has', flush=True); input()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    owner = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with owner:
        assert owner.stdout is not None and owner.stdout.readline() == b"has\n"
        assert not is_free(tmp_path / ".tailforge/run.lock")
        owner.send_signal(signal.SIGKILL)
        owner.wait(WAIT)
        (tmp_path / ".tailforge/run.lock").write_text("\0torn")
        with project.alone(tmp_path, "run"):
            assert not is_free(tmp_path / ".tailforge/run.lock")


@pytest.mark.parametrize("text", ["", "schema: '2.0'\nstages:\n  first:\n    deps:\n", "stages: ["])
def test_a_torn_dvc_lock_is_one_line_with_its_remedy(toy: Path, text: str) -> None:
    (toy / "dvc.lock").write_text(text)
    with pytest.raises(dvc.DvcError, match=r"`git checkout dvc\.lock` brings it back") as caught:
        dvc.changed(toy)
    assert "\n" not in str(caught.value)


def test_a_torn_dvc_yaml_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: [")
    with pytest.raises(ConfigError, match=re.escape("dvc.yaml")) as caught:
        project.require_current(tmp_path)
    assert "\n" not in str(caught.value)
