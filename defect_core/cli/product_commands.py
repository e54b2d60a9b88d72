"""The commands about products: add, remove, rename, preview. Heavy modules are imported inside the commands."""

import json
import os
from typing import Annotated, Optional

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Name = Annotated[str, typer.Argument(help="A product of params.yaml.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("add-product")(add_product)
    app.command("remove-product")(remove_product)
    app.command("rename-product")(rename_product)
    app.command("preview")(preview)


def add_product(
    name: Annotated[str, typer.Argument(help="Letters, digits, '_', '-' and '.'.")],
    path: Annotated[str, typer.Argument(help="Folder or URL with the images, or `demo` for a built-in product.")],
    layout: Annotated[str, typer.Option(help="auto, or the name of a layout; docs/data.md lists them.")] = "auto",
    option: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads the annotation at run time
        typer.Option("--option", "-o", help="An option of the layout, KEY=VALUE (VALUE may be JSON)."),
    ] = None,
    empty_masks: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="error or leave_out: what to do with a defect image whose mask is empty."),
    ] = None,
    missing_masks: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="error, leave_out or normal: what to do with a defect image that has no mask."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and report; change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Check the real images of a product, report on them, and add it to params.yaml. An error changes nothing."""
    from defect_core.cli.add_product import add_product as add
    from defect_core.cli.product_report import render_report
    from defect_core.project.paths import Project

    report = add(Project.find(), name, path, layout, option or [], empty_masks, missing_masks, dry_run)
    if as_json:
        print(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
        return
    print("\n".join(render_report(report)))
    if dry_run:
        print("  nothing was changed (--dry-run)")
    else:
        print(f"  added to params.yaml. Next: `defectory preview {name}` (a minute), then `defectory run`")


def remove_product(name: Name, as_json: Json = False) -> None:
    """Remove a product with its data and metrics; its source stays, and DVC's cache until `dvc gc`."""
    from defect_core.cli.edit_products import remove_product as remove
    from defect_core.project.paths import Project

    removed = remove(Project.find(), name)
    if as_json:
        print(json.dumps({"product": name, "removed": removed}, indent=2))
        return
    print(f"{name}: removed from params.yaml, dvc.yaml and dvc.lock")
    for path in removed:
        print(f"  removed: {path}")


def rename_product(name: Name, new_name: str, as_json: Json = False) -> None:
    """Rename a product; results hold its name, so those under the old one are removed and made again by `run`."""
    from defect_core.cli.edit_products import rename_product as rename
    from defect_core.project.paths import Project

    removed = rename(Project.find(), name, new_name)
    if as_json:
        print(json.dumps({"product": new_name, "was": name, "removed": removed}, indent=2))
        return
    print(f"{name}: renamed to {new_name} in params.yaml, dvc.yaml and dvc.lock")
    for path in removed:
        print(f"  removed, because it holds the old name: {path}")
    if removed:
        print("  `defectory run` makes them again; DVC's cache has the old ones until `dvc gc`")


def preview(
    product: Name,
    per_defect: Annotated[int, typer.Option(min=1, help="Pairs per defect type.")] = 12,
    as_json: Json = False,
) -> None:
    """Generate crop-paste pairs of each defect type in one picture of zoomed crops, within a minute; no stage runs."""
    from defect_core.cli.estimate import describe_times
    from defect_core.cli.preview import preview_product
    from defect_core.project.paths import Project

    found = preview_product(Project.find(), product, per_defect)
    sheet = os.path.relpath(found.sheet)
    if as_json:
        print(json.dumps({"sheet": sheet, "pairs": found.pairs, "seconds": found.seconds}, indent=2))
        return
    print(f"{product}: " + ", ".join(f"{count} pairs of {defect}" for defect, count in found.pairs.items()))
    if not found.is_complete:
        print("  fewer than asked for: the time limit was reached")
    print(f"  picture: {sheet}")
    if found.seconds:
        print(f"  estimated time of `defectory run` here: {describe_times(found.seconds)}")
