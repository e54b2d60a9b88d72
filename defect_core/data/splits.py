"""Assignment of real images to training and testing, without shared content.

The images of a *unit* are always on one side: the records of one image, the images of one group, and near-duplicates
where they are grouped. Without groups each image is a unit.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from defect_core.data.near_duplicates import NearDuplicatePair
from defect_core.data.problems import printable
from defect_core.data.records import GOOD, Record
from defect_core.data.split_units import Unit, find_units, used_hints
from defect_core.errors import InputError

POLICIES = ("first_third", "half", "two_fold", "stable")
NORMAL_TRAIN_FRACTION = 0.8
"""Fraction of the normal images without a split that is used for training."""
STABLE_TRAIN_FRACTION = 1 / 3
"""Default fraction of the defect images that the policy `stable` uses for training."""


def split_records(
    records: Sequence[Record],
    policy: str,
    fold: int = 0,
    min_train: int = 1,
    max_train: int | None = None,
    train_fraction: float = STABLE_TRAIN_FRACTION,
    near_duplicates: Iterable[NearDuplicatePair] = (),
) -> list[Record]:
    """Return the records with `split` filled, in the order given.

    The n defect images of a product and defect type are sorted by name in natural order ('10' after '9'). The first
    of them are used for training and the others for testing:

    - `first_third`: max(floor(n / 3), min_train), the few-shot protocol of AnomalyDiffusion (Hu et al., AAAI 2024);
    - `half`: max(floor(n / 2), min_train);
    - `two_fold`: floor(n / 2); fold 1 exchanges training and testing.

    With groups, and for images with several defect types, this number is the largest one: units are visited in the
    order of their first image, and one that would exceed the number is used for testing. Only `min_train` may be
    exceeded, if the units do not fit. Defect types with few units are divided first.

    `stable` decides each image by a hash of its pixels, and each group by a hash of its name. A new image, or a new
    image of a group, therefore moves no other image. `train_fraction` of the defect images are used for training; the
    number varies. All images of a named group follow the fraction of the defect images.

    Normal images keep the split of their source. The others are divided by `NORMAL_TRAIN_FRACTION`. Defect images keep
    the split of their source if it puts images of the defect type on both sides.

    Args:
        records: real images of any products; an image with several defect types has several records.
        policy: one of `POLICIES`.
        fold: 0 or 1, used by `two_fold`.
        min_train: smallest number of training images of a defect type.
        max_train: largest number of them (few-shot); the surplus is used for testing. Not with `stable`.
        train_fraction: used by `stable`, between 0 and 1.
        near_duplicates: pairs that stay on one side. Where the source puts them on both sides, both are used for
            training.

    Raises:
        InputError: unknown policy or fold, a defect type with too few images or groups, no normal image for training,
            a group that the source puts on both sides, or the same image in training and testing.
    """
    _check_settings(policy, fold, min_train, max_train, train_fraction)
    by_product: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_product[record.product].append(record)
    pairs, sides = list(near_duplicates), {}
    for product, rows in by_product.items():
        units = find_units(rows, pairs)
        hints = used_hints(rows)
        for unit in units:
            unit.side = unit.hinted_side(hints)
            if policy == "stable" and not unit.side:
                unit.side = unit.stable_side(train_fraction, NORMAL_TRAIN_FRACTION)
        _divide_product(units, product, policy, fold, min_train, max_train)
        sides |= {id(row): unit.side for unit in units for row in unit.records}
    result = [replace(record, split=sides[id(record)]) for record in records]
    check_disjoint(result)
    return result


def check_disjoint(records: Sequence[Record]) -> None:
    """Check that no image content (sha256 of the pixels) is in both training and testing.

    Raises:
        InputError: naming both files of the first such pair.
    """
    train = {record.sha256: record for record in records if record.split == "train"}
    for record in records:
        if record.split == "test" and record.sha256 in train:
            other = train[record.sha256]
            raise InputError(
                f"{record.product}: {_shown(other)} (train) and {_shown(record)} (test) hold the same image; "
                "expected train and test to share no content"
            )


def _check_settings(policy: str, fold: int, min_train: int, max_train: int | None, train_fraction: float) -> None:
    if policy not in POLICIES:
        raise InputError(f"split.policy: unknown policy {policy!r}; expected one of {', '.join(POLICIES)}")
    if fold not in (0, 1):
        raise InputError(f"split.fold: {fold!r}; expected 0 or 1")
    if min_train < 1:
        raise InputError(f"split.min_train: {min_train!r}; expected at least 1")
    if max_train is not None and max_train < min_train:
        raise InputError(f"split.max_train: {max_train!r}; expected at least split.min_train, {min_train}")
    if policy == "stable" and max_train is not None:
        raise InputError(
            f"split.max_train: {max_train} with policy stable, where a new image would replace another one; "
            "remove it and set split.train_fraction"
        )
    if not 0 < train_fraction < 1:
        raise InputError(f"split.train_fraction: {train_fraction!r}; expected a number between 0 and 1")


def _divide_product(
    units: Sequence[Unit], product: str, policy: str, fold: int, min_train: int, max_train: int | None
) -> None:
    """Decide the undecided units of a product, and check the numbers of each defect type."""
    for defect in _rarest_first(units):
        members = [unit for unit in units if unit.count(defect)]
        if policy != "stable":
            _divide_defect(members, defect, policy, fold, min_train, max_train)
        _check_defect(members, defect, product, policy, min_train, max_train)
    _divide_normal(units, product, policy)


def _rarest_first(units: Sequence[Unit]) -> list[str]:
    """Return the defect types, those with the fewest units first: they have the least choice."""
    counts: dict[str, int] = defaultdict(int)
    for unit in units:
        for defect in {record.defect for record in unit.records if record.defect != GOOD}:
            counts[defect] += 1
    return sorted(counts, key=lambda defect: (counts[defect], defect))


def _divide_defect(
    members: Sequence[Unit], defect: str, policy: str, fold: int, min_train: int, max_train: int | None
) -> None:
    """Decide the undecided units of a defect type."""
    count = sum(unit.count(defect) for unit in members)
    if policy == "two_fold":
        first, least = count // 2, 1
    else:
        first, least = max(count // (3 if policy == "first_third" else 2), min_train), min_train
    front, back = ("train", "test") if policy != "two_fold" or fold == 0 else ("test", "train")
    in_front = sum(unit.count(defect) for unit in members if unit.side == front)
    in_train = sum(unit.count(defect) for unit in members if unit.is_settled and unit.side == "train")
    for unit in members:
        if unit.is_settled:
            continue
        size = unit.count(defect)
        if not unit.side:
            unit.side = front if in_front < least or in_front + size <= first else back
            in_front += size * (unit.side == front)
        if unit.side == "train" and max_train is not None and in_train + size > max_train and not unit.has_normal:
            unit.side = "test"
            in_front -= size * (front == "train")
        in_train += size * (unit.side == "train")
        unit.is_settled = True


def _check_defect(
    members: Sequence[Unit], defect: str, product: str, policy: str, min_train: int, max_train: int | None
) -> None:
    count = sum(unit.count(defect) for unit in members)
    train = sum(unit.count(defect) for unit in members if unit.side == "train")
    if min_train <= train < count:
        return
    label = next(record.label for unit in members for record in unit.records if record.defect == defect) or defect
    start = f"{product}: defect '{printable(label)}' has {count} example(s)"
    expected = f"expected at least {min_train} to train and 1 to test"
    if policy == "stable":
        raise InputError(
            f"{start}, of which policy stable uses {train} to train and {count - train} to test; {expected}; "
            "add examples, change split.train_fraction, or use another split.policy"
        )
    if all(len(unit.images) == 1 for unit in members):
        raise InputError(f"{start}, too few for policy {policy}; {expected}")
    cures = []
    if any(unit.group for unit in members):
        cures.append(f"use smaller groups in sources.{product}.options.group")
    if any(unit.has_near_duplicates for unit in members):
        cures.append("set split.near_duplicates: warn")
    if max_train is not None:
        cures.append("raise split.max_train")
    raise InputError(
        f"{start} in {len(members)} group(s), of which {train} can be used to train and {count - train} to test; "
        f"{expected}; {', or '.join(cures) or 'add examples of other items'}"
    )


def _divide_normal(units: Sequence[Unit], product: str, policy: str) -> None:
    """Decide the units of normal images that no hint and no defect image has decided."""
    normal = [unit for unit in units if unit.count(GOOD)]
    undecided = [unit for unit in normal if not unit.side]
    total = max(1, int(sum(unit.count(GOOD) for unit in undecided) * NORMAL_TRAIN_FRACTION))
    in_train = 0
    for unit in undecided:
        size = unit.count(GOOD)
        unit.side = "train" if in_train == 0 or in_train + size <= total else "test"
        in_train += size * (unit.side == "train")
    if normal and not any(unit.side == "train" for unit in normal):
        count = sum(unit.count(GOOD) for unit in normal)
        if policy == "stable" or any(unit.has_defect for unit in normal):
            raise InputError(
                f"{product}: all {count} normal images are used for testing (policy {policy}, with their groups); "
                "expected at least one to train; add normal images of other items, or use another split.policy"
            )
        raise InputError(f"{product}: all {count} normal images are marked test; expected at least one to train")


def _shown(record: Record) -> str:
    """Return the name of an image for a message."""
    return printable(record.source or record.image)
