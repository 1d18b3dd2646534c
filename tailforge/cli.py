"""`tailforge`: create a project, run it, look at regions, compare generators, classify with one, export images, release them.

Exit status: 0 success, 1 failure, 2 bad input, 130 interrupted (143 by SIGTERM). Heavy imports are in the functions that need
them, so that `tailforge --help` is quick.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import TailforgeError

app = typer.Typer(
    help="Do synthetic images help my classifier on rare classes, by how much, and how sure is that?",
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Folder of the new project.")],
    data: Annotated[Path, typer.Option(help="Class folders, a table, IDX files, or photographs with annotated objects.")],
) -> None:
    """Create a project for the images in a folder, with settings chosen from them."""
    from pipeline import config
    from tailforge import estimate, project, survey

    found = project.init(path, data)
    for key, value in found.values.items():
        if value != "":
            print(f"{key}: {value}")
    print(survey.why(found.values))
    print(estimate.told(config.read(path / "params.yaml"), found.images, found.classes))
    print(f"Check {path / 'params.yaml'}, then: cd {path} && tailforge run")


@app.command()
def run(
    set_: Annotated[
        list[str] | None, typer.Option("-S", "--set", metavar="KEY=VALUE", help="Change params.yaml first.")
    ] = None,
    force: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run this stage even if nothing changed.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print only metrics.json on standard output.")] = False,
    release: Annotated[bool, typer.Option(help="Release the results (see `tailforge release`).")] = True,
) -> None:
    """Bring the project in this folder up to date and print the verdict."""
    from tailforge import running

    running.run(Path(), set_ or (), force or (), as_json=json, release=release)


@app.command()
def settings(
    all_: Annotated[bool, typer.Option("--all", help="The sections of all families, not only of those in use.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else, on standard output.")] = False,
) -> None:
    """Print all settings of the project in this folder: value, default, where the value is from, and what it means."""
    from tailforge import project
    from tailforge import settings as texts

    found = texts.listed((project.opened(Path()) / "params.yaml").read_text(encoding="utf-8"), everything=all_)
    _print_json([setting.json() for setting in found]) if json else print(texts.table(found))


@app.command()
def regions(
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("regions.png"),
    class_: Annotated[
        list[str] | None, typer.Option("--class", metavar="NAME", help="Only this class; may be repeated.")
    ] = None,
    per_class: Annotated[int, typer.Option(min=1, max=64, help="Images of each class.")] = 8,
) -> None:
    """Draw train images with what is known of where their objects lie."""
    from tailforge import regions as sheet

    sheet.run(Path(), out, class_ or (), per_class)


@app.command()
def bakeoff(
    families: Annotated[list[str] | None, typer.Argument(help="Families of generators; default: all that suit.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("-S", "--set", metavar="KEY=VALUE", help="Use instead of the value in params.yaml.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for bakeoff.md, bakeoff.csv and the pictures.")] = Path(),
    name: Annotated[str | None, typer.Option(help="Name of the data set in the table.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print only the rows, as JSON, on standard output.")] = False,
) -> None:
    """Compare all families of generators on this project's data."""
    from tailforge import bakeoff as comparison

    comparison.run(Path(), families or (), set_ or (), out, name, as_json=json)


@app.command()
def classify(
    with_: Annotated[str, typer.Option("--with", metavar="GENERATOR", help="A generator of the project with a likelihood.")],
    images: Annotated[list[Path] | None, typer.Argument(help="Image files or folders; default: validation rows.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")] = False,
) -> None:
    """Classify by Bayes' rule with a generative model, next to the discriminative classifier."""
    from tailforge import classifying

    classifying.run(Path(), with_, images or (), as_json=json)


@app.command()
def export(
    pool: Annotated[str, typer.Argument(help="A generator of the project, or a folder data/pools/GENERATOR.")],
    out: Annotated[Path, typer.Option(help="New folder, with a folder of PNG files for each class.")],
    all_: Annotated[bool, typer.Option("--all", help="Include rejected images.")] = False,
) -> None:
    """Write the accepted synthetic images as a plain ImageFolder."""
    from pipeline.datasets.export import export as write

    folder = Path("data/pools", pool) if pool.isidentifier() else Path(pool)
    counts = write(folder, Path(*folder.parts[:-2], "checked", folder.name), out, everything=all_)
    _print_counts(counts, out)


JSON = Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")]


@app.command()
def release(
    push: Annotated[bool, typer.Option("--push", help="Send the data to DVC's default remote first.")] = False,
    json: JSON = False,
) -> None:
    """Release the results as a version of the dataset: a git commit and a tag, promoted if the verdict is `gain`."""
    from tailforge import releases

    made, new = releases.make(Path(), push=push, say=lambda line: print(line, file=sys.stderr if json else sys.stdout))
    _print_json(made.json() | {"new": new}) if json else print(releases.told(made, new))


@app.command()
def releases(json: JSON = False) -> None:
    """List the releases of the dataset, newest first."""
    from tailforge import project
    from tailforge import releases as known

    found = known.listed(project.opened(Path()))
    _print_json([release.json() for release in found]) if json else print(known.table(found))


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="FROM", help="A release: v2, latest or prod.")],
    second: Annotated[str, typer.Argument(metavar="TO", help="Another release.")],
    json: JSON = False,
) -> None:
    """Compare two releases: images in and out of each class, metrics side by side."""
    from tailforge import difference

    found = difference.difference(Path(), first, second)
    _print_json(found) if json else print(difference.text(found))


@app.command()
def pull(
    version: Annotated[str, typer.Argument(help="A release: v3, latest or prod.")],
    class_: Annotated[
        list[str] | None, typer.Option("--class", metavar="CLASS", help="Only this class; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the PNG files; by default dataset-v3.")] = None,
    generator: Annotated[str | None, typer.Option(help="Take this generator, not that of the verdict.")] = None,
    json: JSON = False,
) -> None:
    """Write the images of a release as an ImageFolder, from the cache or DVC's remote. The working tree stays as it is."""
    from tailforge import releases

    taken, folder, counts = releases.pull(Path(), version, out, classes=class_ or (), generator=generator)
    if json:
        _print_json({"release": taken.name, "folder": str(folder), "images": counts})
    else:
        _print_counts(counts, folder)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address of the server; beyond this machine it needs a password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the server.")] = 4200,
    devices: Annotated[bool, typer.Option(help="Use the devices of this machine, not only those of others.")] = True,
) -> None:
    """Run this project on its schedule, until stopped: Prefect's server, its workers and the deployments of prefect.yaml."""
    from tailforge import serving

    serving.serve(Path(), host, port, devices=devices)


@app.command()
def worker() -> None:
    """Lend this machine's devices to the server at PREFECT_API_URL. Stages run in this folder, a clone of the project."""
    from tailforge import serving

    serving.work_for(Path())


@app.command()
def upgrade() -> None:
    """Bring dvc.yaml and params.yaml of a project to this version. Settings get their new names; values and comments stay."""
    from tailforge import project

    for line in project.upgrade(Path()):
        print(line)


@app.command()
def doctor(
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash DVC's cache; damaged files are removed, later made or fetched again.")
    ] = False,
) -> None:
    """Describe this machine and this folder, one line per item."""
    from tailforge import doctor as machine

    for name, finding in machine.verified(Path()) if verify else machine.findings(Path()):
        print(f"{name:12} {finding}")


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False))


def _print_counts(counts: dict[str, int], out: Path) -> None:
    for folder, n in counts.items():
        print(f"{n:7d}  {folder}")
    print(f"{sum(counts.values()):7d}  images in {out}")


def main() -> None:
    """Run the command line. Errors for the user become one line."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stopped)
    try:
        app()
    except TailforgeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def _stopped(number: int, _: object) -> None:
    """Leave by an exception, so that running work is stopped on the way. A second signal must not disturb that."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    print("stopping; run again to resume", file=sys.stderr)
    sys.exit(128 + number)
