"""Near-duplicates: images of one product that show the same item almost without a difference.

Such images should not be in both training and testing. Examples are frames of one second and files that were encoded
again. They are found by a perceptual hash of 384 bits: the signs of coefficients of the cosine transform (Zauner 2010,
"pHash") of a reduced grey image. Two choices differ from pHash, because all images of a product look similar:

- the mean of the product's images is subtracted, so that the hash describes what differs between items;
- the coefficients are of a middle range of frequencies, which shows details and not only light and position.

Pairs are found by locality-sensitive hashing: only images with an equal band of 16 bits are compared. A pair with fewer
than 24 different bits always has an equal band; a pair with `MAX_DISTANCE` different bits has one with 99 %.
"""

import json
import os
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy.fft import dctn

from defect_core.data.problems import printable
from defect_core.data.records import Record, load_image
from defect_core.errors import InputError

THUMBNAILS = "thumbnails.safetensors"
"""Table of thumbnails in `data/raw/<product>`, written by `ingest`."""
SIDE = 64
"""Height and width of a thumbnail in pixels."""
BITS = 384
"""Length of the hash."""
# Re-encoded or noisy copies of images of MVTec AD and Magnetic-Tile differ in at most 33 bits, and images of different
# items in 100 to 200. Screws in almost the same pose are between.
MAX_DISTANCE = 40
"""Largest number of different bits of a near-duplicate."""

_MIN_FREQUENCY = 3.0  # cycles of the cosine transform; lower ones show light and position
_MIN_CONTRAST = 4  # grey levels between the darkest and the brightest pixel of a thumbnail
_MIN_IMAGES_FOR_MEAN = 10  # below it the mean contains too much of each image
_BANDS = BITS // 16
_CHUNK = 512  # images that are transformed at once
_LARGE_BUCKET = 2000  # images with an equal band; in larger buckets only neighbours in the order of hashes are compared
_NEIGHBOURS = 64
_MAX_LINES = 20
_SET_BITS = np.array([bin(value).count("1") for value in range(1 << 16)], dtype=np.uint16)


@dataclass(frozen=True)
class NearDuplicatePair:
    """Two images that look the same.

    Attributes:
        first: record of one image.
        second: record of the other.
        distance: number of different bits of the hashes, 0 to `BITS`.
    """

    first: Record
    second: Record
    distance: int


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the grey image uint8 [SIDE, SIDE] of an image uint8 [H, W, 3] or [H, W].

    Each pixel is the mean of its cell.
    """
    gray = Image.fromarray(image).convert("L")
    return np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.uint8)


class ThumbnailTable:
    """Thumbnails of many images, kept in a temporary file, so that memory does not grow by 4 kB per image."""

    def __init__(self) -> None:
        """Start with no thumbnail."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed and deleted with this object
        weakref.finalize(self, self._file.close)
        self._rows: dict[str, int] = {}

    def add(self, digest: str, pixels: NDArray[np.uint8]) -> None:
        """Add the thumbnail uint8 [SIDE, SIDE] of an image with a sha256 (hex), which is not in the table yet."""
        self._file.write(np.ascontiguousarray(pixels).data)
        self._rows[digest] = len(self._rows)

    def write(self, path: Path) -> None:
        """Write the table in the format of safetensors: `pixels` uint8 [N, SIDE, SIDE] and `sha256` uint8 [N, 64].

        Rows are sorted by digest, so the same thumbnails give the same bytes.
        """
        digests, size = sorted(self._rows), SIDE * SIDE
        names = "".join(digests).encode()
        ends = [0, len(digests) * size, len(digests) * size + len(names)]
        shapes = {"pixels": [len(digests), SIDE, SIDE], "sha256": [len(digests), len(names) // max(1, len(digests))]}
        header = {
            name: {"dtype": "U8", "shape": shape, "data_offsets": ends[index : index + 2]}
            for index, (name, shape) in enumerate(shapes.items())
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for digest in digests:
                self._file.seek(self._rows[digest] * size)
                stream.write(self._file.read(size))
            stream.write(names)
        self._file.seek(0, os.SEEK_END)


def read_thumbnails(records: Sequence[Record], raw: Path) -> NDArray[np.uint8]:
    """Return the thumbnails uint8 [N, SIDE, SIDE] of records, from the table of `ingest` or else from the images.

    Args:
        records: N records of one product.
        raw: folder of the records' paths.

    Raises:
        InputError: an image without a thumbnail in the table cannot be read.
    """
    table: Mapping[str, int] = {}
    stored: NDArray[np.uint8] = np.zeros((0, SIDE, SIDE), np.uint8)
    path = raw / THUMBNAILS
    if path.is_file():
        try:
            tensors = load_file(path)
            stored, names = tensors["pixels"], tensors["sha256"]
        except (SafetensorError, KeyError):
            raise InputError(f"{path}: cannot be read; run the stage ingest again") from None
        if stored.shape[1:] != (SIDE, SIDE) or len(names) != len(stored):
            raise InputError(f"{path}: is of another version; run the stage ingest again")
        table = {bytes(name).decode(): index for index, name in enumerate(names)}
    result = np.empty((len(records), SIDE, SIDE), np.uint8)
    for number, record in enumerate(records):
        index = table.get(record.sha256)
        result[number] = thumbnail(load_image(raw / record.image)) if index is None else stored[index]
    return result


def perceptual_hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Return the hashes uint16 [N, 24] of the images of one product.

    Args:
        thumbnails: uint8 [N, SIDE, SIDE].
    """
    count = len(thumbnails)
    chunks = [thumbnails[start : start + _CHUNK] for start in range(0, count, _CHUNK)]
    mean = np.zeros((SIDE, SIDE), np.float32)
    if count >= _MIN_IMAGES_FOR_MEAN:
        mean = sum((_normalise(chunk).sum(0) for chunk in chunks), start=mean) / count
    coefficients = _coefficients()
    hashes = np.zeros((count, _BANDS), np.uint16)
    for number, chunk in enumerate(chunks):
        spectrum = np.asarray(dctn(_normalise(chunk) - mean, axes=(1, 2))).reshape(len(chunk), -1)
        signs = np.packbits(spectrum[:, coefficients] > 0, axis=1)
        hashes[number * _CHUNK : number * _CHUNK + len(chunk)] = np.ascontiguousarray(signs).view(np.uint16)
    return hashes


def similar_hashes(
    hashes: NDArray[np.uint16], max_distance: int = MAX_DISTANCE
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return the pairs [P, 2] of rows whose hashes differ in at most `max_distance` bits, and the distances [P].

    Each pair is listed once, the lower row first, in ascending order. The module docstring says which pairs are found.

    Args:
        hashes: uint16 [N, 24].
        max_distance: largest number of different bits.
    """
    count = len(hashes)
    found = np.zeros(0, np.int64)
    for band in range(hashes.shape[1]):
        # Within a bucket, rows are in the order of their hashes, so that equal ones are neighbours.
        order = np.lexsort([*hashes.T, hashes[:, band]])
        values = hashes[order, band]
        starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if count else np.zeros(0, np.intp)
        sizes = np.diff(np.r_[starts, count])
        room = np.repeat(starts + sizes, sizes) - np.arange(count) - 1  # rows of the bucket after each row
        room = np.where(np.repeat(sizes, sizes) > _LARGE_BUCKET, np.minimum(room, _NEIGHBOURS), room)
        in_band = [found]
        for step in range(1, int(room.max(initial=0)) + 1):
            first = np.flatnonzero(room >= step)
            one, other = order[first], order[first + step]
            near = _distances(hashes, one, other) <= max_distance
            low, high = np.minimum(one, other)[near], np.maximum(one, other)[near]
            in_band.append(low * count + high)
        found = np.unique(np.concatenate(in_band))
    pairs = np.stack([found // max(count, 1), found % max(count, 1)], axis=1)
    return pairs, _distances(hashes, pairs[:, 0], pairs[:, 1])


def find_pairs(records: Sequence[Record], raw: Path) -> list[NearDuplicatePair]:
    """Return the near-duplicates among the images of one product, the most similar pair first.

    An image with several records counts once, with its first record. Images with equal pixels are no pair: `ingest`
    leaves all but one out. Images of one colour have no details that could be compared.

    Args:
        records: records of one product.
        raw: folder of the records' paths, `data/raw/<product>`.

    Raises:
        InputError: an image cannot be read.
    """
    images = list({record.sha256: record for record in reversed(records)}.values())[::-1]
    thumbnails = read_thumbnails(images, raw)
    with_contrast = np.flatnonzero(thumbnails.max(axis=(1, 2)) - thumbnails.min(axis=(1, 2)) >= _MIN_CONTRAST)
    pairs, distances = similar_hashes(perceptual_hashes(thumbnails[with_contrast]))
    pairs = with_contrast[pairs]
    order = np.lexsort([pairs[:, 1], pairs[:, 0], distances])
    return [NearDuplicatePair(images[pairs[k, 0]], images[pairs[k, 1]], int(distances[k])) for k in order]


def across(pairs: Sequence[NearDuplicatePair], divided: Sequence[Record]) -> list[NearDuplicatePair]:
    """Return the pairs with one image in training and the other in testing.

    Args:
        pairs: from `find_pairs`.
        divided: the records with their splits, from `split_records`.
    """
    records = {record.sha256: record for record in divided}
    result = []
    for pair in pairs:
        first, second = records.get(pair.first.sha256), records.get(pair.second.sha256)
        if first and second and {first.split, second.split} == {"train", "test"}:
            result.append(NearDuplicatePair(first, second, pair.distance))
    return result


def describe(pairs: Sequence[NearDuplicatePair]) -> list[str]:
    """Return lines for a warning about pairs from `across`: the number and what to do, then up to 20 pairs."""
    if not pairs:
        return []
    product = pairs[0].first.product
    lines = [
        f"{product}: {len(pairs)} near-duplicate pair(s) with one image in training and the other in testing, which "
        f"makes scores too good; set split.near_duplicates: group, or sources.{product}.options.group"
    ]
    for pair in pairs[:_MAX_LINES]:
        train, test = sorted((pair.first, pair.second), key=lambda record: record.split != "train")
        lines.append(f"  {_name(train)} (train), {_name(test)} (test): {pair.distance} of {BITS} bits differ")
    if len(pairs) > _MAX_LINES:
        lines.append(f"  and {len(pairs) - _MAX_LINES} more")
    return lines


def _name(record: Record) -> str:
    return printable(record.source or record.image)


def _normalise(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return thumbnails float32 [N, SIDE, SIDE] of mean 0 and standard deviation 1, so that exposure has no effect."""
    values = thumbnails.astype(np.float32)
    values -= values.mean(axis=(1, 2), keepdims=True)
    return values / np.maximum(values.std(axis=(1, 2), keepdims=True), 1e-3)


def _coefficients() -> NDArray[np.intp]:
    """Return the indices [BITS] of the coefficients of the hash, shuffled so that each band has all frequencies."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    frequency = np.hypot(rows, columns).ravel()
    used = np.argsort(np.where(frequency < _MIN_FREQUENCY, np.inf, frequency), kind="stable")[:BITS]
    return np.random.default_rng(0).permutation(used)


def _distances(hashes: NDArray[np.uint16], one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return the numbers [P] of different bits of the hashes of rows `one` and rows `other`."""
    return _SET_BITS[hashes[one] ^ hashes[other]].sum(axis=1, dtype=np.int64)
