"""The values of a mask file, and which of them are defects, by what annotation tools write."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from defect_core.data.images import (
    HARD_LIMIT,
    ORIENTATION,
    has_more_than_8_bits,
    open_image,
    read_stored,
    stored_bits,
    turn_upright,
)
from defect_core.data.problems import printable
from defect_core.errors import InputError

HANDFUL = 16
"""A grey mask with more values than this, besides the background, may be continuous."""
_EDGES = 0.5  # of the pixels of middle values; in a continuous mask more of them have a neighbour of another value
_BOTTOM, _TOP = 0.02, 0.9  # of the largest value; values between them are neither dark nor bright
_PHOTOGRAPH = 0.5  # of the pixels; with more of them neither dark nor bright, a continuous mask is a photograph
_COLOURS = 1000  # a mask with more colours is a photograph
_COLOUR_FRACTION = 0.25  # of the brightest channel, for JPEG masks in colours of different brightness
_STRIP = 1024
_OPAQUE = 128
_NUMBERS_IN_JPEG = 64  # a JPEG file with a smaller maximum holds numbers, which its compression destroys


@dataclass(frozen=True)
class MaskPixels:
    """The upright values of one frame of a mask file.

    Attributes:
        values: numbers [H, W]: grey levels, palette indices or colours as 0xRRGGBB.
        kind: `gray`, `palette` or `colour`.
        is_jpeg: whether the file was compressed with loss.
        black: the palette index whose colour is black, if exactly one used index has it.
        opaque: bool [H, W], False where the alpha channel is transparent; None without a varying alpha channel.
    """

    values: NDArray[Any]
    kind: str
    is_jpeg: bool = False
    black: int | None = None
    opaque: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Foreground:
    """Which pixels of a mask are defects.

    Attributes:
        mask: bool [H, W].
        background: the value that is not a defect; None if the mask was thresholded.
        is_continuous: whether the mask was thresholded at half of its largest value.
        notes: what was decided, if it was not obvious.
    """

    mask: NDArray[np.bool_]
    background: int | float | None
    is_continuous: bool = False
    notes: tuple[str, ...] = ()


def read_mask_pixels(path: Path) -> list[MaskPixels]:
    """Return the frames of a mask file, upright. Files of several pages hold one mask each.

    Raises:
        InputError: the file is missing or unreadable, or frames differ in size.
    """
    path = Path(path)
    frames: list[MaskPixels] = []
    turn = 1
    try:
        with open_image(path, "mask") as image:
            count = getattr(image, "n_frames", 1)
            if stored_bits(image) == 8 or image.mode in ("I;16", "I", "F"):
                is_jpeg = image.format in ("JPEG", "JPEG2000", "MPO")
                frames = [_from_pillow(frame, is_jpeg) for frame in ImageSequence.Iterator(image)] if count > 1 else []
                if not frames:
                    image.load()
                    frames = [_from_pillow(image, is_jpeg)]
                turn = image.getexif().get(ORIENTATION, 1) if image.format != "TIFF" else 1
    except InputError:
        if not has_more_than_8_bits(path):
            raise
    if not frames:
        frames = [_from_array(read_stored(path, HARD_LIMIT)[0])]
    if turn != 1:
        frames = [_turned(frame, turn) for frame in frames]
    if len({frame.values.shape for frame in frames}) > 1:
        raise InputError(f"{printable(path)}: has {len(frames)} pages of different sizes; expected one size")
    return frames


def find_foreground(pixels: MaskPixels, rule: str, path: Path) -> Foreground:
    """Return which pixels are defects.

    - A value that is not background counts, whatever it is. Background is the value 0, palette index 0 or black, or the
      most frequent value if that does not occur.
    - A continuous grey mask (anti-aliased, JPEG) is thresholded at half of its largest value.
    - Transparent pixels are background. If all opaque pixels have one value, they are the defect.

    Args:
        pixels: the mask.
        rule: `auto`; `any`: every value above 0; `half`: at least half of the largest value; `inverted`: as `auto`,
            and the rest is the defect.
        path: the file, for messages.

    Raises:
        InputError: the mask looks like a photograph, or is a JPEG of numbers.
    """
    values = pixels.values
    if values.dtype == np.float32 and not np.isfinite(values).all():
        raise InputError(f"{printable(path)}: the mask has pixels that are not a finite number; expected none")
    found = _by_rule(pixels, rule, path)
    if rule == "inverted":
        mask = ~found.mask if pixels.opaque is None else ~found.mask & pixels.opaque
        return Foreground(mask, None, found.is_continuous, (*found.notes, "read as inverted (mask_rule: inverted)"))
    return found


def value_counts(values: NDArray[Any]) -> dict[int | float, int]:
    """Return how many pixels have each value, in the order of the values."""
    if values.dtype == np.uint8:
        total = np.zeros(256, np.int64)
        for top in range(0, len(values), 512):  # bincount needs eight bytes per pixel
            total += np.bincount(values[top : top + 512].ravel(), minlength=256)
        return {int(value): int(total[value]) for value in np.flatnonzero(total)}
    unique, counts = np.unique(values, return_counts=True)
    return dict(zip(unique.tolist(), counts.tolist(), strict=True))


def looks_continuous(values: NDArray[Any], background: int | float) -> tuple[bool, float]:
    """Return whether the values of a grey mask below its largest are edges, and the fraction of pixels with them.

    Numbers of instances are flat regions: most of their pixels have neighbours of the same value or of the background.
    Where a mask is anti-aliased, or was a JPEG, most of these pixels have a neighbour of another value.

    Args:
        values: [H, W].
        background: its value of the background.
    """
    top = float(values.max())
    count = edge_count = middle_count = 0
    for start in range(0, len(values), _STRIP):  # a strip at a time bounds the memory
        strip = values[start : start + _STRIP]
        inner = (strip != background) & (strip < _TOP * top)
        if not inner.any():
            continue
        edges = np.zeros(strip.shape, bool)
        for here, there in _neighbour_slices():
            one, other = strip[here], strip[there]
            differs = (one != other) & (one != background) & (other != background)
            edges[here] |= differs
            edges[there] |= differs
        count += np.count_nonzero(inner)
        edge_count += np.count_nonzero(edges & inner)
        middle_count += np.count_nonzero(inner & (strip > _BOTTOM * top))
    return bool(edge_count > _EDGES * count or not count), float(middle_count / max(values.size, 1))


def _by_rule(pixels: MaskPixels, rule: str, path: Path) -> Foreground:
    values = pixels.values
    if rule == "any":
        return Foreground(values != 0 if pixels.opaque is None else (values != 0) & pixels.opaque, 0)
    level = values if pixels.kind == "gray" else None
    if rule == "half" or (pixels.is_jpeg and rule in ("auto", "inverted")):
        fraction = 0.5 if level is not None else _COLOUR_FRACTION
        level = _brightest_channel(pixels) if level is None else level
        if pixels.is_jpeg and 0 < level.max(initial=0) < _NUMBERS_IN_JPEG:
            raise InputError(
                f"{printable(path)}: a JPEG mask with the largest value {int(level.max())}; JPEG cannot hold numbers "
                "of classes; expected png, or options.mask_rule: any"
            )
        return _threshold(level, path, fraction)
    counts = value_counts(values)
    if pixels.opaque is not None:
        return _by_alpha(pixels)
    background, notes = _background(counts, pixels)
    if level is not None and len(counts) - 1 > HANDFUL:
        is_continuous, middle = looks_continuous(values, background)
        if is_continuous and middle > _PHOTOGRAPH:
            raise _photograph(path, len(counts), middle)
        if is_continuous:
            return _threshold(level, path)
    if level is None and len(counts) > HANDFUL:
        _check_colours(pixels, background, counts, path)
    return Foreground(values != background, background, notes=notes)


def _background(counts: dict[int | float, int], pixels: MaskPixels) -> tuple[int | float, tuple[str, ...]]:
    if len(counts) == 1 and pixels.kind != "palette":
        return 0, ()
    if pixels.black is not None:
        note = f"palette index {pixels.black} (black) is background" if pixels.black else ""
        return pixels.black, (note,) if note else ()
    if 0 in counts:
        return 0, ()
    if len(counts) == 1:
        return 0, ()
    most = max(counts, key=lambda value: counts[value])
    return most, (f"the value 0 does not occur; the most frequent value, {describe(most, pixels.kind)}, is background",)


def describe(value: int | float, kind: str) -> str:
    """Return a mask value as words: `#ff0000` for a colour."""
    if kind == "colour":
        return f"#{int(value):06x}"
    return f"{int(value)}" if value == int(value) else f"{value:g}"


def _threshold(level: NDArray[Any], path: Path, fraction: float = 0.5) -> Foreground:
    top = level.max(initial=0)
    middle = np.count_nonzero((level > _BOTTOM * top) & (level < _TOP * top)) / max(level.size, 1)
    if middle > _PHOTOGRAPH:
        raise _photograph(path, len(value_counts(level)), middle)
    return Foreground((level >= top * fraction) & (top > 0), None, is_continuous=True)


def _photograph(path: Path, values: int, middle: float) -> InputError:
    return InputError(
        f"{printable(path)}: the mask looks like a photograph or a heat map ({values} values, {middle:.0%} of the "
        "pixels neither dark nor bright); if image and mask are swapped, exchange them; expected a mask"
    )


def _by_alpha(pixels: MaskPixels) -> Foreground:
    values, opaque = pixels.values, pixels.opaque
    if opaque is None:
        raise ValueError("the mask has no alpha channel")
    visible = value_counts(values[opaque][None])
    note = "transparent pixels of the mask are background"
    if len(visible) > 1 and 0 in visible:
        return Foreground(opaque & (values != 0), 0, notes=(note,))
    return Foreground(opaque.copy(), None, notes=(note,))


def _check_colours(pixels: MaskPixels, background: int | float, counts: dict[int | float, int], path: Path) -> None:
    """Refuse a mask with many colours that is a photograph."""
    is_continuous, middle = looks_continuous(_brightest_channel(pixels), 0)
    marked = 1 - counts[background] / pixels.values.size
    if (is_continuous and middle > _PHOTOGRAPH) or (len(counts) > _COLOURS and marked > _PHOTOGRAPH):
        raise _photograph(path, len(counts), max(middle, marked))


def _brightest_channel(pixels: MaskPixels) -> NDArray[Any]:
    values = pixels.values
    if pixels.kind != "colour":
        return values
    channels = [(values >> shift) & 255 for shift in (16, 8, 0)]
    return np.maximum(np.maximum(channels[0], channels[1]), channels[2])


def _from_array(values: NDArray[Any]) -> MaskPixels:
    if values.ndim == 2:
        return MaskPixels(values, "gray")
    if (values == values[:, :, :1]).all():
        return MaskPixels(np.ascontiguousarray(values[:, :, 0]), "gray")
    if values.dtype == np.uint8:
        wide = values.astype(np.int32)
        return MaskPixels((wide[:, :, 0] << 16) | (wide[:, :, 1] << 8) | wide[:, :, 2], "colour")
    # Deep colours become numbers 1, 2, ... in the order of the colours; black stays 0.
    flat = values.reshape(-1, 3)
    colours, numbers = np.unique(flat, axis=0, return_inverse=True)
    offset = 0 if not colours[0].any() else 1
    return MaskPixels((numbers.reshape(values.shape[:2]) + offset).astype(np.int32), "palette")


def _from_pillow(image: Image.Image, is_jpeg: bool) -> MaskPixels:
    if image.mode == "P":
        return _from_palette(image)
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        converted = image.convert("RGBA")
        alpha = np.asarray(converted.getchannel(3))
        pixels = _from_array(np.asarray(converted)[:, :, :3])
        varies = alpha.size > 0 and alpha.min() < _OPAQUE <= alpha.max()
        return MaskPixels(pixels.values, pixels.kind, is_jpeg, opaque=alpha >= _OPAQUE if varies else None)
    if image.mode == "1":
        return MaskPixels(np.asarray(image.convert("L")), "gray")
    if image.mode == "L" or image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        return MaskPixels(values.astype(np.uint16) if image.mode.startswith("I;16") else values, "gray", is_jpeg)
    pixels = _from_array(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))
    return MaskPixels(pixels.values, pixels.kind, is_jpeg)


def _from_palette(image: Image.Image) -> MaskPixels:
    values = np.asarray(image)
    palette = _palette_colours(image)
    used = list(value_counts(values))
    colours = [palette[index] if index < len(palette) else (0, 0, 0) for index in map(int, used)]
    if len(used) > HANDFUL and all(red == green == blue for red, green, blue in colours):
        levels = np.zeros(256, np.uint8)
        levels[[int(index) for index in used]] = [colour[0] for colour in colours]
        return MaskPixels(levels[values], "gray")
    black = [int(index) for index, colour in zip(used, colours, strict=True) if not any(colour)]
    only_black = black[0] if len(black) == 1 and len(used) > 1 else None
    return MaskPixels(values, "palette", black=only_black)


def _palette_colours(image: Image.Image) -> Sequence[tuple[int, int, int]]:
    flat = image.getpalette("RGB") or []
    return [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3)]


def _turned(pixels: MaskPixels, orientation: int) -> MaskPixels:
    opaque = None if pixels.opaque is None else turn_upright(pixels.opaque, orientation)
    return MaskPixels(turn_upright(pixels.values, orientation), pixels.kind, pixels.is_jpeg, pixels.black, opaque)


def _neighbour_slices() -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    everything, start, end = slice(None), slice(None, -1), slice(1, None)
    return [
        ((everything, start), (everything, end)),
        ((start, everything), (end, everything)),
        ((start, start), (end, end)),
        ((start, end), (end, start)),
    ]
