"""What the downstream models of an arm are trained and tested on."""

from pathlib import Path

from defect_core.data.manifest import ManifestRow, manifest_rows
from defect_core.data.records import Record
from defect_core.errors import InputError
from defect_core.evaluation.segmentation.data import MAX_NORMAL_IMAGES, ArmData, load_samples
from defect_core.project.arms import Arm
from defect_core.project.examples import split_records_of
from defect_core.project.paths import Project, synthetic_folder


def load_arm_data(project: Project, product: str, folders: list[Path]) -> tuple[ArmData, list[Record]]:
    """Return the images of one product at the segmenter's size, and the records of its test images in their order.

    Args:
        project: the project.
        product: name of the product.
        folders: synthetic sets whose accepted pairs are used.

    Raises:
        InputError: a set without an accepted pair.
    """
    size, raw = project.params.segment.image_size, project.path(f"data/raw/{product}")
    train, test = (split_records_of(project, product, split) for split in ("train", "test"))
    ordered = [r for r in test if r.mask is not None] + [r for r in test if r.mask is None]
    defects = [r for r in train if r.mask is not None]
    data = ArmData(
        defect_types=[(product, r.defect) for r in defects],
        real=load_samples(defects, raw, size),
        normal=load_samples([r for r in train if r.mask is None], raw, size, limit=MAX_NORMAL_IMAGES),
        synthetic=[s for folder in folders for s in load_samples(accepted_rows(project, folder), folder, size)],
        test=load_samples(ordered, raw, size),
    )
    return data, ordered


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
