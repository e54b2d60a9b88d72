"""Writers of the export formats: the layouts of MVTec AD, COCO and YOLO."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defect_core.data.files import write_json, write_text
from defect_core.data.masks import components
from defect_core.data.records import GOOD, load_image, load_mask, save_png
from defect_core.export.original_depth import write_values
from defect_core.export.shapes import component_to_rle, mask_to_polygons


@dataclass(frozen=True)
class ExportItem:
    """One image to export.

    Attributes:
        name: file name without suffix, unique in the product.
        defect: the defect type, or `GOOD` for a real normal image.
        image: the image file.
        mask: the mask file; None for normal images.
        values: returns the values of the original depth; None exports the 8-bit image.
        suffix: of the exported image; `.tif` for values that PNG cannot hold.
    """

    name: str
    defect: str
    image: Path
    mask: Path | None
    values: Callable[[], NDArray[Any] | None] | None = None
    suffix: str = ".png"


def write_mvtec(items: Sequence[ExportItem], folder: Path) -> None:
    """Write `train/good`, `test/<defect>` and `ground_truth/<defect>`, as MVTec AD."""
    for item in items:
        if item.mask is None:
            _write_image(item, folder / f"train/{GOOD}")
        else:
            _write_image(item, folder / f"test/{item.defect}")
            _copy(item.mask, folder / f"ground_truth/{item.defect}/{item.name}_mask.png")


def write_coco(items: Sequence[ExportItem], folder: Path) -> None:
    """Write `images` and `annotations.json`, with one run-length encoded annotation per connected component."""
    numbers = _class_numbers(items)
    images, annotations = [], []
    for image_id, item in enumerate(items, 1):
        _write_image(item, folder / "images")
        height, width = load_image(item.image).shape[:2]
        images.append({"id": image_id, "file_name": f"{item.name}{item.suffix}", "width": width, "height": height})
        for component in [] if item.mask is None else components(load_mask(item.mask)):
            top, left, bottom, right = component.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": numbers[item.defect] + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": component.area,
                    "iscrowd": 0,
                    "segmentation": {"size": [height, width], "counts": component_to_rle(component, height, width)},
                }
            )
    categories = [{"id": number + 1, "name": name} for name, number in numbers.items()]
    write_json(folder / "annotations.json", {"images": images, "annotations": annotations, "categories": categories})


def write_yolo(items: Sequence[ExportItem], folder: Path) -> None:
    """Write `images`, `labels` with one polygon per connected component, and `data.yaml`.

    Coordinates are pixel centres divided by the image size, so that truncation to integers gives the pixels again.
    """
    numbers = _class_numbers(items)
    for item in items:
        _write_image(item, folder / "images")
        lines = []
        if item.mask is not None:
            mask = load_mask(item.mask)
            size = np.array([mask.shape[1], mask.shape[0]])
            for polygon in mask_to_polygons(mask):
                points = " ".join(f"{value:.6f}" for value in ((polygon + 0.5) / size).ravel())
                lines.append(f"{numbers[item.defect]} {points}\n")
        write_text(folder / f"labels/{item.name}.txt", "".join(lines))
    names = "".join(f"  {number}: {name}\n" for name, number in numbers.items())
    write_text(
        folder / "data.yaml",
        # Without `path`, Ultralytics starts from the folder of this file, wherever it is called.
        "# The pairs are for training. Put a folder of real images at `val` before you report a score.\n"
        f"train: images\nval: images\nnames:\n{names}",
    )


FORMATS: dict[str, Callable[[Sequence[ExportItem], Path], None]] = {
    "mvtec": write_mvtec,
    "coco": write_coco,
    "yolo": write_yolo,
}
"""Writer of each export format, by name."""


def _class_numbers(items: Sequence[ExportItem]) -> dict[str, int]:
    """Return a number for each defect type, from 0."""
    names = sorted({item.defect for item in items if item.mask is not None})
    return {name: number for number, name in enumerate(names)}


def _write_image(item: ExportItem, folder: Path) -> None:
    values = None if item.values is None else item.values()
    if values is None:
        _copy(item.image, folder / f"{item.name}{item.suffix}")
    else:
        write_values(values, folder / item.name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".png":
        shutil.copyfile(source, target)
    else:
        save_png(load_image(source), target)
