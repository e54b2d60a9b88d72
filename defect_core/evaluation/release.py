"""The release gate: whether a synthetic set may replace the released one (no torch).

A candidate is promoted if there is evidence that it is no worse than each reference (the segmenter without synthetic
pairs, the last release, the best release so far) in each score of the gate. The test is one of non-inferiority: the
one-sided bound of the paired difference (see `metrics.paired`) must be above minus the margin. Every single test has an
error rate of at most 5 %, and all of them must pass, so the gate as a whole has (intersection-union test, Berger 1982).
The best of several arms is partly the best by chance: with `arm: best` the level is 1 - 0.05 / number of arms
(Bonferroni).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from defect_core.errors import InputError
from defect_core.evaluation.release_config import GateScore, ReleaseConfig
from defect_core.metrics.image_results import ArmScores
from defect_core.metrics.paired import PairedDifference, paired_difference

PROMOTED, KEPT, UNDECIDED = "promoted", "kept", "cannot be decided"
ERROR_RATE = 0.05
MIN_IMAGES = 10
"""Smallest number of test images of each class. With fewer the resamples do not show what another test set gives."""
LABELS = {
    "pixel_ap": "pixel AP",
    "pro": "PRO",
    "image_auroc": "image AUROC",
    "escape": "escapes",
    "pixel_f1_max": "F1-max",
    "iou": "IoU",
    "pixel_auroc": "pixel AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
}
TestVerdict = Literal["passed", "worse", "not shown", "undecided"]
_SEED_STEPS = (2, 5, 10, 20, 50)


@dataclass(frozen=True)
class GateTest:
    """The test of one score against one reference. All numbers are fractions, `difference` is positive for better.

    Attributes:
        against: name of the reference.
        score: name of the score.
        candidate: mean over the seeds of the candidate, None if undefined.
        reference: the same of the reference.
        difference: candidate minus reference; for escapes reference minus candidate.
        bound: lower one-sided bound of the difference.
        upper: upper one-sided bound.
        verdict: `passed`, `worse`, `not shown` or `undecided`.
        more_images: number of further test images that would decide, None if none would or not known.
        more_seeds: number of further seeds of both arms that would decide, None if none would or not known.
        needs_both: whether `more_images` and `more_seeds` decide together only.
        reason: why there is no difference, else "".
    """

    against: str
    score: str
    candidate: float | None
    reference: float | None
    difference: float | None = None
    bound: float | None = None
    upper: float | None = None
    verdict: TestVerdict = "undecided"
    more_images: int | None = None
    more_seeds: int | None = None
    needs_both: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Decision:
    """The verdict of the gate.

    Attributes:
        verdict: `promoted`, `kept` or `cannot be decided`.
        reason: one line.
        rule: the rule in words.
        level: of the one-sided bounds.
        tests: one per reference and score.
    """

    verdict: str
    reason: str
    rule: str
    level: float
    tests: tuple[GateTest, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the decision as JSON content; `decision` is the verdict."""
        return {
            "decision": self.verdict,
            "reason": self.reason,
            "rule": self.rule,
            "level": self.level,
            "tests": [asdict(test) for test in self.tests],
        }


def decide(
    arm: str,
    candidate: ArmScores,
    references: Mapping[str, ArmScores],
    config: ReleaseConfig,
    offered: int = 1,
    missing: Mapping[str, str] | None = None,
) -> Decision:
    """Return the decision about a candidate.

    Args:
        arm: name of the candidate.
        candidate: its scores.
        references: scores by name: of the arm without synthetic pairs and of releases.
        config: the rule.
        offered: number of arms from which the candidate was chosen by its score.
        missing: by score, why an arm does not have it.
    """
    level = 1 - ERROR_RATE / max(1, offered)
    rule = describe_rule(config, level)
    counts = int(candidate.label.sum()), int((~candidate.label).sum())
    if min(counts) < MIN_IMAGES:
        needed = " and ".join(
            f"{MIN_IMAGES - count} more {kind}"
            for count, kind in zip(counts, ("defective", "normal"), strict=True)
            if count < MIN_IMAGES
        )
        reason = (
            f"{counts[0]} defective and {counts[1]} normal test images; expected at least {MIN_IMAGES} of each: "
            f"{needed} test images"
        )
        return Decision(UNDECIDED, f"{arm}: cannot be decided: {reason}", rule, level)
    tests = tuple(
        _test(name, score, candidate, reference, config, level, missing or {})
        for name, reference in references.items()
        for score in config.scores
    )
    return Decision(*_verdict(arm, tests, config), rule, level, tests)


def describe_rule(config: ReleaseConfig, level: float) -> str:
    """Return the rule in words."""
    names = ", ".join(
        f"{_label(score, config)} (-{100 * config.margins.get(score, config.margin):g})" for score in config.scores
    )
    return (
        f"promoted if the one-sided {100 * level:g} % bound of the paired difference, over test images and seeds, is "
        f"above minus the margin, in points, for each of {names}, against each reference"
    )


def describe_test(test: GateTest, config: ReleaseConfig) -> str:
    """Return a test in words, in points."""
    if test.difference is None or test.bound is None or test.upper is None:
        return f"{_label(test.score, config)} against {test.against}: {test.reason}"
    return (
        f"{_label(test.score, config)} {100 * test.difference:+.1f} points against {test.against}, "
        f"bounds {100 * test.bound:+.1f} and {100 * test.upper:+.1f}"
    )


def _test(
    name: str,
    score: GateScore,
    candidate: ArmScores,
    reference: ArmScores,
    config: ReleaseConfig,
    level: float,
    missing: Mapping[str, str],
) -> GateTest:
    key, sign = (f"escape@{config.overkill:g}", -1) if score == "escape" else (score, 1)
    means = [_mean(arm, key) for arm in (candidate, reference)]
    try:
        found = paired_difference(candidate, reference, key)
    except InputError as error:
        reason = missing.get(score, str(error)) if None in means else str(error)
        more_seeds = max(0, 2 - min(len(candidate.seeds), len(reference.seeds))) or None
        return GateTest(
            against=name,
            score=score,
            candidate=means[0],
            reference=means[1],
            more_seeds=more_seeds,
            reason=reason,
        )
    half, difference = found.half_width(level), sign * found.value
    margin = config.margins.get(score, config.margin)
    verdict, images, seeds, needs_both = _classify(found, difference, half, margin, level)
    return GateTest(
        against=name,
        score=score,
        candidate=means[0],
        reference=means[1],
        difference=round(difference, 6),
        bound=round(difference - half, 6),
        upper=round(difference + half, 6),
        verdict=verdict,
        more_images=images,
        more_seeds=seeds,
        needs_both=needs_both,
    )


def _classify(
    found: PairedDifference, difference: float, half: float, margin: float, level: float
) -> tuple[TestVerdict, int | None, int | None, bool]:
    """Return the verdict of one test, and how many test images or seeds, or both, would decide it."""
    if difference - half > -margin:
        return "passed", None, None, False
    if difference + half < -margin:
        return "worse", None, None, False
    if half <= margin:
        return "not shown", None, None, False
    # An interval that is as short as the margin is precise enough, whatever it shows.
    enough = max(abs(difference + margin), margin)
    images, seeds = found.images_needed(enough, level), found.seeds_needed(enough, level)
    if images is None and seeds is None:
        for more_seeds in _SEED_STEPS:
            images = found.images_needed(enough, level, more_seeds)
            if images is not None:
                return "undecided", images, more_seeds, True
    return "undecided", images, seeds, False


def _verdict(arm: str, tests: tuple[GateTest, ...], config: ReleaseConfig) -> tuple[str, str]:
    """Return the verdict of all tests and the reason."""
    for kind, text in (("worse", "is worse than"), ("not shown", "is not shown to be as good as")):
        failed = [test for test in tests if test.verdict == kind]
        if failed:
            worst = min(failed, key=lambda test: test.bound or 0.0)
            return KEPT, f"{arm} {text} {worst.against}: {describe_test(worst, config)}"
    undecided = [test for test in tests if test.verdict == "undecided"]
    if not undecided:
        closest = min(tests, key=lambda test: test.bound or 0.0)
        return PROMOTED, f"{arm} is no worse than each reference; closest: {describe_test(closest, config)}"
    for test in undecided:
        if test.difference is None:
            return UNDECIDED, f"{arm}: {UNDECIDED}: {describe_test(test, config)}"
    widest = max(undecided, key=lambda test: (test.upper or 0.0) - (test.bound or 0.0))
    return UNDECIDED, f"{arm}: {UNDECIDED}: {_advice(undecided)}; widest: {describe_test(widest, config)}"


def _advice(tests: list[GateTest]) -> str:
    """Return how many test images or seeds would decide all tests."""
    images = [test.more_images for test in tests if test.more_images is not None]
    seeds = [test.more_seeds for test in tests if test.more_seeds is not None]
    alone = [test for test in tests if not test.needs_both]
    parts = []
    if len(alone) == len(tests) == len(images):
        parts.append(f"about {max(images)} more test images")
    if len(alone) == len(tests) == len(seeds):
        parts.append(f"about {max(seeds)} more seeds")
    if parts:
        return " or ".join(parts)
    if not images or not seeds:
        return "not even a hundred times the test images and seeds decide"
    return f"about {max(images)} more test images together with {max(seeds)} more seeds"


def _label(score: str, config: ReleaseConfig) -> str:
    return LABELS[score] + (f" at {100 * config.overkill:g} % overkill" if score == "escape" else "")


def _mean(arm: ArmScores, name: str) -> float | None:
    values = arm.value.get(name)
    return None if values is None or not np.isfinite(values).all() else round(float(values.mean()), 6)
