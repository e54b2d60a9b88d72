"""What the downstream models of an arm are trained and tested on."""

from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np

from defect_core.data.manifest import ManifestRow, accepted_rows
from defect_core.data.masks import component_widths
from defect_core.data.records import Record, image_groups, load_mask
from defect_core.errors import InputError
from defect_core.evaluation.segmentation.data import (
    MAX_NORMAL_IMAGES,
    ArmData,
    ImageInfo,
    StoredSamples,
    TrainingImages,
    find_images,
    load_samples,
    require_image,
)
from defect_core.evaluation.segmentation.scale import WorkingScale, choose_scale
from defect_core.evaluation.segmentation.tiles import load_crops, load_normal_places
from defect_core.project.arms import Arm
from defect_core.project.examples import split_records_of
from defect_core.project.paths import Project, synthetic_folder

# training defects, normal training images, test images
Sides = tuple[list[Record], list[Record], list[Record]]
# accepted pairs of each synthetic set, and its folder
Pairs = list[tuple[list[ManifestRow], Path]]
# Each has several crops; more images would need too much memory.
MAX_CROPPED_NORMAL_IMAGES = 64
# Held-out scores of as many normal images measure a threshold for 0.1 % overkill; those above the images that are
# trained on are scored only.
MAX_SCORED_NORMAL_IMAGES = 1000


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
    tested = [rows[0] for rows in image_groups(ordered)]
    pairs = [(require_pairs(project, folder), folder) for folder in folders]
    if isinstance(size, int):
        return _load_resized(raw, (defects, normal, ordered), pairs, size), tested
    return _load_cropped(raw, (defects, normal, ordered), pairs, scale or product_scale(project, product)), tested


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


def require_pairs(project: Project, folder: Path) -> list[ManifestRow]:
    """Return the manifest rows of the accepted pairs in a synthetic set.

    Raises:
        InputError: there is none.
    """
    rows = accepted_rows(folder)
    if not rows:
        relative = folder.relative_to(project.root).as_posix()
        raise InputError(f"{relative}: has no accepted pair; expected at least one (see manifest.parquet for reasons)")
    return rows


def arm_folders(project: Project, product: str, arm: Arm) -> list[Path]:
    """Return the folders of the synthetic sets that an arm is trained on."""
    return [project.path(synthetic_folder(product, generator)) for generator in arm.generators]


def _load_resized(raw: Path, records: Sides, pairs: Pairs, size: int) -> ArmData:
    """Return the images resized to a square.

    Args:
        raw: folder of the real images.
        records: training defects, normal training images, and test images.
        pairs: accepted pairs and their folder, by synthetic set.
        size: side of the images in pixels.
    """
    defects, normal, test = records
    normals = find_images(normal, raw)
    trained, scored = _choose_normals(len(normals), MAX_NORMAL_IMAGES, MAX_SCORED_NORMAL_IMAGES)
    positions = [scored.index(i) for i in trained]
    real = load_samples(defects, raw, size)
    whole = [normals[i].load((size, size)) for i in scored]
    return ArmData(
        defect_types=_defect_types(defects),
        real=real,
        normal=[whole[i] for i in positions],
        synthetic=[s for rows, folder in pairs for s in load_samples(rows, folder, size)],
        test=load_samples(test, raw, size),
        test_info=_describe(test, size),
        training=TrainingImages(
            real=real,
            real_info=_describe(defects, size),
            normal=whole,
            normal_info=_describe(normal, size, scored),
            trained_normal=positions,
            place_owner=[],
            synthetic_sources=[names for rows, _ in pairs for names in _sources(rows)],
        ),
    )


def _load_cropped(raw: Path, records: Sides, pairs: Pairs, scale: WorkingScale) -> ArmData:
    """Return training crops and whole test images at the working resolution; arguments as `_load_resized`."""
    defects, normal, test = records
    images = find_images(defects, raw)
    limit = MAX_CROPPED_NORMAL_IMAGES if scale.crops > 1 else MAX_NORMAL_IMAGES
    every = find_images(normal, raw)
    trained, _ = _choose_normals(len(every), limit, limit)
    normals = [every[i] for i in trained]
    places = load_normal_places(images, scale)
    return ArmData(
        defect_types=_defect_types(defects),
        real=load_crops(images, scale),
        normal=load_crops(normals, scale) + [crop for crops in places for crop in crops],
        synthetic=[s for rows, folder in pairs for s in load_crops(find_images(rows, folder), scale)],
        test=StoredSamples([(image, scale) for image in find_images(test, raw)]),
        scale=scale,
        test_info=_describe(test, scale),
        training=TrainingImages(
            real=StoredSamples([(image, scale) for image in images]),
            real_info=_describe(defects, scale),
            normal=StoredSamples([(image, scale) for image in normals]),
            normal_info=_describe(normal, scale, trained),
            trained_normal=list(range(len(normals))),
            place_owner=[number for number, crops in enumerate(places) if crops],
            synthetic_sources=[names for rows, _ in pairs for names in _sources(rows)],
        ),
    )


def _defect_types(records: Sequence[Record]) -> list[Hashable]:
    return [(record.product, record.defect) for record in records]


def _choose_normals(count: int, trained: int, scored: int) -> tuple[list[int], list[int]]:
    """Return the indices of the normal images to train on, evenly spaced, and of those and more to score."""
    chosen = _spaced(count, trained)
    rest = sorted(set(range(count)) - set(chosen))
    return chosen, sorted({*chosen, *(rest[i] for i in _spaced(len(rest), max(0, scored - len(chosen))))})


def _spaced(count: int, limit: int) -> list[int]:
    """Return at most `limit` indices below `count`, evenly spaced as in `find_images`."""
    return list(range(count)) if count <= limit else [i * count // limit for i in range(limit)]


def _describe(
    records: Sequence[Record], size: int | WorkingScale, chosen: Sequence[int] | None = None
) -> list[ImageInfo]:
    """Return what is known of the images of records, in the order of `find_images`, or of some of them."""
    infos = []
    for rows in image_groups(records):
        first = rows[0]
        height, width = (size, size) if isinstance(size, int) else size.size(first.height, first.width)
        types = tuple(dict.fromkeys(row.defect for row in rows if row.mask is not None))
        area = first.height * first.width / (height * width)
        infos.append(ImageInfo(first.image, first.group or first.image, types, area))
    return infos if chosen is None else [infos[i] for i in chosen]


def _sources(rows: Sequence[ManifestRow]) -> list[frozenset[str]]:
    """Return for each synthetic image the names of the real images of its product that it was made from."""
    found: dict[str, set[str]] = {}
    for row in rows:
        names = {row.source_image}
        if row.source_product in (None, row.product):
            names.add(row.source_mask)
        found.setdefault(require_image(row), set()).update(name for name in names if name)
    return [frozenset(names) for names in found.values()]
