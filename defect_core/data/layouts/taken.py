"""The images that an ingestion takes: finds duplicates, gives ids and keys, moves files to their names."""

import contextlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from defect_core.data.layouts.options import SourceItem
from defect_core.data.layouts.read_item import ImageResult, MaskPart
from defect_core.data.names import safe_key
from defect_core.data.near_duplicates import ThumbnailTable
from defect_core.data.problems import ProblemLog, printable
from defect_core.data.records import GOOD, Record, load_mask, save_png

ID_DIGITS = 12
"""Hexadecimal digits of the id of an image."""
_NAMED = 3  # files that a note names


@dataclass
class _Taken:
    item: SourceItem
    result: ImageResult
    name: str
    masks: dict[str, MaskPart]


class TakenImages:
    """The usable images of a source, in the order of the listing.

    Attributes:
        duplicates: images with the pixels of another one.
        left_out: images that are not used, each with the reason.
        labels: label of each defect type by its key.
        thumbnails: table of the images' thumbnails.
        general_notes: what was decided for all images.
    """

    def __init__(self, source: Path, product: str, problems: ProblemLog) -> None:
        """Start with no image.

        Args:
            source: folder of the source.
            product: name of the product.
            problems: log of what is wrong.
        """
        self._source, self._product, self._problems = source, product, problems
        self._images: dict[str, _Taken] = {}
        self._ids: dict[str, str] = {}
        self._used_ids: set[str] = set()
        self._unions: list[tuple[_Taken, str, Path | None]] = []
        self._notes: dict[str, list[str]] = {}
        self.duplicates: list[dict[str, str]] = []
        self.left_out: list[dict[str, str]] = []
        self.labels: dict[str, str] = {}
        self.thumbnails = ThumbnailTable()
        self.general_notes: list[str] = []

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def add(self, item: SourceItem, result: ImageResult) -> None:
        """Add what a worker found in one image."""
        name = self._name(item)
        for problem in result.problems:
            self._problems.add_line(problem)
        for note in result.notes:
            self._notes.setdefault(note, []).append(name)
        if result.problems:
            return
        if result.left_out is not None:
            self.left_out.append({"image": printable(name), "reason": result.left_out})
            return
        taken = _Taken(item, result, name, {part.label: part for part in result.masks})
        first = self._images.get(result.sha256)
        if first is not None:
            self._add_duplicate(first, taken)
            return
        self._images[result.sha256] = taken
        self._ids[result.sha256] = self._new_id(result.identity)
        for label in taken.masks:
            self.labels[safe_key(label)] = label
        if result.thumbnail is not None:
            self.thumbnails.add(result.sha256, result.thumbnail)
            result.thumbnail = None

    def records(self) -> list[Record]:
        """Return one record per image and defect type."""
        return [record for digest, taken in self._images.items() for record in self._records(digest, taken)]

    def install(self, target: Path) -> list[Record]:
        """Move the files of a worker to their names in `target`, and return the records."""
        for taken, label, other in self._unions:
            part = taken.masks[label]
            if part.file is not None and other is not None:
                save_png(load_mask(part.file) | load_mask(other), part.file)
        for folder in ("images", "masks"):
            (target / folder).mkdir(exist_ok=True)
        reading = target / ".reading"
        records = self.records()
        by_image: dict[str, list[Record]] = {}
        for record in records:
            by_image.setdefault(record.sha256, []).append(record)
        for digest, taken in self._images.items():
            if taken.result.file is None:
                raise ValueError("the images were read without a folder for their files")
            taken.result.file.rename(target / by_image[digest][0].image)
            if taken.result.original is not None:
                (target / "originals").mkdir(exist_ok=True)
                suffix = taken.result.original.suffix
                taken.result.original.rename(target / f"originals/{self._ids[digest]}{suffix}")
            for record, part in zip(by_image[digest], self._parts(taken), strict=False):
                if part.file is not None and record.mask is not None:
                    (target / record.mask).parent.mkdir(exist_ok=True)
                    part.file.rename(target / record.mask)
        for left in reading.iterdir():
            left.unlink()
        reading.rmdir()
        _link_by_name(target, records)
        return records

    def label_counts(self) -> dict[str, int]:
        """Return the number of images by label, `GOOD` for normal images."""
        counts: Counter[str] = Counter()
        for taken in self._images.values():
            counts.update(list(taken.masks) or [GOOD])
        return dict(counts)

    def key_counts(self) -> dict[str, int]:
        """Return the number of images by key of the defect type, `GOOD` for normal images."""
        return {GOOD if label == GOOD else safe_key(label): count for label, count in self.label_counts().items()}

    def sizes(self) -> list[list[int]]:
        """Return width, height and number of images of each size, the most frequent first."""
        counts = Counter((taken.result.width, taken.result.height) for taken in self._images.values())
        return [[width, height, count] for (width, height), count in counts.most_common()]

    def mask_areas(self) -> dict[str, list[float]]:
        """Return the smallest, median and largest area of the masks of each defect type, in pixels."""
        areas: dict[str, list[int]] = {}
        for taken in self._images.values():
            for label, part in taken.masks.items():
                areas.setdefault(safe_key(label), []).append(part.area)
        return {key: [min(values), median(values), max(values)] for key, values in sorted(areas.items())}

    def notes(self) -> list[str]:
        """Return what was decided, one line each; notes about files name the first of them."""
        lines = list(self.general_notes)
        for note, names in self._notes.items():
            shown = ", ".join(map(printable, names[:_NAMED]))
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            lines.append(f"{len(names)} image(s): {note} ({shown}{more})")
        several = sum(len(taken.masks) > 1 for taken in self._images.values())
        if several:
            lines.append(f"{several} image(s) have several defect types; each has one record per type")
        return lines

    def _add_duplicate(self, first: _Taken, other: _Taken) -> None:
        """Leave out an image with known pixels, and add its masks to those of the first."""
        if bool(first.masks) != bool(other.masks):
            names = [f"{printable(self._source / t.name)} ({', '.join(t.masks) or GOOD})" for t in (other, first)]
            self._problems.add(
                " and ".join(names), "the same image is a normal and a defect image", "expected one label for it"
            )
            return
        for label, part in other.masks.items():
            known = first.masks.get(label)
            if known is None:
                first.masks[label] = part
                self.labels[safe_key(label)] = label
                note = "the same image is in several defect types; it is taken once, with a mask for each"
                self._notes.setdefault(note, []).append(other.name)
            elif known.digest != part.digest:
                self._unions.append((first, label, part.file))
                note = "the same image has different masks of one defect type; they are united"
                self._notes.setdefault(note, []).append(other.name)
        self.duplicates.append({"image": printable(other.name), "same_as": printable(first.name)})

    def _records(self, digest: str, taken: _Taken) -> list[Record]:
        identity, result, item = self._ids[digest], taken.result, taken.item
        suffix = ".png" if result.file is None else result.file.suffix
        image = f"images/{identity}{suffix}"
        source = taken.name.encode("utf-8", "backslashreplace").decode()  # parquet holds UTF-8 only
        shared = (item.split_hint, digest, result.width, result.height, source)
        if not taken.masks:
            return [Record(self._product, GOOD, image, None, *shared, GOOD, item.group, result.depth)]
        return [
            Record(
                self._product,
                safe_key(part.label),
                image,
                f"masks/{safe_key(part.label)}/{identity}.png",
                *shared,
                part.label,
                item.group,
                result.depth,
            )
            for part in self._parts(taken)
        ]

    def _parts(self, taken: _Taken) -> list[MaskPart]:
        return [taken.masks[label] for label in sorted(taken.masks)]

    def _new_id(self, identity: str) -> str:
        digits = ID_DIGITS
        while identity[:digits] in self._used_ids and digits < len(identity):
            digits += 1
        self._used_ids.add(identity[:digits])
        return identity[:digits]

    def _name(self, item: SourceItem) -> str:
        path = item.image_path
        return (path.relative_to(self._source) if path.is_relative_to(self._source) else path).as_posix()


def _link_by_name(target: Path, records: list[Record]) -> None:
    """Link each mask under the name of its original image too, for people; nothing reads these names."""
    places = Counter((record.defect, Path(record.source).stem) for record in records if record.mask is not None)
    for record in records:
        stem = Path(record.source).stem
        if record.mask is None or places[record.defect, stem] > 1:
            continue
        link = target / f"masks/{record.defect}/{stem}.png"
        with contextlib.suppress(OSError):  # a name that this file system does not allow
            if not link.exists():
                link.hardlink_to(target / record.mask)
