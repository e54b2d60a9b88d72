"""HTML page of a comparison, with synthetic images of both revisions where DVC's cache has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defect_core.data.manifest import ManifestRow, manifest_rows
from defect_core.data.records import load_image, load_mask, save_png
from defect_core.errors import InputError
from defect_core.lineage.compare import format_cause
from defect_core.lineage.snapshot import cache_file, cached_listing
from defect_core.project.paths import Project
from defect_core.report.sheets import contact_sheet
from defect_core.report.table import format_number
from defect_core.report.templates import write_page

SHOWN_PER_DEFECT = 8
CELL = 112  # pixels


def write_comparison(project: Project, comparison: Mapping[str, Any], folder: Path) -> None:
    """Write `index.html` and its images.

    Args:
        project: its DVC cache has the images.
        comparison: see `compare_revisions`.
        folder: new, empty, or written by an earlier comparison.

    Raises:
        InputError: the folder contains other files.
    """
    if folder.exists() and (
        not folder.is_dir() or any(p.name not in ("index.html", "images") for p in folder.iterdir())
    ):
        raise InputError(f"{folder}: contains other files; expected a new or empty folder; choose another one")
    folder.mkdir(parents=True, exist_ok=True)
    sets = [_set_section(project, entry, folder) for entry in comparison["sets"]]
    values = {"comparison": comparison, "sets": sets}
    write_page(folder / "index.html", "compare.html", values, number=format_number, line=format_cause)


def _set_section(project: Project, entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write one sheet per defect: samples of equal index before and after, then the same with mask outlines."""
    by_side = {side: cached_listing(project, entry[side]) for side in ("before", "after")}
    listings = [listing for listing in by_side.values() if listing is not None]
    if len(listings) < len(by_side):
        missing = [side for side, listing in by_side.items() if listing is None]
        return {"path": entry["path"], "missing": " and ".join(missing), "sheets": []}
    rows = [_accepted(project, listing) for listing in listings]
    sheets = []
    for defect in sorted({row.defect for side in rows for row in side.values()}):
        names = [name for name, row in rows[0].items() if row.defect == defect and name in rows[1]][:SHOWN_PER_DEFECT]
        if not names or any(not _is_cached(project, listing, rows[i], names) for i, listing in enumerate(listings)):
            continue
        images, masks = [], []
        for side, listing in zip(rows, listings, strict=True):
            images += [load_image(cache_file(project, listing[str(side[name].image)])) for name in names]
            masks += [load_mask(cache_file(project, listing[str(side[name].mask)])) for name in names]
        sheet = contact_sheet([*images, *images], [*[None] * len(images), *masks], len(names), CELL)
        file = f"images/{entry['path'].removeprefix('data/synthetic/').replace('/', '-')}-{defect}.png"
        save_png(sheet, folder / file)
        sheets.append({"file": file, "defect": defect})
    return {"path": entry["path"], "missing": "", "sheets": sheets}


def _accepted(project: Project, listing: dict[str, str]) -> dict[str, ManifestRow]:
    path = cache_file(project, listing.get("manifest.parquet", "none"))
    if not path.is_file():
        return {}
    return {row.sample_id: row for row in manifest_rows(path) if row.accepted}


def _is_cached(project: Project, listing: dict[str, str], rows: dict[str, ManifestRow], names: list[str]) -> bool:
    files = [file for name in names for file in (rows[name].image, rows[name].mask)]
    return all(file is not None and file in listing and cache_file(project, listing[file]).is_file() for file in files)
