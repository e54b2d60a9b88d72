"""Real and synthetic images, masks and their tables: reading, writing, splitting, augmenting and placing defects.

A module here depends on numpy, scipy, PIL, pyarrow and pandas only. It knows no generator, no network and no project.
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "augment": ["AugmentOptions", "augment_pair"],
        "foreground": ["find_foreground", "has_texture_direction"],
        "manifest": ["ManifestRow", "manifest_rows", "read_manifest", "write_manifest"],
        "masks": ["bounding_box", "components", "downsample_mask"],
        "placement": ["Placement", "PlacementConfig", "place_defect"],
        "records": [
            "Record",
            "load_image",
            "load_mask",
            "pixel_digest",
            "read_records",
            "record_rows",
            "save_png",
            "write_records",
        ],
        "splits": ["check_disjoint", "split_records"],
    },
)

if TYPE_CHECKING:
    from defect_core.data.augment import AugmentOptions as AugmentOptions
    from defect_core.data.augment import augment_pair as augment_pair
    from defect_core.data.foreground import find_foreground as find_foreground
    from defect_core.data.foreground import has_texture_direction as has_texture_direction
    from defect_core.data.manifest import ManifestRow as ManifestRow
    from defect_core.data.manifest import manifest_rows as manifest_rows
    from defect_core.data.manifest import read_manifest as read_manifest
    from defect_core.data.manifest import write_manifest as write_manifest
    from defect_core.data.masks import bounding_box as bounding_box
    from defect_core.data.masks import components as components
    from defect_core.data.masks import downsample_mask as downsample_mask
    from defect_core.data.placement import Placement as Placement
    from defect_core.data.placement import PlacementConfig as PlacementConfig
    from defect_core.data.placement import place_defect as place_defect
    from defect_core.data.records import Record as Record
    from defect_core.data.records import load_image as load_image
    from defect_core.data.records import load_mask as load_mask
    from defect_core.data.records import pixel_digest as pixel_digest
    from defect_core.data.records import read_records as read_records
    from defect_core.data.records import record_rows as record_rows
    from defect_core.data.records import save_png as save_png
    from defect_core.data.records import write_records as write_records
    from defect_core.data.splits import check_disjoint as check_disjoint
    from defect_core.data.splits import split_records as split_records
