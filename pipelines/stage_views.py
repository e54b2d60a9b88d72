"""One row per stage: which metadata and which asset checks its output has in Dagster."""

from collections.abc import Callable
from dataclasses import dataclass

from defect_core.graph.instances import Instance
from defect_core.project.paths import Project
from pipelines import findings, metadata
from pipelines.metadata import Metadata


@dataclass(frozen=True)
class Check:
    """One asset check.

    Attributes:
        name: name in Dagster.
        about: one line for people.
        find: lists the problems of an instance.
        is_blocking: whether a failure means wrong data and stops what comes after. Otherwise it means poor data.
    """

    name: str
    about: str
    find: findings.Finder
    is_blocking: bool = True


@dataclass(frozen=True)
class StageView:
    """What Dagster shows and checks of a stage.

    Attributes:
        read_metadata: reads the metadata of an instance that is up to date.
        checks: in the order of the UI.
    """

    read_metadata: Callable[[Project, Instance], Metadata]
    checks: tuple[Check, ...] = ()


REAL_MASKS = Check(
    "real_masks_sane",
    "Each real defect has a mask in the size of its image, neither empty nor over the whole image.",
    findings.check_real_masks,
)
DISJOINT_SPLIT = Check(
    "disjoint_split",
    "No image is in both train and test, by its recorded pixel digest or by its file.",
    findings.check_disjoint_split,
)
PAIR_CHECKS = (
    Check(
        "pairs_aligned",
        "Each accepted pair has an image and a mask of one size; no mask is empty.",
        findings.check_pair_files,
    ),
    Check(
        "masks_sane",
        "Masks are black and white, have the area in the manifest, and do not cover the whole image.",
        findings.check_masks,
    ),
    Check(
        "background_kept",
        "Generators with the capability keeps_background changed no pixel outside the mask. The manifest is checked "
        "for all pairs, the pixels for some.",
        findings.check_backgrounds,
    ),
    Check(
        "no_real_image",
        "No accepted image equals a real training or test image, pixel for pixel.",
        findings.check_no_real_image,
    ),
    Check(
        "enough_accepted",
        "Each defect type has as many accepted pairs as params.yaml requires.",
        findings.check_accepted_counts,
        is_blocking=False,
    ),
    Check(
        "mask_sizes_like_real",
        f"No mask is {findings.SIZE_FACTOR} times larger or smaller than all real training masks of its defect type.",
        findings.check_mask_sizes,
        is_blocking=False,
    ),
)
NOT_MEMORISED = Check(
    "not_memorised",
    f"At most {findings.MAX_COPIES:.0%} of the images of a defect type nearly repeat a training image.",
    findings.check_copies,
    is_blocking=False,
)
NOT_WORSE = Check(
    "not_worse_than_real_only",
    "No arm with synthetic pairs has a lower pixel AP than real_only.",
    findings.check_against_baseline,
    is_blocking=False,
)

STAGE_VIEWS: dict[str, StageView] = {
    "ingest": StageView(metadata.read_ingest, (REAL_MASKS,)),
    "split": StageView(metadata.read_split, (DISJOINT_SPLIT,)),
    "adapt": StageView(metadata.read_adapt),
    "finetune": StageView(metadata.read_finetune),
    "finetune_catalogue": StageView(metadata.read_finetune),
    "synthesize": StageView(metadata.read_synthesize, PAIR_CHECKS),
    "normals": StageView(metadata.read_metrics),
    "score": StageView(metadata.read_metrics, (NOT_MEMORISED,)),
    "segment": StageView(metadata.read_segment, (NOT_WORSE,)),
    "segment_unified": StageView(metadata.read_segment),
    "classify": StageView(metadata.read_segment),
    "detect": StageView(metadata.read_metrics),
    "release": StageView(metadata.read_release),
    "leaderboard": StageView(metadata.read_leaderboard),
}
