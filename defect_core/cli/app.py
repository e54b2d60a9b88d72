"""The `defectory` command. Everything heavy is imported inside the commands, so that help answers at once."""

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from defect_core.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A factory for defects: synthetic image-mask pairs, scored, versioned and proven on a segmenter.",
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Axis = Annotated[Optional[str], typer.Option()]  # noqa: UP045 - typer reads it at run time


def main() -> None:
    """Run the command; a mistake of the user is one line on standard error and exit status 2."""
    try:
        app()
    except InputError as error:
        print(f"defectory: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("defectory: stopped; what was finished is kept, the same command goes on from there", file=sys.stderr)
        sys.exit(130)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"defectory {version('defectory')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="An empty or new folder.")],
    preset: Annotated[str, typer.Option(help="demo (minutes), laptop (an hour) or full (a GPU).")] = "laptop",
) -> None:
    """Lay down a project: params.yaml, dvc.yaml, workspace.yaml, data/, metrics/."""
    from defect_core.cli.scaffold import init_project

    init_project(folder, preset)
    print(f"{folder}: a project. Next: cd {folder} && defectory add-product NAME PATH && defectory run")


@app.command("add-product")
def add_product(
    name: str,
    path: Annotated[str, typer.Argument(help="Folder or URL with the images, or `demo` for a built-in product.")],
    layout: Annotated[str, typer.Option(help="auto, mvtec, visa, loco, mvtec3d, folder or demo.")] = "auto",
    option: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--option", "-o", help="An option of the layout, KEY=VALUE (VALUE may be a JSON list)."),
    ] = None,
    empty_masks: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="error or leave_out: what to do with a defect image whose mask is empty."),
    ] = None,
) -> None:
    """Check a product's real images, take them in and add it to params.yaml. Nothing changes if a check fails."""
    from defect_core.cli.scaffold import add_product as add
    from defect_core.project.paths import Project

    summary = add(Project.find(), name, path, layout, option or [], empty_masks)
    print(f"{name}: {summary['good']} good images, " + ", ".join(f"{n} {d}" for d, n in summary["defects"].items()))
    for line in summary["notes"]:
        print(f"  {line}")


@app.command()
def sync(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail when something is out of date.")] = False,
) -> None:
    """Render dvc.yaml again after params.yaml gained or lost a product, generator or arm; look at remote sources."""
    from defect_core.graph import dvcfile
    from defect_core.project.paths import Project
    from defect_core.project.sources import record_sources

    project = Project.find()
    if check:
        if project.path("dvc.yaml").read_text(encoding="utf-8") != dvcfile.render(project):
            raise InputError("dvc.yaml: out of date with params.yaml and the stage table; run `defectory sync`")
        return
    unread = record_sources(project)
    changed = dvcfile.sync(project)
    for product, why in unread.items():
        raise InputError(f"params.yaml: sources.{product}.path: {why}")
    print(", ".join(changed) + " written" if changed else "up to date")


@app.command()
def protocol(
    name: Annotated[str, typer.Argument(help="anomalydiffusion, cadiff, seas, ddim-inversion, defectdiffu.")],
) -> None:
    """Write a paper's evaluation protocol (split, counts, segmenter) into params.yaml."""
    from defect_core.cli.protocols import apply_preset
    from defect_core.project.paths import Project

    note = apply_preset(Project.find(), name)
    print(f"params.yaml: the protocol of {name}. What it cannot say: {note}")


@app.command()
def run(
    product: Annotated[Optional[list[str]], typer.Option(help="Only these products.")] = None,  # noqa: UP045
    generator: Annotated[Optional[list[str]], typer.Option(help="Only these generators.")] = None,  # noqa: UP045
) -> None:
    """Bring everything up to date with `dvc repro`, then print the leaderboard and what each stage took."""
    from defect_core.graph.local import run_all
    from defect_core.project.paths import Project

    sys.exit(run_all(Project.find(), product or [], generator or []))


@app.command()
def demo() -> None:
    """Run the project's whole graph and show the leaderboard and where the report is."""
    from defect_core.graph.local import run_all
    from defect_core.project.paths import Project

    sys.exit(run_all(Project.find(), [], []))


@app.command()
def stage(name: str, product: Axis = None, generator: Axis = None, arm: Axis = None) -> None:
    """Do one stage instance's work here and now; what dvc.yaml calls."""
    from defect_core.graph.local import run_one
    from defect_core.project.paths import Project

    run_one(Project.find(), name, product=product, generator=generator, arm=arm)


@app.command()
def leaderboard(as_json: Json = False) -> None:
    """Print the last leaderboard."""
    from defect_core.project.paths import Project
    from defect_core.report.leaderboard import read_leaderboard
    from defect_core.report.table import print_leaderboard

    board = read_leaderboard(Project.find())
    print(json.dumps(board, indent=2)) if as_json else print_leaderboard(board)


@app.command()
def trace(
    image: Annotated[Path, typer.Argument(help="A synthetic image, or its mask.")],
    verify: Annotated[bool, typer.Option("--verify", help="Draw it again; status 1 unless every byte is the same.")] = (
        False
    ),
    as_json: Json = False,
) -> None:
    """Say what made a synthetic image: generator, weights, settings, seed, real images, commit."""
    from defect_core.lineage import trace as lineage
    from defect_core.project.paths import Project

    project = Project.find()
    found = lineage.trace(project, image)
    difference = None
    if verify:
        difference = lineage.verify(project, image)
        found["verified"] = {"same": not difference, "difference": difference or None}
    print(json.dumps(found, indent=2)) if as_json else lineage.print_trace(found)
    if verify and not as_json:
        print(f"{'verified':14} {difference or 'drawn again: the same bytes'}")
    sys.exit(1 if difference else 0)


@app.command()
def compare(
    before: Annotated[str, typer.Argument(help="A git revision, a DVC experiment, or `workspace`.")],
    after: Annotated[str, typer.Argument(help="The same.")] = "workspace",
    everything: Annotated[bool, typer.Option("--all", help="Print every score that differs.")] = False,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Also write a page there, with the pictures of both sides that DVC's cache holds."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which scores moved between two revisions, beyond their spread or not, and what made them move."""
    from defect_core.lineage.compare import compare as compare_revisions
    from defect_core.lineage.compare import print_comparison
    from defect_core.project.paths import Project

    project = Project.find()
    found = compare_revisions(project, before, after)
    if html is not None:
        from defect_core.lineage.page import write_comparison

        write_comparison(project, found, html)
    print(json.dumps(found, indent=2)) if as_json else print_comparison(found, everything)
    if html is not None and not as_json:
        print(f"The page: {html / 'index.html'}")


@app.command("average-folds")
def average_folds(
    first: Annotated[str, typer.Argument(help="A git revision, a DVC experiment, or `workspace`.")],
    second: Annotated[str, typer.Argument(help="The same, of the other fold.")] = "workspace",
    as_json: Json = False,
) -> None:
    """Average two runs of a `two_fold` split, one of each fold: every real defect is then tested once."""
    from defect_core.lineage import folds
    from defect_core.project.paths import Project

    found = folds.average_folds(Project.find(), [first, second])
    print(json.dumps(found, indent=2)) if as_json else folds.print_average(found)


@app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    layout: Annotated[str, typer.Option("--format", help="mvtec, coco or yolo.")] = "mvtec",
    product: Annotated[Optional[list[str]], typer.Option(help="Only these products.")] = None,  # noqa: UP045
) -> None:
    """Copy the released pairs out in a layout that other tools read, with a dataset card."""
    from defect_core.export import export
    from defect_core.project.paths import Project

    for name, counts in export(Project.find(), layout, folder, product or []).items():
        print(f"{name}: " + ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items())))


@app.command()
def regenerate(
    product: Annotated[Optional[list[str]], typer.Option(help="Only these products.")] = None,  # noqa: UP045
    generator: Annotated[Optional[list[str]], typer.Option(help="Only these generators.")] = None,  # noqa: UP045
) -> None:
    """Ask for fresh samples under a new seed, recorded in params.yaml; `defectory run` then draws them."""
    from defect_core.cli.scaffold import request_regeneration
    from defect_core.project.paths import Project

    for address in request_regeneration(Project.find(), product or [], generator or []):
        print(f"{address}: will be drawn anew")


@app.command()
def score(
    real: Annotated[Path, typer.Option(help="Folder with real images.")],
    generated: Annotated[Path, typer.Option(help="Folder with generated images.")],
    image_size: Annotated[int, typer.Option(help="Side in pixels both are brought to.")] = 128,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Score any folder of generated images against any folder of real ones; no project needed."""
    from defect_core.stages.score import score_folders

    result = score_folders(real, generated, image_size, seed)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    from defect_core.report.table import print_scores

    print_scores(result)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed, which weights are at hand, and whether the project is sound."""
    from defect_core.cli.scaffold import examine

    facts = examine()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for name, fact in facts.items():
        print(f"{name:28} {fact}")


if __name__ == "__main__":
    main()
