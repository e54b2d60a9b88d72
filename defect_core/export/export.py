"""What is released, copied out: a folder per product in one of three layouts, and a card over all of them."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from defect_core.data.manifest import read_manifest
from defect_core.data.masks import bounding_box, components
from defect_core.data.records import load_image, load_mask, save_png
from defect_core.errors import InputError
from defect_core.export.card import write_card
from defect_core.export.shapes import outlines, run_lengths
from defect_core.project.loading import split_records_of
from defect_core.project.paths import Project, write_json

FORMATS = ("mvtec", "coco", "yolo")


@dataclass(frozen=True)
class Item:
    """One image to export: `defect` is "good" and `mask` None for a real, good one; `name` is without suffix."""

    name: str
    defect: str
    image: Path
    mask: Path | None


def export(project: Project, layout: str, folder: Path, products: Sequence[str] = ()) -> dict[str, dict[str, int]]:
    """Write the released sets of some products, of all that have one by default.

    Every layout holds the synthetic pairs and the real, good training images; no real defect and no test image.

    Args:
        layout: `mvtec`: `train/good`, `test/<defect>`, `ground_truth/<defect>`; `coco`: `images`, `annotations.json`
            with a run-length mask per connected spot; `yolo`: `images`, `labels` with a polygon per spot, `data.yaml`.
        folder: new or empty.

    Returns:
        Number of images by product and defect.

    Raises:
        InputError: an unknown layout or product, a product without a release, or a folder that holds something.
    """
    if layout not in FORMATS:
        raise InputError(f"format {layout!r} is unknown; expected one of {', '.join(FORMATS)}")
    for product in products:
        if product not in project.params.products:
            known = ", ".join(project.params.products)
            raise InputError(f"product {product!r} is not in params.yaml; expected one of {known}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not an empty folder; expected a new or empty one")
    releases = {name: _release(project, name) for name in products or project.params.products}
    missing = [name for name, release in releases.items() if release is None]
    if not any(releases.values()) or (products and missing):
        raise InputError(
            f"{', '.join(missing)}: nothing is released; see metrics/release, and the section release of params.yaml"
        )
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, dict[str, int]] = {}
    for product, release in releases.items():
        if release is not None:
            items = [*_good(project, product), *_synthetic(project, product, release)]
            _WRITERS[layout](items, folder / product)
            counts[product] = {}
            for item in items:
                counts[product][item.defect] = counts[product].get(item.defect, 0) + 1
    write_card(project, layout, {name: release for name, release in releases.items() if release}, counts, folder)
    return counts


def _release(project: Project, product: str) -> dict[str, Any] | None:
    path = project.path(f"data/release/{product}/release.json")
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content if content["arm"] else None


def _good(project: Project, product: str) -> Iterator[Item]:
    raw = project.path(f"data/raw/{product}")
    for record in split_records_of(project, product, "train"):
        if record.mask is None:
            yield Item(f"good-{Path(record.image).stem}", "good", raw / record.image, None)


def _synthetic(project: Project, product: str, release: dict[str, Any]) -> Iterator[Item]:
    for generator in release["sets"]:
        folder = project.path(f"data/release/{product}/{generator}")
        for row in read_manifest(folder / "manifest.parquet"):
            if row.accepted:
                yield Item(f"{generator}-{row.sample_id}", row.defect, folder / str(row.image), folder / str(row.mask))


def _write_mvtec(items: list[Item], folder: Path) -> None:
    for item in items:
        if item.mask is None:
            _copy(item.image, folder / f"train/good/{item.name}.png")
        else:
            _copy(item.image, folder / f"test/{item.defect}/{item.name}.png")
            _copy(item.mask, folder / f"ground_truth/{item.defect}/{item.name}_mask.png")


def _write_coco(items: list[Item], folder: Path) -> None:
    numbers = _numbers(items)
    images, annotations = [], []
    for number, item in enumerate(items, 1):
        _copy(item.image, folder / f"images/{item.name}.png")
        height, width = load_image(item.image).shape[:2]
        images.append({"id": number, "file_name": f"{item.name}.png", "width": width, "height": height})
        for spot in [] if item.mask is None else components(load_mask(item.mask)):
            top, left, bottom, right = bounding_box(spot)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": numbers[item.defect] + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(spot.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": [height, width], "counts": run_lengths(spot)},
                }
            )
    categories = [{"id": number + 1, "name": name} for name, number in numbers.items()]
    write_json(folder / "annotations.json", {"images": images, "annotations": annotations, "categories": categories})


def _write_yolo(items: list[Item], folder: Path) -> None:
    numbers = _numbers(items)
    for item in items:
        _copy(item.image, folder / f"images/{item.name}.png")
        lines = []
        if item.mask is not None:
            mask = load_mask(item.mask)
            size = np.array([mask.shape[1], mask.shape[0]])
            for line in outlines(mask):
                points = " ".join(f"{value:.6f}" for value in (np.array(line) / size).ravel())
                lines.append(f"{numbers[item.defect]} {points}\n")
        label = folder / f"labels/{item.name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("".join(lines))
    names = "".join(f"  {number}: {name}\n" for name, number in numbers.items())
    (folder / "data.yaml").write_text(
        "# The pairs are for training; put a folder of real images at `val` before you trust a score.\n"
        f"path: .\ntrain: images\nval: images\nnames:\n{names}"
    )


_WRITERS = {"mvtec": _write_mvtec, "coco": _write_coco, "yolo": _write_yolo}


def _numbers(items: list[Item]) -> dict[str, int]:
    """Numbers of the defect types, from 0."""
    names = sorted({item.defect for item in items if item.mask is not None})
    return {name: number for number, name in enumerate(names)}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".png":
        shutil.copyfile(source, target)
    else:
        save_png(load_image(source), target)
