"""A comparison as an HTML page, with the pictures of both sides where DVC's cache holds them."""

from pathlib import Path
from typing import Any

import numpy as np

from defect_core.data.manifest import ManifestRow, read_manifest
from defect_core.data.records import load_image, load_mask, save_png
from defect_core.errors import InputError
from defect_core.lineage.compare import cause_line
from defect_core.lineage.snapshot import cache_file, cached_listing
from defect_core.project.paths import Project
from defect_core.report.sheets import contact_sheet
from defect_core.report.table import number

SHOWN_PER_DEFECT = 8
CELL = 112


def write_comparison(project: Project, found: dict[str, Any], folder: Path) -> None:
    """Write `index.html` and its pictures.

    Args:
        found: what `compare` returned.
        folder: new, empty, or one that an earlier comparison wrote.

    Raises:
        InputError: the folder holds something else.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    if folder.exists() and (
        not folder.is_dir() or any(p.name not in ("index.html", "images") for p in folder.iterdir())
    ):
        raise InputError(f"{folder}: holds other files; expected a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=PackageLoader("defect_core", "report"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "line": cause_line}
    sets = [_pictures(project, entry, folder) for entry in found["sets"]]
    page = environment.get_template("compare.html").render(found=found, sets=sets)
    (folder / "index.html").write_text(page, encoding="utf-8")


def _pictures(project: Project, entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One contact sheet per defect: the samples of the same number before and after, then with outlines."""
    listings = [cached_listing(project, entry[side]) for side in ("before", "after")]
    missing = [side for side, listing in zip(("before", "after"), listings, strict=True) if listing is None]
    if missing:
        return {"path": entry["path"], "missing": " and ".join(missing), "sheets": []}
    rows = [_accepted(project, listing) for listing in listings]
    sheets = []
    for defect in sorted({row.defect for side in rows for row in side.values()}):
        names = [name for name, row in rows[0].items() if row.defect == defect and name in rows[1]][:SHOWN_PER_DEFECT]
        if not names or any(not _complete(project, listing, rows[i], names) for i, listing in enumerate(listings)):
            continue
        images, masks = [], []
        for side, listing in zip(rows, listings, strict=True):
            images += [load_image(cache_file(project, listing[str(side[name].image)])) for name in names]
            masks += [load_mask(cache_file(project, listing[str(side[name].mask)])) for name in names]
        outlined = contact_sheet([*images, *images], [*[None] * len(images), *masks], len(names), CELL)
        file = f"images/{entry['path'].removeprefix('data/synthetic/').replace('/', '-')}-{defect}.png"
        save_png(np.asarray(outlined), folder / file)
        sheets.append({"file": file, "defect": defect})
    return {"path": entry["path"], "missing": "", "sheets": sheets}


def _accepted(project: Project, listing: dict[str, str]) -> dict[str, ManifestRow]:
    path = cache_file(project, listing.get("manifest.parquet", "none"))
    if not path.is_file():
        return {}
    return {row.sample_id: row for row in read_manifest(path) if row.accepted}


def _complete(project: Project, listing: dict[str, str], rows: dict[str, ManifestRow], names: list[str]) -> bool:
    files = [file for name in names for file in (rows[name].image, rows[name].mask)]
    return all(file in listing and cache_file(project, listing[str(file)]).is_file() for file in files)
