"""The split policies against an oracle, and leaks."""

import dataclasses

import pytest

from defect_core.data.records import Record
from defect_core.data.splits import assert_disjoint, split_records
from defect_core.errors import InputError


def _records(count, defect="cut", split="", start=0):
    ids = range(start, start + count)
    # shuffled, so that the order of the table cannot be what decides
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
        done = split_records(_records(count), policy, fold)
        assert _train_ids(done) == set(range(train))
        assert {r.split for r in done} == {"train", "test"}
        assert [r.image for r in done] == [r.image for r in _records(count)]
        if policy == "two_fold":
            swapped = split_records(_records(count), policy, fold=1)
            assert _train_ids(swapped) == set(range(train, count))


def test_min_train():
    assert _train_ids(split_records(_records(9), "first_third", min_train=5)) == set(range(5))
    with pytest.raises(InputError, match="at least 9 to train"):
        split_records(_records(9), "half", min_train=9)
    with pytest.raises(InputError, match="at least 5 to train"):
        split_records(_records(9), "two_fold", min_train=5)


@pytest.mark.parametrize("policy", ["first_third", "half", "two_fold"])
def test_max_train_caps_each_defect_and_the_rest_tests(policy):
    records = [*_records(12, "cut"), *_records(5, "dent"), *_records(20, "good")]
    capped = split_records(records, policy, max_train=2)
    plain = split_records(records, policy)
    for defect in ("cut", "dent"):
        first = sorted(_train_ids(plain, defect))[:2]
        assert sorted(_train_ids(capped, defect)) == first
    assert all(r.split in ("train", "test") for r in capped)
    assert _train_ids(capped, "good") == _train_ids(plain, "good")


def test_good_images_keep_their_split_or_go_80_to_20():
    hinted = _records(6, "good", "train") + _records(4, "good", "test", start=6)
    done = split_records(hinted + _records(6), "half")
    assert _train_ids(done, "good") == set(range(6))
    done = split_records(_records(10, "good") + _records(6), "half")
    assert _train_ids(done, "good") == set(range(8))
    assert split_records(done, "half") == done
    with pytest.raises(InputError, match="all 4 good images are marked test"):
        split_records(_records(4, "good", "test"), "half")


def test_defects_and_products_are_split_apart():
    other = [dataclasses.replace(r, product="q", sha256="q" + r.sha256) for r in _records(12)]
    done = split_records(_records(6) + _records(9, "dent") + other, "first_third")
    counts = {
        key: sum(r.split == "train" for r in done if (r.product, r.defect) == key)
        for key in {(r.product, r.defect) for r in done}
    }
    assert counts == {("p", "cut"): 2, ("p", "dent"): 3, ("q", "cut"): 4}


@pytest.mark.parametrize(
    "arguments", [{"policy": "thirds"}, {"policy": "half", "fold": 2}, {"policy": "half", "min_train": 0}]
)
def test_bad_settings(arguments):
    with pytest.raises(InputError, match="split.*expected"):
        split_records(_records(9), **arguments)


def test_a_planted_leak_is_found():
    records = _records(9) + _records(3, "good", "train")
    leak = dataclasses.replace(records[-1], image="good/copy.png", split="test")
    with pytest.raises(InputError, match=r"good/\d\.png \(train\) and good/copy\.png \(test\)"):
        split_records([*records, leak], "first_third")
    across = dataclasses.replace(records[0], defect="good", image="good/other.png", split="test", sha256="good0")
    with pytest.raises(InputError, match=r"good/0\.png \(train\) and good/other\.png \(test\)"):
        assert_disjoint([*records, across])
    assert_disjoint(split_records(records, "first_third"))
