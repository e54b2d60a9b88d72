"""Copies of released sets in the layouts of other tools, with a dataset card.

A module here writes files outside the project. It generates and scores nothing.
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dataset": ["export_dataset"],
        "formats": ["FORMATS", "ExportItem"],
        "shapes": ["mask_to_polygons", "mask_to_rle"],
    },
)

if TYPE_CHECKING:
    from defect_core.export.dataset import export_dataset as export_dataset
    from defect_core.export.formats import FORMATS as FORMATS
    from defect_core.export.formats import ExportItem as ExportItem
    from defect_core.export.shapes import mask_to_polygons as mask_to_polygons
    from defect_core.export.shapes import mask_to_rle as mask_to_rle
