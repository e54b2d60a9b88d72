"""The marker of an exported set, by which `add-product` knows its synthetic images."""

from collections.abc import Sequence
from pathlib import Path

from defect_core.data.files import write_json
from defect_core.data.layouts.own_export import MARKER
from defect_core.export.formats import ExportItem


def write_marker(items: Sequence[ExportItem], layout: str, product: str, folder: Path) -> None:
    """Write the list of the real and the synthetic images into the folder of an exported product.

    Args:
        items: the exported images.
        layout: name of the export format.
        product: name of the product.
        folder: folder of the product, already written.
    """
    places: dict[bool, list[str]] = {True: [], False: []}
    for item in items:
        image_folder = "images" if layout != "mvtec" else f"{'train' if item.mask is None else 'test'}/{item.defect}"
        places[item.mask is None].append(f"{image_folder}/{item.name}{item.suffix}")
    content = {
        "about": "Written by `defectory export`. Images under `synthetic` are generated and never read as real images.",
        "format": layout,
        "product": product,
        "real": places[True],
        "synthetic": places[False],
    }
    write_json(folder / MARKER, content)
