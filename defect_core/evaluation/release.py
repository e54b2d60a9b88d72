"""The release gate: whether a synthetic set may replace the released one (no torch)."""

from typing import Any, Literal

from defect_core.metrics.spread import beyond_spread, joint_spread
from defect_core.settings import Settings


class ReleaseConfig(Settings):
    """Which synthetic set is offered for release, and by which score. Without this section nothing is released."""

    arm: str = "best"
    """The arm that is offered; `best`: the arm with synthetic pairs that has the highest score."""
    score: Literal[
        "pixel_ap", "pixel_f1_max", "pro", "iou", "pixel_auroc", "image_auroc", "image_ap", "image_f1_max"
    ] = "pixel_ap"
    """The score that decides; higher is better."""


def decide(
    candidate: dict[str, Any], last: dict[str, Any] | None, baseline: dict[str, Any], score: str, baseline_name: str
) -> tuple[bool, str]:
    """Return whether a candidate is promoted, and the reason.

    A candidate is promoted unless it is worse than the last release or the baseline by more than their joint spread.
    With one seed there is no spread, so any decrease counts.

    Args:
        candidate: `arm`, and `mean` and `std` over the seeds by score.
        last: the same of the last release; None if nothing was released.
        baseline: the same of the arm without synthetic pairs.
        score: the score that decides; higher is better.
        baseline_name: name of the baseline in messages.
    """
    value = candidate["mean"].get(score)
    if value is None:
        return False, f"the candidate {candidate['arm']} has no {score}"
    for other, name in ((last, "the last release"), (baseline, baseline_name)):
        before = None if other is None else other["mean"].get(score)
        if other is None or before is None:
            continue
        spread = joint_spread(candidate["std"].get(score), other["std"].get(score)) or 0.0
        if value < before and beyond_spread(value - before, spread):
            return False, (
                f"{score} {value:.4f} with {candidate['arm']} is worse than {before:.4f} with {name}, "
                f"by {before - value:.4f}, beyond the spread of {spread:.4f}"
            )
    return True, f"{score} {value:.4f} with {candidate['arm']}: not worse than " + (
        f"the last release or {baseline_name}" if last else f"{baseline_name}; the first release"
    )
