"""A project for tests of schedules: stages of no time, one of them for a device; `source/` is its folder of images.

It has modules of its own that nothing of ours may import (tests/helpers/shadowing.py).

The folder `control` beside the project (or its clone) decides how a fit behaves: with the file `fail`, or `wait` until it is
gone, or with the text of `add` in its result. It logs there who was fitted: family, process, device. The file `late` comes to
the images when a scheduled run has read them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import yaml

from flows import git
from helpers.released import FIRST, begin, fill
from helpers.shadowing import shadow
from helpers.toy import ROOT, add_remote

Command = Callable[..., CompletedProcess[str]]

DVC_YAML = """\
stages:
  prepare:
    cmd: >-
      mkdir -p data && find -L source -type f | sort | xargs sha1sum > data/prepared.txt &&
      if [ -e ../../../../control/late ]; then mv ../../../../control/late source/; fi
    deps: ["${data.path}"]
    params: [seed]
    outs: [data/prepared.txt]
  fit:
    matrix:
      family: ${generators}
    cmd: python stage.py ${item.family}
    deps: [stage.py, data/prepared.txt]
    params: ["${item.family}"]
    outs: ["data/models/${item.family}"]
  evaluate:
    cmd: rm -rf data/pools data/checked data/runs && cp -r source/data source/metrics.json source/gains.csv .
    deps: [data/models]
    outs: [data/pools/naive, data/checked/naive, data/runs/naive, data/runs/real]
    metrics:
      - metrics.json: {cache: false}
      - gains.csv: {cache: false}
"""

STAGE = """\
import os, sys, time
from pathlib import Path

family = sys.argv[1]
control = next(folder / "control" for folder in Path.cwd().parents if (folder / "control").is_dir())
print("fitting", family, "on", os.environ.get("TAILFORGE_DEVICE"), flush=True)
with open(control / "log", "a") as log:
    log.write(f"{family} {os.getpid()} {os.environ.get('TAILFORGE_DEVICE')}\\n")
if (control / "fail").exists():
    sys.exit("error: no luck today; expected some; try tomorrow")
while (control / "wait").exists():
    time.sleep(0.05)
folder = Path("data/models") / family
folder.mkdir(parents=True)
added = (control / "add").read_text() if (control / "add").exists() else ""
(folder / "model").write_text(Path("data/prepared.txt").read_text() + added)
"""


def lay(folder: Path, command: Command, *, families: str = "[naive, gan]") -> Path:
    """The project, committed, never run."""
    folder.mkdir(parents=True)
    (folder.parent / "control").mkdir()
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "stage.py").write_text(STAGE)
    (folder / "params.yaml").write_text(
        f"seed: 0\ndata: {{path: source}}\ngenerators: {families}\nnaive: {{a: 1}}\ngan: {{a: 1}}\n"
    )
    (folder / ".gitignore").write_text(".tailforge\n/source\n/data/\n")
    (folder / "notes.md").write_text("notes\n")
    shadow(folder)
    begin(folder, command)
    fill(folder, FIRST, "no_gain")
    return folder


def clone(project: Path, command: Command, *places: Path) -> None:
    """Clones of the project on as many other hosts, which share nothing with it but a bare git remote and a DVC remote."""
    root = project.parent
    command("git", "init", "--quiet", "--bare", root / "git", cwd=root)
    add_remote(project, root / "store")
    command("git", "remote", "add", "origin", root / "git", cwd=project)
    command("git", "commit", "--quiet", "--all", "--message", "remote", cwd=project)
    command("git", "push", "--quiet", "origin", "main", cwd=project)
    for place in places:
        command("git", "clone", "--quiet", "--branch", "main", root / "git", place, cwd=root)
        (place.parent / "control").mkdir()


def heads(folder: Path, remote: str) -> list[str]:
    """The branches of a remote."""
    return git.ask(folder, "ls-remote", "--heads", remote).split()[1::2]


def by_hand(project: Path, remote: str = "", but: str = "") -> Path:
    """The project with a prefect.yaml of its own: no schedule, but that of the deployment `but`, can start a run between those
    of a test, which meet other hosts through git's remote `remote`."""
    described = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    for deployment in described["deployments"]:
        if deployment["name"] != but:
            deployment.pop("schedules", None)
    described["deployments"][0]["parameters"]["remote"] = remote
    (project / "prefect.yaml").write_text(yaml.safe_dump(described))
    git.ask(project, "add", "prefect.yaml")
    git.ask(project, "commit", "--quiet", "--message", "schedules", "--", "prefect.yaml")
    return project
