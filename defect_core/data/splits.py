"""Which real images train and which test, disjoint by content."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from defect_core.data.records import GOOD, Record, natural_key
from defect_core.errors import InputError

POLICIES = ("first_third", "half", "two_fold")
GOOD_TRAIN_FRACTION = 0.8


def split_records(
    records: Sequence[Record], policy: str, fold: int = 0, min_train: int = 1, max_train: int | None = None
) -> list[Record]:
    """Fill `split` of every record; the order of the records stays.

    Defect images, per product and defect in the natural order of their ids ('10' after '9'), n of them:
    `first_third` trains on the first max(floor(n / 3), min_train) (the few-shot protocol of AnomalyDiffusion, Hu et
    al., AAAI 2024), `half` on the first max(floor(n / 2), min_train), `two_fold` on the first floor(n / 2) (fold 0)
    or on all others (fold 1); the rest test. `max_train` caps the training side of each defect (few-shot: the first
    so many of it), and what it gives up tests. Good images keep the split they came with; those without one are
    split 80 to 20 in natural order.

    Raises:
        InputError: unknown policy or fold, a defect with too few examples to train and to test, no good image
            in train, or the same content in both.
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
    split: dict[Any, str] = {}
    for (product, defect), group in groups.items():
        ordered = sorted(group, key=lambda record: natural_key(record.image))
        part = _split_good if defect == GOOD else _split_defect
        seen = 0
        for record, value in zip(ordered, part(ordered, product, policy, fold, min_train), strict=True):
            surplus = defect != GOOD and value == "train" and max_train is not None and seen >= max_train
            split[id(record)] = "test" if surplus else value
            seen += value == "train"
    done = [replace(record, split=split[id(record)]) for record in records]
    assert_disjoint(done)
    return done


def assert_disjoint(records: Sequence[Record]) -> None:
    """Check that no image content (sha256 of the pixels) is in both train and test.

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
            f"{product}: defect {ordered[0].defect!r} has {count} example(s), too few for policy {policy} with at "
            f"least {min_train} to train; expected at least {min_train} to train and 1 to test"
        )
    front, back = ("train", "test") if policy != "two_fold" or fold == 0 else ("test", "train")
    return [front] * first + [back] * (count - first)


def _split_good(ordered: list[Record], product: str, *_: Any) -> list[str]:
    unknown = sum(record.split == "" for record in ordered)
    train = max(1, int(unknown * GOOD_TRAIN_FRACTION))
    values = []
    for record in ordered:
        if record.split:
            values.append(record.split)
        else:
            values.append("train" if train > 0 else "test")
            train -= 1
    if "train" not in values:
        raise InputError(f"{product}: all {len(ordered)} good images are marked test; expected at least one to train")
    return values
