"""Settings of the release gate."""

from typing import Annotated, Literal

from pydantic import Field

from defect_core.settings import Settings

SegmentScore = Literal[
    "pixel_ap", "pixel_f1_max", "pro", "iou", "pixel_auroc", "image_auroc", "image_ap", "image_f1_max"
]
GateScore = Literal[SegmentScore, "escape"]


class ReleaseConfig(Settings):
    """Which synthetic set is offered for release, and the rule of the gate. Without this section nothing is released.

    See `docs/release_gate.md`.
    """

    arm: str = "best"
    """The arm that is offered; `best`: the arm with synthetic pairs that has the highest `score`."""
    score: SegmentScore = "pixel_ap"
    """The score by which `best` chooses, and which names the best release so far; higher is better."""
    scores: tuple[GateScore, ...] = Field(default=("pixel_ap", "pro", "image_auroc", "escape"), min_length=1)
    """The scores of the gate. Each must be shown to be no worse than `margin` below each reference. `escape`: the
    fraction of defective test images that the segmenter passes at the threshold for `overkill`."""
    margin: float = Field(default=0.01, gt=0, lt=1)
    """Largest loss that is accepted, of each score, as a fraction: 0.01 is one point."""
    margins: dict[GateScore, Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=dict)
    """Margins of single scores that differ from `margin`, such as `{escape: 0.03}`."""
    overkill: float = Field(default=0.01, gt=0, lt=1)
    """Fraction of the normal images that is rejected at the threshold of `escape`; one of 0.001, 0.01 and 0.05."""
