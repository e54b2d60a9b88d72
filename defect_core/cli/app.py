"""The `defectory` command. Heavy modules are imported inside the commands, so that `--help` answers at once."""

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Optional

import typer

from defect_core.cli import product_commands
from defect_core.cli.surface import run_guarded, show_tracebacks
from defect_core.errors import InputError

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="A factory for defects: synthetic image-mask pairs, scored, versioned and proven on a segmenter.",
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")]
Axis = Annotated[Optional[str], typer.Option()]  # noqa: UP045 - typer reads the annotation at run time
Products = Annotated[Optional[list[str]], typer.Option("--product", help="Only these products.")]  # noqa: UP045 - as above
Generators = Annotated[Optional[list[str]], typer.Option("--generator", help="Only these generators.")]  # noqa: UP045


product_commands.register(app)


def main() -> None:
    """Run the command; see `run_guarded` for its exit status."""
    run_guarded(app)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        from importlib.metadata import version

        print(f"defectory {version('defectory')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print more about the progress.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit
    show_tracebacks(debug)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("defect_core")
    logger.handlers[:] = [handler]
    logger.setLevel(level)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder, or one whose files are kept.")],
    preset: Annotated[str, typer.Option(help="demo, laptop (an hour), full (a GPU), paper-METHOD.")] = "laptop",
    no_git: Annotated[bool, typer.Option("--no-git", help="Create no git repository.")] = False,
) -> None:
    """Create a project in a git repository: params.yaml, dvc.yaml, workspace.yaml, data/, metrics/."""
    from defect_core.cli.git_setup import WITHOUT_GIT, describe_git
    from defect_core.cli.scaffold import init_project

    init_project(folder, preset, with_git=not no_git)
    print(f"{folder}: project created. Next: cd {folder} && defectory add-product NAME PATH && defectory run")
    print(f"git: {WITHOUT_GIT if no_git else describe_git(folder)}")


@app.command()
def sync(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail when something is out of date.")] = False,
) -> None:
    """Render dvc.yaml again after a change of params.yaml, and record the listings of remote sources."""
    from defect_core.graph import dvcfile
    from defect_core.project.paths import Project
    from defect_core.project.sources import record_sources

    project = Project.find()
    if check:
        if project.path("dvc.yaml").read_text(encoding="utf-8") != dvcfile.render(project):
            raise InputError("dvc.yaml: out of date with params.yaml and the stage table; run `defectory sync`")
        return
    unreadable = record_sources(project)
    changed = dvcfile.sync(project)
    for product, problem in unreadable.items():
        raise InputError(f"params.yaml: sources.{product}.path: {problem}")
    print(", ".join(changed) + " written" if changed else "up to date")


@app.command()
def protocol(
    name: Annotated[str, typer.Argument(help="anomalydiffusion, cadiff, seas, ddim-inversion, defectdiffu.")],
) -> None:
    """Write a paper's evaluation protocol (split, counts, segmenter) into params.yaml."""
    from defect_core.cli.protocols import apply_protocol
    from defect_core.project.paths import Project

    difference = apply_protocol(Project.find(), name)
    print(f"params.yaml: protocol of {name}. Differences from the paper: {difference}")


@app.command()
def run(product: Products = None, generator: Generators = None) -> None:
    """Bring everything up to date with `dvc repro`, then print the leaderboard and the time of each stage."""
    from defect_core.graph.local import costs_since, reproduce, select_instances
    from defect_core.project.paths import Project
    from defect_core.report.leaderboard import load_leaderboard
    from defect_core.report.table import print_leaderboard, print_times

    project = Project.find()
    targets = select_instances(project.params, product or [], generator or [])
    start = time.time_ns()
    try:
        status = reproduce(project, targets)
    finally:
        print_times(costs_since(project, start))
    if status:
        sys.exit(1)
    if targets:
        print("Up to date. `defectory run` without options also updates the leaderboard and the report.")
        return
    print_leaderboard(load_leaderboard(project))
    report = os.path.relpath(project.path("report/index.html"))
    print(f"Report: {report}    Graph: `dagster dev -w workspace.yaml`")


@app.command()
def stage(name: str, product: Axis = None, generator: Axis = None, arm: Axis = None) -> None:
    """Run one stage instance in this process; dvc.yaml calls this command."""
    from defect_core.graph.local import run_one
    from defect_core.project.paths import Project

    run_one(Project.find(), name, product=product, generator=generator, arm=arm)


@app.command()
def leaderboard(as_json: Json = False, as_csv: Csv = False) -> None:
    """Print the last leaderboard."""
    from defect_core.project.paths import Project
    from defect_core.report.leaderboard import load_leaderboard, read_leaderboard
    from defect_core.report.table import print_leaderboard

    project = Project.find()
    if as_csv:
        print(read_leaderboard(project).to_csv(index=False), end="")
    elif as_json:
        print(json.dumps(load_leaderboard(project), indent=2))
    else:
        print_leaderboard(load_leaderboard(project))


@app.command()
def trace(
    image: Annotated[Path, typer.Argument(help="A synthetic image, or its mask.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Generate it again; exit status 1 unless every byte is equal.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print what made a synthetic image: generator, weights, settings, seed, real images, commit."""
    from defect_core.lineage.trace import print_trace, trace_image, verify_image
    from defect_core.project.paths import Project

    project = Project.find()
    found = trace_image(project, image)
    difference = None
    if verify:
        difference = verify_image(project, image)
        found["verified"] = {"same": not difference, "difference": difference or None}
    print(json.dumps(found, indent=2)) if as_json else print_trace(found)
    if verify and not as_json:
        print(f"{'verified':14} {difference or 'generated again: equal bytes'}")
    sys.exit(1 if difference else 0)


@app.command()
def compare(
    before: Annotated[str, typer.Argument(help="A git revision, a DVC experiment, or `workspace`.")],
    after: Annotated[str, typer.Argument(help="The same.")] = "workspace",
    everything: Annotated[bool, typer.Option("--all", help="Print every score that differs.")] = False,
    html: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads the annotation at run time
        typer.Option(help="Also write a page to this folder, with the pictures of both sides that DVC's cache has."),
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Print which scores changed between two revisions, beyond their spread or not, and the possible causes."""
    from defect_core.lineage.compare import compare_revisions, comparison_frame, print_comparison
    from defect_core.project.paths import Project

    project = Project.find()
    found = compare_revisions(project, before, after)
    if html is not None:
        from defect_core.lineage.page import write_comparison

        write_comparison(project, found, html)
    if as_csv:
        print(comparison_frame(found).to_csv(index=False), end="")
        return
    print(json.dumps(found, indent=2)) if as_json else print_comparison(found, everything)
    if html is not None and not as_json:
        print(f"Page: {html / 'index.html'}")


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
    product: Products = None,
    original_depth: Annotated[
        bool, typer.Option("--original-depth", help="Give images of more than 8 bits their original range back.")
    ] = False,
) -> None:
    """Copy the released pairs into a layout that other tools read, with a dataset card."""
    from defect_core.export.dataset import export_dataset
    from defect_core.project.paths import Project

    for name, counts in export_dataset(Project.find(), layout, folder, product or [], original_depth).items():
        print(f"{name}: " + ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items())))


@app.command()
def regenerate(product: Products = None, generator: Generators = None) -> None:
    """Request new samples with a new seed, recorded in params.yaml; `defectory run` then generates them."""
    from defect_core.cli.scaffold import request_regeneration
    from defect_core.project.paths import Project

    for address in request_regeneration(Project.find(), product or [], generator or []):
        print(f"{address}: will be generated again")


@app.command()
def score(
    real: Annotated[Path, typer.Option(help="Folder with real images.")],
    generated: Annotated[Path, typer.Option(help="Folder with generated images.")],
    image_size: Annotated[int, typer.Option(help="Side in pixels to which all images are resized.")] = 128,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Score the images of one folder against the real images of another; no project is needed."""
    from defect_core.metrics.folders import score_folders

    result = score_folders(real, generated, image_size, seed)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    from defect_core.report.table import print_scores

    print_scores(result)


@app.command()
def weights(
    action: Annotated[str, typer.Argument(help="pull")],
    mirror: Annotated[str | None, typer.Option(help="URL of a folder with the same files.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Copy from a folder, without network.")] = None,
    backbone: Annotated[str | None, typer.Option(help="A backbone to fetch from the hub, too.")] = None,
) -> None:
    """Fetch the weights of FID, KID, Inception Score and LPIPS, and a backbone."""
    from defect_core.cli.pull_weights import missing_files, pull_weights

    if action != "pull":
        raise InputError(f"weights {action}: unknown; expected pull")
    for path in pull_weights(missing_files(), mirror, source):
        print(path)
    if backbone is not None:
        from defect_core.backbones.load import load_backbone

        print(load_backbone(backbone).folder)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Print what is installed, which weights are available, and whether the project is consistent."""
    from defect_core.cli.doctor import check_environment

    facts = check_environment()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for name, fact in facts.items():
        print(f"{name:28} {fact}")


if __name__ == "__main__":
    main()
