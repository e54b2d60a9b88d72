"""Units of a split: images that stay on one side."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from defect_core.data.near_duplicates import NearDuplicatePair
from defect_core.data.problems import printable
from defect_core.data.records import GOOD, Record, natural_key
from defect_core.errors import InputError


@dataclass(eq=False)
class Unit:
    """Images that stay on one side.

    Attributes:
        records: all their records, in natural order of the original names.
        side: `train` or `test`, or "" while it is undecided.
        is_settled: whether a defect type has decided the side.
        has_near_duplicates: whether near-duplicates were joined.
    """

    records: list[Record] = field(default_factory=list)
    side: str = ""
    is_settled: bool = False
    has_near_duplicates: bool = False

    def __post_init__(self) -> None:
        """Count the images of each defect type."""
        images: dict[str, set[str]] = defaultdict(set)
        for record in self.records:
            images[record.defect].add(record.image)
        self._counts = {defect: len(paths) for defect, paths in images.items()}

    def count(self, defect: str) -> int:
        """Return the number of images with a defect type, or of normal images for `GOOD`."""
        return self._counts.get(defect, 0)

    @property
    def images(self) -> set[str]:
        """Paths of the images."""
        return {record.image for record in self.records}

    @property
    def group(self) -> str:
        """Name of the first group; "" without one."""
        return min((record.group for record in self.records if record.group), default="")

    @property
    def has_normal(self) -> bool:
        """Whether a normal image is in the unit."""
        return GOOD in self._counts

    @property
    def has_defect(self) -> bool:
        """Whether a defect image is in the unit."""
        return any(defect != GOOD for defect in self._counts)

    def hinted_side(self, hints: Mapping[int, str]) -> str:
        """Return the side that the source gives; "" if it gives none.

        Args:
            hints: from `used_hints`.

        Raises:
            InputError: the source puts images of one group on both sides.
        """
        sides: dict[str, dict[str, Record]] = defaultdict(dict)
        for record in self.records:
            if hints[id(record)]:
                sides[record.group].setdefault(hints[id(record)], record)
        for group, by_side in sides.items():
            if group and len(by_side) > 1:
                train, test = (printable(by_side[side].source or by_side[side].image) for side in ("train", "test"))
                raise InputError(
                    f"{self.records[0].product}: group {printable(group)!r} has {train} in train and {test} in test of "
                    f"the source; remove or change sources.{self.records[0].product}.options.group"
                )
        found = {side for by_side in sides.values() for side in by_side}
        return "train" if "train" in found else "test" if found else ""

    def stable_side(self, defect_fraction: float, normal_fraction: float) -> str:
        """Return the side of the policy `stable`.

        Args:
            defect_fraction: fraction of the groups and of the defect images that are used for training.
            normal_fraction: fraction of the normal images without a group that are used for training.
        """
        keys = [f"group {record.group}" if record.group else f"image {record.sha256}" for record in self.records]
        value = int.from_bytes(hashlib.sha256(min(keys).encode("utf-8", "surrogateescape")).digest()[:8]) / 2**64
        is_normal = not self.group and not self.has_defect
        return "train" if value < (normal_fraction if is_normal else defect_fraction) else "test"


def find_units(rows: Sequence[Record], pairs: Sequence[NearDuplicatePair] = ()) -> list[Unit]:
    """Return the units of a product, in the natural order of the original name of their first images.

    Args:
        rows: records of one product. Records of one image have the same path.
        pairs: near-duplicates that stay on one side; pairs of other images are ignored.
    """
    links = _Links()
    for row in rows:
        if row.group:
            links.join(("image", row.image), ("group", row.group))
    product, known = {row.product for row in rows}, {row.image for row in rows}
    joined = [p for p in pairs if p.first.product in product and {p.first.image, p.second.image} <= known]
    for pair in joined:
        links.join(("image", pair.first.image), ("image", pair.second.image))
    members: dict[_Name, list[Record]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: natural_key(row.source or row.image)):
        members[links.root(("image", row.image))].append(row)
    near = {links.root(("image", pair.first.image)) for pair in joined}
    return [Unit(records, has_near_duplicates=root in near) for root, records in members.items()]


def used_hints(rows: Sequence[Record]) -> dict[int, str]:
    """Return by `id` of each record the split of its source that is used, or "".

    Normal images keep theirs. Defect images keep theirs if the source puts images of the defect type on both sides.
    """
    sides: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        sides[row.defect].add(row.split)
    return {id(row): row.split if row.defect == GOOD or {"train", "test"} <= sides[row.defect] else "" for row in rows}


_Name = tuple[str, str]


class _Links:
    """Disjoint sets of names."""

    def __init__(self) -> None:
        self._parents: dict[_Name, _Name] = {}

    def root(self, name: _Name) -> _Name:
        path = []
        while (parent := self._parents.get(name, name)) != name:
            path.append(name)
            name = parent
        for each in path:
            self._parents[each] = name
        return name

    def join(self, one: _Name, other: _Name) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        if low != high:
            self._parents[high] = low
