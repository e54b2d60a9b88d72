"""Split policies, compared with an independent implementation, and leaks between training and testing."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from defect_core.data.layouts import ingest_source
from defect_core.data.records import Record, record_rows
from defect_core.data.splits import check_disjoint, split_records
from defect_core.errors import InputError


def _records(count, defect="cut", split="", start=0):
    ids = range(start, start + count)
    # The table is shuffled, so that its order cannot decide.
    ids = sorted(ids, key=lambda index: (index * 7) % 31)
    return [Record("p", defect, f"{defect}/{i}.png", None, split, f"{defect}{i}", 9, 9) for i in ids]


def _train_ids(records, defect="cut"):
    return {int(r.image[len(defect) + 1 : -4]) for r in records if r.defect == defect and r.split == "train"}


@pytest.mark.parametrize("count", range(1, 31))
def test_policies_take_the_first_ids_in_natural_order(count):
    expected = {
        ("first_third", 0): max(1, count // 3),
        ("half", 0): max(1, count // 2),
        ("two_fold", 0): count // 2,
    }
    for (policy, fold), train in expected.items():
        if train < 1 or train >= count:
            with pytest.raises(InputError, match=f"'cut' has {count} example"):
                split_records(_records(count), policy, fold)
            continue
        divided = split_records(_records(count), policy, fold)
        assert _train_ids(divided) == set(range(train))
        assert {r.split for r in divided} == {"train", "test"}
        assert [r.image for r in divided] == [r.image for r in _records(count)]
        if policy == "two_fold":
            swapped = split_records(_records(count), policy, fold=1)
            assert _train_ids(swapped) == set(range(train, count))


def _expected_train(names, policy, fold, min_train):
    """Return the training names by a second implementation: sorted by number, and counted one by one."""
    ordered = sorted(names, key=lambda name: int("".join(c for c in name if c.isdigit())))
    if policy == "two_fold":
        half = ordered[: len(ordered) // 2]
        return half if fold == 0 else ordered[len(half) :]
    part = {"first_third": 3, "half": 2}[policy]
    count = 0
    while (count + 1) * part <= len(ordered):
        count += 1
    return ordered[: max(count, min_train)]


@pytest.mark.parametrize("min_train", [1, 2, 5])
@pytest.mark.parametrize(("policy", "fold"), [("first_third", 0), ("half", 0), ("two_fold", 0), ("two_fold", 1)])
def test_policies_agree_with_the_second_implementation(policy, fold, min_train):
    for count in range(1, 31):
        # The numbers have gaps, the names have another order as text, and the table is shuffled.
        names = [f"cut/{3 * i + 5}{'_b' if i % 4 == 1 else ''}.{'jpg' if i % 5 == 2 else 'png'}" for i in range(count)]
        names.sort(key=lambda name: hash_order(name))
        records = [Record("p", "cut", name, None, "", name, 9, 9) for name in names]
        expected = set(_expected_train(names, policy, fold, min_train))
        if len(expected) < min_train or len(expected) in (0, count):
            with pytest.raises(InputError, match=rf"'cut' has {count} example.*expected at least {min_train} to train"):
                split_records(records, policy, fold, min_train)
            continue
        divided = split_records(records, policy, fold, min_train)
        train, test = ({r.sha256 for r in divided if r.split == side} for side in ("train", "test"))
        assert train == expected and not train & test and train | test == set(names)


def hash_order(name):
    """Return a sort key that is independent of the order of the names."""
    return hashlib.sha256(name.encode()).hexdigest()


def test_min_train_raises_the_training_side_or_an_error():
    assert _train_ids(split_records(_records(9), "first_third", min_train=5)) == set(range(5))
    with pytest.raises(InputError, match="at least 9 to train"):
        split_records(_records(9), "half", min_train=9)
    with pytest.raises(InputError, match="at least 5 to train"):
        split_records(_records(9), "two_fold", min_train=5)


@pytest.mark.parametrize("policy", ["first_third", "half", "two_fold"])
def test_max_train_limits_each_defect_type(policy):
    records = [*_records(12, "cut"), *_records(5, "dent"), *_records(20, "good")]
    capped = split_records(records, policy, max_train=2)
    plain = split_records(records, policy)
    for defect in ("cut", "dent"):
        first = sorted(_train_ids(plain, defect))[:2]
        assert sorted(_train_ids(capped, defect)) == first
    assert all(r.split in ("train", "test") for r in capped)
    assert _train_ids(capped, "good") == _train_ids(plain, "good")


def test_normal_images_keep_their_split_or_are_divided_80_to_20():
    hinted = _records(6, "good", "train") + _records(4, "good", "test", start=6)
    divided = split_records(hinted + _records(6), "half")
    assert _train_ids(divided, "good") == set(range(6))
    divided = split_records(_records(10, "good") + _records(6), "half")
    assert _train_ids(divided, "good") == set(range(8))
    assert split_records(divided, "half") == divided
    with pytest.raises(InputError, match="all 4 normal images are marked test"):
        split_records(_records(4, "good", "test"), "half")


def test_defect_types_and_products_are_split_separately():
    other = [dataclasses.replace(r, product="q", sha256="q" + r.sha256) for r in _records(12)]
    divided = split_records(_records(6) + _records(9, "dent") + other, "first_third")
    counts = {
        key: sum(r.split == "train" for r in divided if (r.product, r.defect) == key)
        for key in {(r.product, r.defect) for r in divided}
    }
    assert counts == {("p", "cut"): 2, ("p", "dent"): 3, ("q", "cut"): 4}


@pytest.mark.parametrize(
    "arguments", [{"policy": "thirds"}, {"policy": "half", "fold": 2}, {"policy": "half", "min_train": 0}]
)
def test_bad_settings_are_errors(arguments):
    with pytest.raises(InputError, match=r"split.*expected"):
        split_records(_records(9), **arguments)


def test_shared_content_in_the_table_is_found():
    records = _records(9) + _records(3, "good", "train")
    leak = dataclasses.replace(records[-1], image="good/copy.png", split="test")
    with pytest.raises(InputError, match=r"good/\d\.png \(train\) and good/copy\.png \(test\)"):
        split_records([*records, leak], "first_third")
    across = dataclasses.replace(records[0], defect="good", image="good/other.png", split="test", sha256="good0")
    with pytest.raises(InputError, match=r"good/0\.png \(train\) and good/other\.png \(test\)"):
        check_disjoint([*records, across])
    check_disjoint(split_records(records, "first_third"))


@pytest.mark.parametrize("policy", ["first_third", "half", "two_fold"])
@pytest.mark.parametrize("disguise", ["other name", "other format", "normal image labelled as defect"])
def test_copied_files_are_found_by_their_pixels(tmp_path, policy, disguise):
    source, rng = tmp_path / "source", np.random.default_rng(0)

    def write(name, pixels=None, **options):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8) if pixels is None else pixels).save(path, **options)

    mask = np.zeros((20, 24), np.uint8)
    mask[4:9, 5:9] = 255
    for number in range(6):
        write(f"good/{number}.png")
        write(f"cut/{number}.png")
        write(f"masks/cut/{number}.png", mask)
    copied = "good/0.png" if disguise == "normal image labelled as defect" else "cut/0.png"
    pixels = np.asarray(Image.open(source / copied))
    if disguise == "other format":
        write("cut/9.bmp", pixels)
    else:
        write("cut/9.png", pixels, compress_level=0)
    write("masks/cut/9.png", mask)
    if disguise == "normal image labelled as defect":
        with pytest.raises(InputError, match=r"cut/9\.png \(cut\) and .*good/0\.png \(good\): the same image is a"):
            ingest_source(source, "p", tmp_path / "raw", "folder")
        return
    ingest_source(source, "p", tmp_path / "raw", "folder")
    duplicates = json.loads((tmp_path / "raw/left_out.json").read_text())["duplicates"]
    assert (
        len(duplicates) == 1 and duplicates[0]["image"].startswith("cut/9.") and duplicates[0]["same_as"] == "cut/0.png"
    )
    divided = split_records(record_rows(tmp_path / "raw/records.parquet"), policy)
    train, test = ({r.sha256 for r in divided if r.split == side} for side in ("train", "test"))
    assert len(train | test) == 12 and not train & test
