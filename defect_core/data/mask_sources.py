"""Where the masks of one image come from: a protocol that mask files and annotations share, and mask files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from defect_core.data.mask_pixels import (
    Foreground,
    MaskPixels,
    describe,
    find_foreground,
    read_mask_pixels,
    value_counts,
)
from defect_core.data.problems import printable
from defect_core.errors import InputError

RULES = ("auto", "any", "half", "inverted")
"""How a mask file is read; see `mask_pixels.find_foreground`."""
BACKGROUND_LABELS = ("background", "ignore", "good")
"""Labels in `mask_values` whose pixels are no defect."""
LARGE = 0.5
"""Fraction of an image above which a mask may be inverted."""


class MaskSource(Protocol):
    """Where the masks of one image come from."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that are read, for messages and for the inventory of the source."""
        ...

    def masks(self, height: int, width: int) -> dict[str, NDArray[np.bool_]]:
        """Return a mask bool [H, W] per label; labels without a pixel are left out.

        Args:
            height: of the upright image, in pixels.
            width: of the upright image, in pixels.

        Raises:
            InputError: the masks cannot be read or do not fit the image.
        """
        ...


class MaskSizeError(InputError):
    """A mask or annotation is for an image of another size."""


@dataclass(frozen=True)
class MaskReading:
    """The masks of one image and what was decided about them.

    Attributes:
        masks: bool [H, W] per label; labels without a pixel are left out.
        notes: what was decided, one line each, if it was not obvious.
    """

    masks: dict[str, NDArray[np.bool_]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MaskFile:
    """One or several mask files of an image; those of the same label are united.

    Attributes:
        paths: the files.
        label: label of their pixels, if `values` is None.
        values: label by mask value, palette index or colour (`#ff0000`). The labels `background`, `ignore` and `good`
            mean no defect. A value that occurs and has no label is an error.
        rule: one of `RULES`.
    """

    paths: tuple[Path, ...]
    label: str
    values: Mapping[int | str, str] | None = None
    rule: str = "auto"
    _labels: dict[str, str] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Check the rule and the keys of `values`."""
        if self.rule not in RULES:
            raise InputError(f"options.mask_rule: {self.rule!r}; expected one of {', '.join(RULES)}")
        for key, label in (self.values or {}).items():
            self._labels[_normal_key(key)] = str(label)

    def masks(self, height: int, width: int) -> dict[str, NDArray[np.bool_]]:
        """Return a mask bool [H, W] per label; labels without a pixel are left out.

        Args:
            height: of the upright image, in pixels.
            width: of the upright image, in pixels.

        Raises:
            InputError: a file cannot be read, looks like a photograph, or has a value without a label.
            MaskSizeError: a file has another size.
        """
        return self.read(height, width).masks

    def read(self, height: int, width: int) -> MaskReading:
        """Return the masks and what was decided about them; otherwise as `masks`."""
        united: dict[str, NDArray[np.bool_]] = {}
        notes: list[str] = []
        for path in self.paths:
            for pixels in read_mask_pixels(path):
                if pixels.values.shape != (height, width):
                    rows, columns = pixels.values.shape
                    raise MaskSizeError(
                        f"{printable(path)}: {columns}x{rows} pixels, its image {width}x{height}; "
                        "expected the same size"
                    )
                found = find_foreground(pixels, self.rule, path)
                notes += [note for note in found.notes if note not in notes]
                for label, mask in self._by_label(pixels, found, path).items():
                    united[label] = united[label] | mask if label in united else mask
        return MaskReading({label: mask for label, mask in united.items() if mask.any()}, tuple(notes))

    def _by_label(self, pixels: MaskPixels, found: Foreground, path: Path) -> dict[str, NDArray[np.bool_]]:
        if not self._labels:
            return {self.label: found.mask}
        if found.is_continuous:
            raise InputError(
                f"{printable(path)}: the mask has a continuous range of values, so options.mask_values cannot be read; "
                "expected one value per defect type, without smooth edges"
            )
        masks: dict[str, NDArray[np.bool_]] = {}
        for value, count in value_counts(pixels.values).items():
            name = describe(value, pixels.kind)
            label = self._labels.get(name)
            if label is None and value == found.background:
                continue
            if label is None:
                known = ", ".join(self._labels)
                raise InputError(
                    f"{printable(path)}: value {name} ({count} pixels) is not in options.mask_values; "
                    f"expected one of {known}; name it there, or map it to `ignore`"
                )
            if label not in BACKGROUND_LABELS:
                pixels_of_value = pixels.values == value
                if pixels.opaque is not None:
                    pixels_of_value &= pixels.opaque
                masks[label] = masks[label] | pixels_of_value if label in masks else pixels_of_value
        return masks


def check_mask(mask: NDArray[np.bool_]) -> str | None:
    """Return what is wrong with the united mask of a defect image, or None; the check of ingestion and of Dagster.

    Args:
        mask: bool [H, W].
    """
    if not mask.any():
        return "the mask is empty"
    if mask.all():
        return "the mask covers the whole image"
    return None


def looks_inverted(mask: NDArray[np.bool_]) -> bool:
    """Return whether a mask bool [H, W] covers more than half of the image and more than half of its border."""
    if np.count_nonzero(mask) <= LARGE * mask.size:
        return False
    border = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    return bool(np.count_nonzero(border) > LARGE * border.size)


def read_masks(source: MaskSource, height: int, width: int) -> MaskReading:
    """Return the masks of any mask source, with its notes if it has some.

    Raises:
        InputError: as `MaskSource.masks`.
    """
    if isinstance(source, MaskFile):
        return source.read(height, width)
    return MaskReading(source.masks(height, width))


def _normal_key(key: int | str) -> str:
    """Return a key of `mask_values` as `mask_pixels.describe` writes values."""
    text = str(key).strip().lower()
    if text.startswith("#") and len(text) == 7:
        return text
    parts = text.replace("(", "").replace(")", "").split(",")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 3:
        return "#" + "".join(f"{number:02x}" for number in numbers)
    if len(numbers) == 1:
        return f"{numbers[0]}"
    raise InputError(f"options.mask_values: key {key!r}; expected a number or a colour such as '#ff0000'")
