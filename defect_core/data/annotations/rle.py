"""Run-length encodings of masks: COCO (plain and compressed), CVAT, Label Studio and Severstal.

All functions check that the runs fit the mask before they allocate it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 1 << 30
"""Largest mask that is decoded."""


def decode_runs(
    counts: Sequence[int] | NDArray[np.int64], height: int, width: int, order: str = "C"
) -> NDArray[np.bool_]:
    """Return the mask bool [H, W] of alternating runs, False pixels first.

    Args:
        counts: lengths of the runs; their sum is `height * width`.
        height: in pixels.
        width: in pixels.
        order: `F` if the runs go down the columns (COCO), `C` along the rows (CVAT).

    Raises:
        ValueError: a length is negative, or the sum differs.
    """
    lengths = check_runs(counts, height, width)
    values = np.arange(lengths.size) % 2 == 1
    flat = np.repeat(values, lengths)
    return np.ascontiguousarray(flat.reshape(width, height).T) if order == "F" else flat.reshape(height, width)


def check_runs(counts: Sequence[int] | NDArray[np.int64], height: int, width: int) -> NDArray[np.int64]:
    """Return run lengths int64 [N] that are known to fill a mask.

    Raises:
        ValueError: a length is no integer or is negative, or the sum differs from `height * width`.
    """
    _check_size(height, width)
    try:
        lengths = np.asarray(counts)
        if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in "iu"):
            raise ValueError
    except ValueError:
        raise ValueError("has run lengths that are no list of integers") from None
    lengths = lengths.astype(np.int64)
    wrong = lengths[(lengths < 0) | (lengths > height * width)]
    if wrong.size:
        raise ValueError(f"has a run of {int(wrong[0])} pixels, but the mask has {height * width}")
    if int(lengths.sum()) != height * width:
        raise ValueError(f"has runs of {int(lengths.sum())} pixels in total, but the mask has {height * width}")
    return lengths


def decompress_counts(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed notation (`rleFrString` of pycocotools).

    Each number is a little-endian sequence of 5-bit groups. From the fourth number on, the difference to the number
    two places before is stored.

    Raises:
        ValueError: the text has other characters, ends within a number, or has a number of more than 35 bits.

    >>> decompress_counts("52203")
    [5, 2, 2, 2, 5]
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise ValueError(f"has the character {character!r}, which compressed run lengths never have")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            if shift > 30:
                raise ValueError("has a run length of more than 35 bits")
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("ends within a run length")
    return counts


def decode_start_lengths(text: str, height: int, width: int) -> NDArray[np.bool_]:
    """Return the mask bool [H, W] of pairs `start length`, counted from 1 down the columns (Severstal).

    Raises:
        ValueError: the text is not pairs of integers, or a run leaves the mask.
    """
    _check_size(height, width)
    numbers = parse_integers(text)
    if len(numbers) % 2:
        raise ValueError(f"has {len(numbers)} numbers, but expected pairs of start and length")
    flat = np.zeros(height * width, bool)
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        if start < 1 or length < 0 or start - 1 + length > flat.size:
            raise ValueError(f"has the run {start} {length}, which leaves a mask of {flat.size} pixels")
        flat[start - 1 : start - 1 + length] = True
    return np.ascontiguousarray(flat.reshape(width, height).T)


def decode_brush(data: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Return the mask bool [H, W] of a Label Studio brush: True where its alpha channel is at least half.

    The bits are: number of values (32), bits of a value less 1 (5), four lengths of counts less 1 (4 each), then
    blocks of: repeated or not (1), which length (2), number of values less 1, and the values. The values are RGBA.

    Args:
        data: bytes, 0 to 255.
        height: in pixels.
        width: in pixels.

    Raises:
        ValueError: the data is no such sequence, or is of another size.
    """
    _check_size(height, width)
    content = np.asarray(data)
    if content.ndim != 1 or content.size < 8 or content.dtype.kind not in "iu":
        raise ValueError("is not a list of bytes")
    if int(content.min()) < 0 or int(content.max()) > 255:
        raise ValueError("has a value outside 0 to 255")
    bits = _Bits(content.astype(np.uint8).tobytes())
    total, word = bits.take(32), bits.take(5) + 1
    sizes = [bits.take(4) + 1 for _ in range(4)]
    if total != 4 * height * width:
        raise ValueError(f"has {total} values, but an image of {width}x{height} pixels has {4 * height * width}")
    values, position = np.zeros(total, np.uint32), 0
    while position < total:
        repeated = bits.take(1)
        end = position + 1 + bits.take(sizes[bits.take(2)])
        if end > total:
            raise ValueError("has a run that leaves the image")
        if repeated:
            values[position:end] = bits.take(word)
        else:
            values[position:end] = [bits.take(word) for _ in range(end - position)]
        position = end
    alpha = values[3::4].reshape(height, width)
    return 2 * alpha > (1 << word) - 1


def parse_integers(text: str) -> list[int]:
    """Return integers separated by commas or spaces.

    Raises:
        ValueError: a part is no integer of at most 18 digits.
    """
    parts = text.replace(",", " ").split()
    for part in parts:
        if not part.lstrip("-").isascii() or not part.lstrip("-").isdigit() or len(part) > 18:
            raise ValueError(f"has {part[:20]!r}, which is no integer")
    return [int(part) for part in parts]


class _Bits:
    """Bits of bytes, the most significant first."""

    def __init__(self, content: bytes) -> None:
        self._content, self._position, self._size = content, 0, 8 * len(content)

    def take(self, count: int) -> int:
        """Return the next `count` bits as a number."""
        start, end = self._position, self._position + count
        if end > self._size:
            raise ValueError("ends before the last pixel")
        first, last = start // 8, (end + 7) // 8
        number = int.from_bytes(self._content[first:last], "big") >> (8 * last - end)
        self._position = end
        return number & ((1 << count) - 1)


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"is of {width}x{height} pixels")
