"""Arms: what the downstream models are trained on besides the real images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from defect_core.errors import InputError

BASELINE_ARM = "real_only"
MIX_ARM = "mix"

_SWEEP = re.compile(r"(?P<base>.+)-at-(?P<percent>[1-9][0-9]?|100)")


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: name in params.yaml.
        base: `real_only`, `mix` or a generator; equal to `name` except for an arm of a sweep.
        generators: generators whose synthetic sets are used.
        fraction: fraction of the defect slots of a batch that is synthetic, above 0 to 1. None: as the section of the
            downstream model says.
    """

    name: str
    base: str
    generators: tuple[str, ...]
    fraction: float | None = None


def parse_arm(name: str, generators: Sequence[str]) -> Arm:
    """Return the arm with this name.

    Args:
        name: `real_only`, `mix`, a generator, or `BASE-at-PERCENT` for one point of a sweep over the synthetic
            fraction, such as `crop-paste-at-25`.
        generators: the generators of the project.

    Raises:
        InputError: no such arm.
    """
    if name in generators:
        return Arm(name, name, (name,))
    if name == BASELINE_ARM:
        return Arm(name, name, ())
    if name == MIX_ARM:
        return Arm(name, name, tuple(generators))
    match = _SWEEP.fullmatch(name)
    if match and match["base"] in (MIX_ARM, *generators):
        base = parse_arm(match["base"], generators)
        return Arm(name, base.base, base.generators, int(match["percent"]) / 100)
    raise InputError(
        f"unknown arm {name!r}; expected {BASELINE_ARM}, {MIX_ARM} or one of generators, the last two also as "
        "NAME-at-PERCENT (1 to 100: percentage of the defect slots that is synthetic)"
    )
