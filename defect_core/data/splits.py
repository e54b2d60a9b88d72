"""Assignment of real images to training and testing, without shared content."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from defect_core.data.records import GOOD, Record, natural_key
from defect_core.errors import InputError

POLICIES = ("first_third", "half", "two_fold")
NORMAL_TRAIN_FRACTION = 0.8
"""Fraction of the normal images without a split that is used for training."""


def split_records(
    records: Sequence[Record], policy: str, fold: int = 0, min_train: int = 1, max_train: int | None = None
) -> list[Record]:
    """Return the records with `split` filled, in the order given.

    The n defect images of a product and defect type are sorted by name in natural order ('10' after '9'). The first
    of them are used for training and the others for testing:

    - `first_third`: max(floor(n / 3), min_train), the few-shot protocol of AnomalyDiffusion (Hu et al., AAAI 2024);
    - `half`: max(floor(n / 2), min_train);
    - `two_fold`: floor(n / 2); fold 1 exchanges training and testing.

    Normal images keep the split of their source. The others are divided by `NORMAL_TRAIN_FRACTION`.

    Args:
        records: real images of any products.
        policy: one of `POLICIES`.
        fold: 0 or 1, used by `two_fold`.
        min_train: smallest number of training images of a defect type.
        max_train: largest number of them (few-shot); the surplus is used for testing.

    Raises:
        InputError: unknown policy or fold, a defect type with too few images, no normal image for training, or the
            same image in training and testing.
    """
    if policy not in POLICIES:
        raise InputError(f"split.policy: unknown policy {policy!r}; expected one of {', '.join(POLICIES)}")
    if fold not in (0, 1):
        raise InputError(f"split.fold: {fold!r}; expected 0 or 1")
    if min_train < 1:
        raise InputError(f"split.min_train: {min_train!r}; expected at least 1")
    if max_train is not None and max_train < min_train:
        raise InputError(f"split.max_train: {max_train!r}; expected at least split.min_train, {min_train}")
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.product, record.defect].append(record)
    splits: dict[int, str] = {}
    for (product, defect), group in groups.items():
        ordered = sorted(group, key=lambda record: natural_key(record.image))
        if defect == GOOD:
            values = _split_normal(ordered, product)
        else:
            values = _limit_train(_split_defect(ordered, product, policy, fold, min_train), max_train)
        splits |= {id(record): value for record, value in zip(ordered, values, strict=True)}
    result = [replace(record, split=splits[id(record)]) for record in records]
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
                f"{record.product}: {other.image} (train) and {record.image} (test) hold the same image; "
                "expected train and test to share no content"
            )


def _split_defect(ordered: list[Record], product: str, policy: str, fold: int, min_train: int) -> list[str]:
    count = len(ordered)
    if policy == "two_fold":
        first = count // 2
        train = first if fold == 0 else count - first
    else:
        first = train = max(count // (3 if policy == "first_third" else 2), min_train)
    if train < min_train or train >= count:
        raise InputError(
            f"{product}: defect {ordered[0].defect!r} has {count} example(s), too few for policy {policy}; "
            f"expected at least {min_train} to train and 1 to test"
        )
    front, back = ("train", "test") if policy != "two_fold" or fold == 0 else ("test", "train")
    return [front] * first + [back] * (count - first)


def _limit_train(values: list[str], max_train: int | None) -> list[str]:
    """Return the values with the surplus of `max_train` training images moved to testing."""
    if max_train is None:
        return values
    training = [index for index, value in enumerate(values) if value == "train"]
    surplus = set(training[max_train:])
    return ["test" if index in surplus else value for index, value in enumerate(values)]


def _split_normal(ordered: list[Record], product: str) -> list[str]:
    unknown = sum(record.split == "" for record in ordered)
    train = max(1, int(unknown * NORMAL_TRAIN_FRACTION))
    values = []
    for record in ordered:
        if record.split:
            values.append(record.split)
        else:
            values.append("train" if train > 0 else "test")
            train -= 1
    if "train" not in values:
        raise InputError(f"{product}: all {len(ordered)} normal images are marked test; expected at least one to train")
    return values
