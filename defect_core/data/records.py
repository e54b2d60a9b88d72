"""Records of real images, their parquet table, and the functions that read and write images and masks."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defect_core.data.images import HARD_LIMIT, as_rgb, open_image, read_image
from defect_core.data.tables import Schema, frame_rows, read_frame, read_rows, write_table
from defect_core.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

GOOD = "good"
"""Value of `defect` for normal images, as in MVTec AD."""
SPLITS = ("train", "test", "")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Record:
    """One real image, or one defect type of it: an image with two defect types has two records and two masks.

    Attributes:
        product: the product that the image shows.
        defect: its defect type, or `GOOD`.
        image: POSIX path relative to the folder of the table.
        mask: like `image`; None exactly for normal images.
        split: `train`, `test`, or empty if the image is not assigned.
        sha256: `pixel_digest` of the decoded image. A renamed or losslessly re-encoded copy has the same one.
        width: in pixels.
        height: in pixels.
        source: POSIX path of the original image, relative to its source.
        label: name of the defect type as the source gives it; `defect` is its key.
        group: images of the same group show the same item; they stay on one side of the split.
        depth: range of the original values, such as `8 bit` or `12 bit in 16` (see `data.depth`).
    """

    product: str
    defect: str
    image: str
    mask: str | None
    split: str
    sha256: str
    width: int
    height: int
    source: str = ""
    label: str = ""
    group: str = ""
    depth: str = ""


_SCHEMA: Schema = {field.name: (int if field.type is int else str) for field in fields(Record)}
_ADDED = ("source", "label", "group", "depth")  # columns that version 0.1.0 did not write


def check_name(name: str, what: str) -> str:
    """Return `name` if it can name a product, defect or generator in paths, commands and DVC addresses.

    Args:
        name: the name to check.
        what: the start of the error message, such as the key in params.yaml.

    Raises:
        InputError: the name is empty, longer than 64 characters, starts with '.' or '-', contains '..', or has a
            character other than ASCII letters, digits, '_', '-' and '.'.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name or name.endswith("."):
        raise InputError(
            f"{what}: {name!r} is not a usable name; expected letters, digits, '_', '-', '.', at most 64 characters, "
            "not starting with '.' or '-', not ending with '.', no '..'"
        )
    return name


def natural_key(text: str) -> tuple[list[Any], str]:
    """Return a sort key that puts 'img10' after 'img9': digits compare as numbers, and ties by the text itself."""
    parts: list[Any] = re.split(r"([0-9]+)", text)
    parts[1::2] = [int(digits) for digits in parts[1::2]]
    return parts, text


def write_records(records: "Sequence[Record] | pd.DataFrame", path: Path) -> None:
    """Write records as parquet, rows in the given order; the same records give the same bytes.

    Args:
        records: records, or a frame with the fields of `Record` as columns.
        path: the parquet file to write.

    Raises:
        ValueError: a frame with other columns.
    """
    write_table(records, _SCHEMA, Path(path))


def read_records(path: Path) -> "pd.DataFrame":
    """Return a table of records as a frame, one row per real image and the fields of `Record` as columns.

    Text columns have the dtype object and None for a missing value.

    Raises:
        InputError: the file is missing, is not parquet, or has other columns or types.
    """
    return read_frame(Path(path), _SCHEMA, _ADDED)


def record_rows(source: "Path | pd.DataFrame") -> list[Record]:
    """Return the records of a file, or of a frame that `read_records` returned; a missing value is None.

    Raises:
        InputError: as `read_records`.
        ValueError: a frame with other columns.
    """
    rows = read_rows(Path(source), _SCHEMA, _ADDED) if isinstance(source, (str, Path)) else frame_rows(source, _SCHEMA)
    return [Record(**row) for row in rows]


def load_image(path: Path) -> NDArray[np.uint8]:
    """Return the decoded image upright, uint8 [H, W, 3], 0 to 255.

    Grey is replicated to three channels. Alpha is dropped without blending. 16-bit values v become round(v / 257),
    so that 65535 is 255. Palettes are applied. Of several frames the first is read. Files of a project have 8 bits.

    Raises:
        InputError: the file is missing or unreadable, or has a pixel type other than 8 or 16 bits.
    """
    return read_image(Path(path), max_pixels=HARD_LIMIT)


def load_mask(path: Path, size: tuple[int, int] | None = None, any_value: bool = False) -> NDArray[np.bool_]:
    """Return a mask that Defectory wrote, bool [H, W]: True where the largest channel is at least half of its maximum.

    A mask of zeros is empty. Alpha is ignored. Masks as annotation tools write them are read by `mask_sources`.

    Args:
        path: the image file.
        size: (height, width) to which the mask is resized by nearest neighbour.
        any_value: True where the value is above 0; for masks whose values are numbers of defect types.

    Raises:
        InputError: the file is missing or unreadable.
    """
    with open_image(Path(path), "mask") as image:
        image.load()
        plain = image.mode in ("L", "1", "F") or image.mode.startswith("I")
        values = np.asarray(image if plain else image.convert("RGB"))
    values = values.astype(np.uint8) if values.dtype == np.bool_ else values
    if values.ndim == 3:
        values = values.max(axis=2)
    top = values.max(initial=0)
    mask = values > 0 if any_value else (values >= top / 2) & (top > 0)
    if size is not None and mask.shape != tuple(size):
        mask = np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
    return np.array(mask, dtype=bool)


def image_groups(records: "Sequence[Record]") -> list[list[Record]]:
    """Return the records of each image, in the order of their first record; an image has one per defect type."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.product, record.image), []).append(record)
    return list(groups.values())


def save_png(array: NDArray[Any], path: Path) -> None:
    """Write a PNG file without metadata; the same array gives the same bytes, and missing folders are created.

    Args:
        array: uint8 [H, W] or [H, W, 3], or bool [H, W], which is written as 0 and 255.
        path: the file to write.

    Raises:
        ValueError: another type or shape.
    """
    array = np.asarray(array)
    if array.dtype == np.bool_:
        array = array.view(np.uint8) * np.uint8(255)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(f"expected uint8 [H, W] or [H, W, 3] or bool [H, W], got {array.dtype} {array.shape}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(array)).save(path, format="PNG", compress_level=6)


def pixel_digest(image: NDArray[np.uint8]) -> str:
    """Return the sha256 (hex) over mode, size and bytes of a decoded RGB image [H, W, 3].

    A grey image [H, W] has the digest of its three equal channels.
    """
    height, width = image.shape[:2]
    digest = hashlib.sha256(f"RGB {width} {height} ".encode())
    for top in range(0, height, 512):  # a few rows at a time, so that a grey image needs little memory
        digest.update(np.ascontiguousarray(as_rgb(image[top : top + 512])).data)
    return digest.hexdigest()
