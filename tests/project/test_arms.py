"""Names of arms: what they stand for, and that they are safe wherever they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defect_core.data.records import check_name
from defect_core.errors import InputError
from defect_core.project.arms import Arm, parse_arm

GENERATORS = ("crop-paste", "seas", "odd-at-5")


@given(base=st.sampled_from((*GENERATORS, "mix")), percent=st.integers(1, 100))
def test_a_point_of_a_sweep_is_a_safe_name_with_its_share(base, percent):
    name = check_name(f"{base}-at-{percent}", "arm")
    own = GENERATORS if base == "mix" else (base,)
    assert parse_arm(name, GENERATORS) == Arm(name, base, own, percent / 100)


def test_plain_arms_say_no_share_and_a_generator_goes_before_a_sweep():
    assert parse_arm("real_only", GENERATORS) == Arm("real_only", "real_only", ())
    assert parse_arm("mix", GENERATORS).generators == GENERATORS
    assert parse_arm("odd-at-5", GENERATORS) == Arm("odd-at-5", "odd-at-5", ("odd-at-5",))


@pytest.mark.parametrize(
    "name",
    ["", "seas-at-0", "seas-at-101", "seas-at-07", "seas-at-2.5", "seas-at-", "real_only-at-50", "seas-at-5-at-5", "x"],
)
def test_what_is_no_arm_is_one_line(name):
    with pytest.raises(InputError, match="expected real_only, mix or one of generators") as caught:
        parse_arm(name, GENERATORS)
    assert "\n" not in str(caught.value)
