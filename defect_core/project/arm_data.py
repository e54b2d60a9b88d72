"""What the downstream models of an arm are trained and tested on."""

from collections.abc import Hashable
from pathlib import Path

import numpy as np

from defect_core.data.manifest import ManifestRow, manifest_rows
from defect_core.data.masks import component_widths
from defect_core.data.records import Record, image_groups, load_mask
from defect_core.errors import InputError
from defect_core.evaluation.segmentation.data import (
    MAX_NORMAL_IMAGES,
    ArmData,
    StoredSamples,
    find_images,
    load_samples,
)
from defect_core.evaluation.segmentation.scale import WorkingScale, choose_scale
from defect_core.evaluation.segmentation.tiles import load_crops, load_normal_places
from defect_core.project.arms import Arm
from defect_core.project.examples import split_records_of
from defect_core.project.paths import Project, synthetic_folder

# Each has several crops; more images would need too much memory.
MAX_CROPPED_NORMAL_IMAGES = 64


def load_arm_data(
    project: Project, product: str, folders: list[Path], scale: WorkingScale | None = None
) -> tuple[ArmData, list[Record]]:
    """Return the images of one product at the segmenter's size, and a record of each test image in their order.

    Args:
        project: the project.
        product: name of the product.
        folders: synthetic sets whose accepted pairs are used.
        scale: working resolution; None: that of `product_scale`.

    Raises:
        InputError: a set without an accepted pair.
    """
    size, raw = project.params.segment.image_size, project.path(f"data/raw/{product}")
    train, test = (split_records_of(project, product, split) for split in ("train", "test"))
    ordered = [r for r in test if r.mask is not None] + [r for r in test if r.mask is None]
    defects, normal = [r for r in train if r.mask is not None], [r for r in train if r.mask is None]
    types: list[Hashable] = [(product, r.defect) for r in defects]
    tested = [rows[0] for rows in image_groups(ordered)]
    pairs = [(accepted_rows(project, folder), folder) for folder in folders]
    if isinstance(size, int):
        data = ArmData(
            defect_types=types,
            real=load_samples(defects, raw, size),
            normal=load_samples(normal, raw, size, limit=MAX_NORMAL_IMAGES),
            synthetic=[s for rows, folder in pairs for s in load_samples(rows, folder, size)],
            test=load_samples(ordered, raw, size),
        )
        return data, tested
    scale = scale or product_scale(project, product)
    found, limit = find_images(defects, raw), MAX_CROPPED_NORMAL_IMAGES if scale.crops > 1 else MAX_NORMAL_IMAGES
    data = ArmData(
        defect_types=types,
        real=load_crops(found, scale),
        normal=load_crops(find_images(normal, raw, limit), scale) + load_normal_places(found, scale),
        synthetic=[s for rows, folder in pairs for s in load_crops(find_images(rows, folder), scale)],
        test=StoredSamples([(image, scale) for image in find_images(ordered, raw)]),
        scale=scale,
    )
    return data, tested


def product_scale(project: Project, product: str) -> WorkingScale:
    """Return the working resolution of `segment.image_size: auto`, from the real images of both sides of the split.

    Raises:
        InputError: a mask cannot be read.
    """
    raw = project.path(f"data/raw/{product}")
    records = [record for split in ("train", "test") for record in split_records_of(project, product, split)]
    widths = [component_widths(load_mask(raw / record.mask)) for record in records if record.mask is not None]
    return choose_scale(
        [(record.height, record.width) for record in records], np.concatenate(widths).tolist() if widths else []
    )


def accepted_rows(project: Project, folder: Path) -> list[ManifestRow]:
    """Return the manifest rows of the accepted pairs in a synthetic set.

    Raises:
        InputError: there is none.
    """
    rows = [row for row in manifest_rows(folder / "manifest.parquet") if row.accepted]
    if not rows:
        relative = folder.relative_to(project.root).as_posix()
        raise InputError(f"{relative}: has no accepted pair; expected at least one (see manifest.parquet for reasons)")
    return rows


def arm_folders(project: Project, product: str, arm: Arm) -> list[Path]:
    """Return the folders of the synthetic sets that an arm is trained on."""
    return [project.path(synthetic_folder(product, generator)) for generator in arm.generators]
