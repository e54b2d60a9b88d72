"""Asset checks: what must hold of a stage's output. They run inside the asset, in no process of their own.

A blocking one says that data is wrong, and stops what comes after; the others say that it is poor.
"""

import warnings
from typing import NamedTuple

import dagster as dg

from defect_core.graph.instances import Instance
from defect_core.graph.table import Stage
from defect_core.project.params import Params
from defect_core.project.paths import Project
from pipelines import findings
from pipelines.findings import Found
from pipelines.partitions import partitions_of

NOT_WORSE = "not_worse_than_real_only"
_SHOWN = 10


class Check(NamedTuple):
    """`find` lists what is wrong with an instance."""

    name: str
    blocking: bool
    about: str
    find: findings.Finder


CHECKS: dict[str, tuple[Check, ...]] = {
    "ingest": (
        Check(
            "real_masks_sane", True, "Each defect image has a mask of its size that marks a part of it, not all.",
            findings.bad_real_masks,
        ),
    ),
    "split": (
        Check(
            "disjoint_split", True, "No image is in both train and test: neither by its pixels on record nor by its "
            "file as it lies there.", findings.leaks,
        ),
    ),
    "synthesize": (
        Check(
            "pairs_aligned", True, "Each accepted pair has an image and a mask of one size; no mask is empty.",
            findings.misaligned,
        ),
        Check(
            "masks_sane", True, "Masks are black and white, cover what the manifest says, and not the whole image.",
            findings.bad_masks,
        ),
        Check(
            "background_kept", True, "Methods with this capability left every pixel outside the mask as it was: of all "
            "pairs by the manifest, of some by their pixels.", findings.changed_backgrounds,
        ),
        Check(
            "no_real_image", True, "No accepted image is a real one, pixel for pixel, of either side of the split.",
            findings.real_images,
        ),
        Check(
            "enough_accepted", False, "Each defect got as many accepted pairs as params.yaml asks for.",
            findings.too_few,
        ),
        Check(
            "mask_sizes_like_real", False, f"No mask is {findings.SIZE_FACTOR} times larger or smaller than all real "
            "ones of its defect that the generator knew.", findings.odd_sizes,
        ),
    ),
    "score": (
        Check(
            "not_memorised", False, f"At most {findings.MOST_COPIES:.0%} of the images nearly repeat a training image "
            "of their defect.", findings.copies,
        ),
    ),
    "segment": (
        Check(NOT_WORSE, False, "No arm with synthetic pairs has a lower pixel AP than real_only.", findings.worse),
    ),
}  # fmt: skip


def check_specs(stage: Stage, params: Params) -> list[dg.AssetCheckSpec]:
    """The checks of a stage's asset, each with the asset's partitions: a good partition does not hide a bad one."""
    with warnings.catch_warnings():
        # partitions of checks are a preview in Dagster, whose version this project pins; a test holds them to it
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(
                check.name,
                asset=stage.name,
                blocking=check.blocking,
                description=check.about,
                partitions_def=partitions_of(stage, params),
            )
            for check in CHECKS.get(stage.name, ())
        ]


def check_results(project: Project, instance: Instance) -> list[dg.AssetCheckResult]:
    """The results of all checks of an instance that is up to date, in the order of `check_specs`."""
    return [_result(instance, check, check.find(project, instance)) for check in CHECKS.get(instance.stage.name, ())]


def _result(instance: Instance, check: Check, found: Found) -> dg.AssetCheckResult:
    more = len(found.wrong) - _SHOWN
    shown = "; ".join(found.wrong[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return dg.AssetCheckResult(
        check_name=check.name,
        asset_key=instance.stage.name,
        passed=not found.wrong,
        severity=dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN,
        description=shown or None,
        metadata={"instance": instance.address, "wrong": len(found.wrong), "looked_at": found.looked_at, **found.facts},
    )
