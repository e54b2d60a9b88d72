"""`add-product`: checks the images of a product, says what they are, and adds the product to the project."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from defect_core.cli.estimate import estimate_times
from defect_core.cli.product_report import (
    ProductReport,
    count_sizes,
    count_types,
    find_colour,
    find_unusual,
    give_advice,
    measure_masks,
)
from defect_core.cli.sheet import write_sheet
from defect_core.cli.source_examples import load_raw_examples
from defect_core.cli.transaction import all_or_nothing, edited_params, quoted
from defect_core.data.config import SourceConfig, is_outside
from defect_core.data.layouts.ingest import ingest_source
from defect_core.data.layouts.remote import is_url, open_source
from defect_core.data.near_duplicates import across, describe, find_pairs
from defect_core.data.problems import ProblemLog, printable
from defect_core.data.records import GOOD, Record, check_name, record_rows
from defect_core.data.splits import split_records
from defect_core.errors import InputError
from defect_core.graph.dvcfile import sync
from defect_core.graph.read_back import check_read_back
from defect_core.project.params import Params
from defect_core.project.paths import PARAMS_FILE, Project
from defect_core.project.sources import record_source

_SHEET_NORMALS, _SHEET_EXAMPLES = 6, 12


def add_product(
    project: Project,
    name: str,
    path: str,
    layout: str = "auto",
    options: Sequence[str] = (),
    empty_masks: str | None = None,
    missing_masks: str | None = None,
    dry_run: bool = False,
) -> ProductReport:
    """Check the images of a product as `ingest` will, then add it to params.yaml and dvc.yaml.

    Args:
        project: the project.
        name: name of the product.
        path: a folder, relative to the current one, a URL that fsspec reads, or `demo`.
        layout: `auto`, `demo` or one of the layouts.
        options: options of the layout as `KEY=VALUE`, VALUE as JSON or else as text.
        empty_masks: `error`, `leave_out` or None for the default.
        missing_masks: `error`, `leave_out`, `normal` or None for the default.
        dry_run: whether to check and report only.

    Raises:
        InputError, InputErrors: a check failed; the project is unchanged.
    """
    problems = ProblemLog()
    _check_product_name(project.params, name, problems)
    entry = _source_entry(project, path, layout, options, problems)
    for key, value in (("empty_masks", empty_masks), ("missing_masks", missing_masks)):
        choices = get_args(SourceConfig.model_fields[key].annotation)
        if value is not None and value not in choices:
            problems.add(f"--{key.replace('_', '-')}", f"{value!r}", f"expected {' or '.join(choices)}")
        elif value is not None:
            entry[key] = value
    problems.raise_if_any()
    with all_or_nothing(project) as removed_files:
        raw = Path(tempfile.mkdtemp(dir=removed_files)) / name
        report = _check_source(project, name, SourceConfig(**entry), raw)
        if dry_run:
            return report
        with edited_params(project) as content:
            entry = {key: quoted(value) if isinstance(value, str) else value for key, value in entry.items()}
            if content.get("products"):  # Appending keeps comments and style; an empty list or mapping has none.
                content["products"].append(quoted(name))
                content["sources"][quoted(name)] = entry
            else:
                content["products"], content["sources"] = [quoted(name)], {quoted(name): entry}
        changed = Project(project.root)
        record_source(changed, name)
        sync(changed)
        check_read_back(changed, (name,))
        report.sheet = _write_product_sheet(project, name, raw, report)
    report.added = True
    return report


def _check_product_name(params: Params, name: str, problems: ProblemLog) -> None:
    try:
        check_name(name, "product")
    except InputError as error:
        problems.add_error(error)
    if name in params.products:
        problems.add(
            f"product {name!r}", f"is already in {PARAMS_FILE}", "choose another name or edit its source there"
        )
    for other in params.products:
        if other != name and other.lower() == name.lower():
            problems.add(f"product {name!r}", f"differs from {other!r} in case only", "choose another name")


def _source_entry(
    project: Project, path: str, layout: str, options: Sequence[str], problems: ProblemLog
) -> dict[str, Any]:
    """Return the entry of `sources` in params.yaml."""
    entry: dict[str, Any] = {"layout": "demo"}
    if path != "demo" and layout != "demo":
        entry = {"path": path if is_url(path) else _relative_path(project, path, problems), "layout": layout}
    parsed = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key.strip():
            problems.add(f"--option {option!r}", "no value", "expected KEY=VALUE")
        else:
            parsed[key.strip()] = _parse_value(value)
    return {**entry, "options": parsed} if parsed else entry


def _relative_path(project: Project, path: str, problems: ProblemLog) -> str:
    """Return the path of a folder relative to the project."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        cure = "rename the folder, or give the path of a link to it (`ln -s`)"
        problems.add(printable(path), "the path is not UTF-8, so params.yaml cannot hold it", cure)
        return "."
    absolute = Path(os.path.abspath(path))  # resolve() would replace a link that the user made
    if not absolute.is_dir():
        what = "is not a folder" if absolute.exists() else "does not exist"
        problems.add(printable(path), what, "expected a folder of images, a URL, or demo")
    relative = Path(os.path.relpath(absolute, project.root)).as_posix()
    if any(ord(character) < 32 for character in relative):
        problems.add(printable(path), "the path has control characters", "rename the folder, or give a link to it")
    return relative


def _parse_value(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _check_source(project: Project, name: str, source: SourceConfig, raw: Path) -> ProductReport:
    """Ingest a source into the folder `raw` and return what it contains."""
    params = project.params
    local = None if source.path is None or is_url(source.path) else Path(os.path.normpath(project.root / source.path))
    with open_source(source.path, local, raw.parent) as folder:
        summary = ingest_source(
            folder,
            name,
            raw,
            layout=source.layout,
            options=source.options,
            empty_masks=source.empty_masks,
            missing_masks=source.missing_masks,
            min_per_defect=params.ingest.min_per_defect,
            seed=params.seed,
        )
    return _describe(project, name, source, summary, raw)


def _describe(project: Project, name: str, source: SourceConfig, summary: dict[str, Any], raw: Path) -> ProductReport:
    params = project.params
    records = record_rows(raw / "records.parquet")
    records, split_notes = _split(project, records, raw)
    notes = [*summary["notes"], *split_notes]
    counts, sizes = count_types(records), count_sizes(records)
    masks, resolution = measure_masks(raw, records, params.segment.image_size)
    types = [key for key in counts if key != GOOD]
    notes += _find_source_notes(project, source)
    return ProductReport(
        product=name,
        source=source.path or "the demo",
        layout=summary["layout"],
        images=len({record.image for record in records}),
        counts=counts,
        sizes=sizes,
        depth=", ".join(summary["depth"]),
        colour=find_colour(raw, records),
        working_resolution=resolution,
        masks=masks,
        unusual=find_unusual(counts, masks, len(sizes)),
        advice=give_advice(params, masks, sizes),
        left_out=summary["left_out"],
        duplicates=summary["duplicates"],
        ignored=summary["ignored"],
        notes=notes,
        seconds=estimate_times(project, len(records), len(types), sum(counts[key]["train"] for key in types)),
    )


def _split(project: Project, records: list[Record], raw: Path) -> tuple[list[Record], list[str]]:
    """Return the records as the stage `split` divides them, and what it will complain about."""
    split = project.params.split
    pairs = find_pairs(records, raw) if split.near_duplicates != "ignore" else []
    grouped = pairs if split.near_duplicates == "group" else []
    try:
        divided = split_records(
            records, split.policy, split.fold, split.min_train, split.max_train, split.train_fraction, grouped
        )
    except InputError as error:
        return records, [f"`split` will fail: {error}"]
    return divided, [line.strip() for line in describe(across(pairs, divided))]


def _find_source_notes(project: Project, source: SourceConfig) -> list[str]:
    """Return what the place of the source means for DVC and git."""
    path = source.path
    if path is None or is_url(path) or is_outside(path):
        return []
    return [
        f"the source is inside the project: track it with `dvc add {path}`, so that git ignores it and clones have it"
    ]


def _write_product_sheet(project: Project, name: str, raw: Path, report: ProductReport) -> str:
    examples = load_raw_examples(
        raw, record_rows(raw / "records.parquet"), _SHEET_NORMALS, _SHEET_EXAMPLES, show_regions=True
    )
    blocks = [
        (f"{key}: {entry['images']} images", [example for example in examples if example.defect == key])
        for key, entry in report.counts.items()
    ]
    return os.path.relpath(write_sheet(project, name, blocks))
