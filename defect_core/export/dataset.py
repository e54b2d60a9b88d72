"""Export of released sets: one folder per product in the layout of another tool, and a dataset card."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from defect_core.data.files import atomic_path
from defect_core.data.guarded import read_json
from defect_core.data.manifest import accepted_rows
from defect_core.data.records import GOOD, record_rows
from defect_core.errors import InputError, suggest
from defect_core.export.card import write_card
from defect_core.export.formats import FORMATS, ExportItem
from defect_core.export.marker import write_marker
from defect_core.export.original_depth import OriginalValues
from defect_core.project.examples import split_records_of
from defect_core.project.paths import Project


def export_dataset(
    project: Project, layout: str, folder: Path, products: Sequence[str] = (), original_depth: bool = False
) -> dict[str, dict[str, int]]:
    """Write the released sets of some products, and return the number of images by product and defect type.

    Every layout has the synthetic pairs and the real normal training images. It has no real defect and no test image.

    Args:
        project: the project with the releases.
        layout: `mvtec`: `train/good`, `test/<defect>`, `ground_truth/<defect>`.
            `coco`: `images`, `annotations.json` with a run-length encoded mask per connected component.
            `yolo`: `images`, `labels` with a polygon per connected component, `data.yaml`.
        folder: a new or empty folder.
        products: names of products; by default all that have a release.
        original_depth: whether images of products that are not 8 bit get the values of the original files back.

    Raises:
        InputError: the layout or a product is unknown, a product has no release, or the folder is not empty.
    """
    if layout not in FORMATS:
        raise InputError(f"format {layout!r} is unknown; {suggest(layout, FORMATS)}")
    for product in products:
        if product not in project.params.products:
            raise InputError(f"product {product!r} is not in params.yaml; {suggest(product, project.params.products)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not an empty folder; expected a new or empty one")
    candidates = {name: _read_release(project, name) for name in products or project.params.products}
    releases = {name: release for name, release in candidates.items() if release is not None}
    missing = [name for name in candidates if name not in releases]
    if not releases or (products and missing):
        raise InputError(
            f"{', '.join(missing)}: nothing is released; see metrics/release, and the section release of params.yaml"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    counts: dict[str, dict[str, int]] = {}
    if folder.is_dir():
        folder.rmdir()
    with atomic_path(folder, concurrent=True) as new:
        new.mkdir()
        for product, release in releases.items():
            original = _originals(project, product) if original_depth else None
            items = [*_normal_items(project, product, original), *_synthetic_items(project, product, release, original)]
            FORMATS[layout](items, new / product)
            write_marker(items, layout, product, new / product)
            counts[product] = dict(Counter(item.defect for item in items))
        write_card(project, layout, releases, counts, new)
    return counts


def _read_release(project: Project, product: str) -> dict[str, Any] | None:
    path = project.path(f"data/release/{product}/release.json")
    if not path.is_file():
        return None
    content = read_json(path, ("arm", "sets"))
    return content if content["arm"] else None


def _originals(project: Project, product: str) -> OriginalValues | None:
    records = record_rows(project.path(f"data/split/{product}.parquet"))
    return OriginalValues(project.path(f"data/raw/{product}"), records) or None


def _normal_items(project: Project, product: str, original: OriginalValues | None) -> Iterator[ExportItem]:
    raw = project.path(f"data/raw/{product}")
    for record in split_records_of(project, product, "train"):
        if record.mask is None:
            name = f"{GOOD}-{Path(record.image).stem}"
            values = None if original is None else partial(original.real, record.image)
            suffix = ".png" if original is None else original.suffix(record.image)
            yield ExportItem(name, GOOD, raw / record.image, None, values, suffix)


def _synthetic_items(
    project: Project, product: str, release: dict[str, Any], original: OriginalValues | None
) -> Iterator[ExportItem]:
    for generator in release["sets"]:
        folder = project.path(f"data/release/{product}/{generator}")
        for row in accepted_rows(folder):
            image, mask = folder / str(row.image), folder / str(row.mask)
            values = None if original is None else partial(original.generated, image, row.source_image)
            suffix = ".png" if original is None else original.suffix(row.source_image)
            yield ExportItem(f"{generator}-{row.sample_id}", row.defect, image, mask, values, suffix)
