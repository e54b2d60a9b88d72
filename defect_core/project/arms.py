"""What the arms of a downstream judge train on besides the real images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from defect_core.errors import InputError

BASELINE_ARM = "real_only"
MIX_ARM = "mix"

_SWEPT = re.compile(r"(?P<base>.+)-at-(?P<percent>[1-9][0-9]?|100)")


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: as it stands in params.yaml.
        base: `real_only`, `mix` or a generator; the name itself, save for an arm of a sweep.
        generators: whose synthetic sets it trains on.
        fraction: part of the defect places that goes to synthetic pairs, above 0 to 1; None: as the judge's section
            of params.yaml says.
    """

    name: str
    base: str
    generators: tuple[str, ...]
    fraction: float | None = None


def parse_arm(name: str, generators: Sequence[str]) -> Arm:
    """The arm that a name stands for: `real_only`, `mix`, a generator, or `BASE-at-PERCENT` for a point of a sweep over
    the synthetic share, such as `crop-paste-at-25`: a name that is safe in files, commands and addresses.

    Raises:
        InputError: no such arm.
    """
    if name in generators:
        return Arm(name, name, (name,))
    if name == BASELINE_ARM:
        return Arm(name, name, ())
    if name == MIX_ARM:
        return Arm(name, name, tuple(generators))
    swept = _SWEPT.fullmatch(name)
    if swept and swept["base"] in (MIX_ARM, *generators):
        base = parse_arm(swept["base"], generators)
        return Arm(name, base.base, base.generators, int(swept["percent"]) / 100)
    raise InputError(
        f"unknown arm {name!r}; expected {BASELINE_ARM}, {MIX_ARM} or one of generators, the last two also as "
        "NAME-at-PERCENT (1 to 100: the synthetic part of the defect places)"
    )
