"""Groups in the split, images with several defect types, and the policy for data that grows."""

import dataclasses
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defect_core.data.layouts import ingest_source
from defect_core.data.near_duplicates import NearDuplicatePair
from defect_core.data.records import Record, record_rows, save_png
from defect_core.data.splits import POLICIES, split_records
from defect_core.errors import InputError

COUNTED = ("first_third", "half", "two_fold")


def _record(name, defect="cut", group="", split="", image=None):
    image = image or f"images/{name}.png"
    mask = None if defect == "good" else f"masks/{defect}/{name}.png"
    return Record("p", defect, image, mask, split, f"sha of {image}", 9, 9, source=f"{name}.png", group=group)


def _grouped(sizes, defect="cut"):
    """Return images 0, 1, 2, ... in groups of the given sizes, in natural order."""
    groups = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    return [_record(f"{defect}{index}", defect, group) for index, group in enumerate(groups)]


def _count(divided, side, defect="cut"):
    return sum(record.split == side for record in divided if record.defect == defect)


def _assert_groups_are_whole(divided):
    for key in ("group", "image"):
        sides = {}
        for record in divided:
            if getattr(record, key):
                sides.setdefault(getattr(record, key), set()).add(record.split)
        assert all(len(found) == 1 for found in sides.values())


@pytest.mark.parametrize(
    ("sizes", "policy", "train"),
    [
        ((1,) * 9, "first_third", 3),
        ((3, 3, 3), "first_third", 3),
        ((2, 2, 2, 2, 1), "first_third", 3),  # 2, then 4 would exceed 3, then the single one
        ((2, 2, 2, 2, 2), "half", 4),  # a third group would exceed 5
        ((5, 1), "first_third", 5),  # the first group exceeds 2, but at least one image must train
        ((4, 4), "two_fold", 4),
    ],
)
def test_whole_groups_are_taken_up_to_the_number_of_the_policy(sizes, policy, train):
    divided = split_records(_grouped(sizes), policy)
    assert _count(divided, "train") == train
    _assert_groups_are_whole(divided)


def test_max_train_leaves_larger_groups_to_testing():
    divided = split_records(_grouped((3, 1, 1, 1)), "half", max_train=2)
    assert [record.split for record in divided] == ["test"] * 3 + ["train", "train", "test"]


@given(
    st.lists(st.integers(0, 6), min_size=6, max_size=40),
    st.sampled_from(POLICIES),
    st.integers(0, 1),
    st.lists(st.sampled_from(["cut", "dent", "good"]), min_size=40, max_size=40),
)
@settings(max_examples=150, deadline=None)
def test_no_group_is_on_both_sides(groups, policy, fold, defects):
    records = [_record(str(index), defects[index], f"g{group}" if group else "") for index, group in enumerate(groups)]
    try:
        divided = split_records(records, policy, fold)
    except InputError:
        return  # too few groups of a defect type; see below for the messages
    _assert_groups_are_whole(divided)
    for defect in {"cut", "dent"} & set(defects[: len(groups)]):
        assert _count(divided, "train", defect) >= 1 and _count(divided, "test", defect) >= 1


@pytest.mark.parametrize("policy", COUNTED)
def test_an_image_with_two_defect_types_is_on_one_side(policy):
    records = _grouped((1,) * 8) + _grouped((1,) * 6, "dent")
    both = [_record(f"both{index}", "cut", image=f"images/both{index}.png") for index in range(4)]
    both += [_record(f"both{index}", "dent", image=f"images/both{index}.png") for index in range(4)]
    divided = split_records(records + both, policy)
    _assert_groups_are_whole([dataclasses.replace(record, group="") for record in divided])
    expected = {"first_third": (4, 3), "half": (6, 5), "two_fold": (6, 5)}[policy]
    assert (_count(divided, "train"), _count(divided, "train", "dent")) == expected


def test_normal_images_follow_the_defect_images_of_their_item():
    records = [_record(f"item{k}-{n}", "cut" if n == 0 else "good", f"item{k}") for k in range(9) for n in range(4)]
    divided = split_records(records, "first_third")
    _assert_groups_are_whole(divided)
    assert _count(divided, "train", "good") == 9 and _count(divided, "test", "good") == 18


def test_normal_images_of_one_group_stay_together():
    records = _grouped((1,) * 6) + [_record(f"n{n}", "good", f"second{n // 4}") for n in range(20)]
    divided = split_records(records, "half")
    _assert_groups_are_whole(divided)
    assert _count(divided, "train", "good") == 16


def test_impossible_counts_name_the_cure():
    with pytest.raises(InputError, match=r"'cut' has 6 example\(s\) in 1 group.*smaller groups in sources\.p\.options"):
        split_records(_grouped((6,)), "half")
    with pytest.raises(InputError, match=r"in 2 group.*raise split\.max_train"):
        split_records(_grouped((3, 3)), "half", max_train=2)
    pairs = [NearDuplicatePair(one, other, 3) for one, other in pairwise(_grouped((1,) * 6))]
    with pytest.raises(InputError, match=r"split\.near_duplicates: warn"):
        split_records([dataclasses.replace(r, group="") for r in _grouped((1,) * 6)], "half", near_duplicates=pairs)
    mixed = [_record("a", "good", "x", "train"), _record("b", "good", "x", "test")]
    with pytest.raises(InputError, match=r"group 'x' has a\.png in train and b\.png in test.*options\.group"):
        split_records(mixed, "half")


def test_the_source_decides_defect_types_that_it_puts_on_both_sides():
    records = [_record(f"cut{n}", "cut", split="train" if n % 2 else "test") for n in range(8)]
    records += [_record(f"dent{n}", "dent", split="test") for n in range(6)]
    divided = split_records(records, "first_third")
    assert all(record.split == ("train" if int(record.source[3]) % 2 else "test") for record in divided[:8])
    assert [record.split for record in divided[8:]] == ["train"] * 2 + ["test"] * 4
    assert _count(split_records(records, "first_third", max_train=2), "train") == 2


def test_near_duplicates_stay_together_and_training_takes_those_of_the_source():
    records = [_record(f"n{n}", "good", split="train" if n < 5 else "test") for n in range(8)]
    records += [_record(f"c{n}") for n in range(6)]
    pairs = [NearDuplicatePair(records[0], records[7], 4), NearDuplicatePair(records[9], records[12], 4)]
    divided = split_records(records, "first_third", near_duplicates=pairs)
    assert divided[7].split == "train" and divided[6].split == "test"
    assert divided[9].split == divided[12].split


@given(st.integers(40, 90), st.integers(0, 10_000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_new_image_moves_no_other_image_with_the_policy_stable(count, new, joins_group):
    def make(index):
        defect = ("cut", "dent", "good", "good")[index % 4]
        return _record(f"{index:05d}", defect, f"part{index % 11}" if index % 3 == 0 else "")

    before = [make(index) for index in range(count)]
    added = dataclasses.replace(make(new + count), group="part3" if joins_group else "")
    old = {r.image: r.split for r in split_records(before, "stable")}
    grown = {r.image: r.split for r in split_records([added, *before], "stable")}
    assert {image: grown[image] for image in old} == old


def test_other_policies_move_images_when_data_grow():
    """The property above can fail: it does not hold for the policies that count."""
    before = [_record(f"cut{n}") for n in range(5)]
    old = {r.image: r.split for r in split_records(before, "first_third")}
    grown = {r.image: r.split for r in split_records([*before, _record("cut9")], "first_third")}
    assert {image: grown[image] for image in old} != old


def test_stable_follows_its_fraction_and_ignores_names():
    records = [_record(f"cut{n}") for n in range(600)] + [_record(f"n{n}", "good") for n in range(600)]
    divided = split_records(records, "stable", train_fraction=0.25)
    assert 110 < _count(divided, "train") < 190 and 440 < _count(divided, "train", "good") < 520
    renamed = [dataclasses.replace(r, image=f"images/x{n}.png", source=f"x{n}.png") for n, r in enumerate(records)]
    assert [r.split for r in split_records(renamed, "stable", train_fraction=0.25)] == [r.split for r in divided]


def test_stable_names_what_to_change():
    with pytest.raises(InputError, match=r"policy stable uses \d to train.*split\.train_fraction"):
        split_records([_record(f"cut{n}") for n in range(3)], "stable", train_fraction=0.001)
    with pytest.raises(InputError, match=r"split\.max_train: 2 with policy stable"):
        split_records([_record(f"cut{n}") for n in range(30)], "stable", max_train=2)
    with pytest.raises(InputError, match=r"split\.train_fraction: 1\.5"):
        split_records([_record(f"cut{n}") for n in range(30)], "stable", train_fraction=1.5)


@pytest.mark.parametrize("way", ["pattern over the path", "column of a CSV annotation"])
def test_groups_of_the_source_reach_the_split(tmp_path, way):
    rng = np.random.default_rng(0)
    source, rows = tmp_path / "source", ["image,label,mask,part"]
    for number in range(18):
        defect = "good" if number % 3 == 0 else "cut"
        folder = defect if way.startswith("pattern") else "images"
        image, mask = rng.integers(0, 255, (24, 24, 3), np.uint8), np.zeros((24, 24), np.uint8)
        mask[4:9, 5:12] = 255
        save_png(image, source / f"{folder}/part{number // 3}_{number}.png")
        name = f"masks/cut/part{number // 3}_{number}.png"
        if defect == "cut":
            save_png(mask, source / name)
        shown = name if defect == "cut" else ""
        rows.append(f"images/part{number // 3}_{number}.png,{'cut' if shown else ''},{shown},part{number // 3}")
    options = {"group": r"(part[0-9]+)_"}
    if not way.startswith("pattern"):
        (source / "annotations.csv").write_text("\n".join(rows) + "\n")
        options = {"annotations": {"group_column": "part"}}
    ingest_source(source, "p", tmp_path / "raw", options=options)
    records = record_rows(tmp_path / "raw/records.parquet")
    assert len(records) == 18
    assert all(record.group == re.search(r"part\d+", record.source)[0] for record in records)
    divided = split_records(records, "first_third")
    _assert_groups_are_whole(divided)
    assert _count(divided, "train") == 4 and _count(divided, "train", "good") == 2
