"""Records of real images, their parquet table, and the one way images and masks are read and written."""

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defect_core.errors import InputError

GOOD = "good"
SPLITS = ("train", "test", "")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Record:
    """A real image.

    `image` and `mask` are posix paths relative to the folder of the table; `mask` is None exactly for `good`.
    `split` is `train`, `test` or empty (not split). `sha256` is `pixel_digest` of the decoded image, so a renamed
    or losslessly re-encoded copy has the same one. `width` and `height` are in pixels.
    """

    product: str
    defect: str
    image: str
    mask: str | None
    split: str
    sha256: str
    width: int
    height: int


def check_name(name: str, what: str) -> str:
    """Return `name` if it can name a product, defect or generator in paths, commands and DVC addresses.

    Raises:
        InputError: it is empty, longer than 64, starts with '.' or '-', contains '..' or anything but ASCII
            letters, digits, '_', '-', '.'.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name or name.endswith("."):
        raise InputError(
            f"{what}: {name!r} is not a usable name; expected letters, digits, '_', '-', '.', at most 64 characters, "
            "not starting with '.' or '-', not ending with '.', no '..'"
        )
    return name


def natural_key(text: str) -> tuple[list[Any], str]:
    """Sort key that puts 'img10' after 'img9': runs of digits compare as numbers, ties by the raw text."""
    parts: list[Any] = re.split(r"([0-9]+)", text)
    parts[1::2] = [int(digits) for digits in parts[1::2]]
    return parts, text


def write_records(records: Sequence[Record], path: Path) -> None:
    """Write the table as parquet, rows in the given order; the same records give the same bytes."""
    write_table([asdict(record) for record in records], _SCHEMA, Path(path))


def read_records(path: Path) -> list[Record]:
    """Read a table written by `write_records`.

    Raises:
        InputError: the file is missing, is no parquet, or has other columns or types.
    """
    return [Record(**row) for row in read_table(Path(path), _SCHEMA)]


def load_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image to uint8 [H, W, 3], 0 to 255.

    Gray is replicated to three channels. Alpha is dropped: the stored colours stay as they are, nothing is blended.
    16-bit values v become round(v / 257), so that 65535 is 255. Palettes are looked up. EXIF rotation is
    ignored, because masks lie on the stored pixels. Of several frames the first is taken.

    Raises:
        InputError: missing, unreadable, or of a pixel type other than 8 or 16 bits.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode.startswith("I"):
                return _from_16_bit(np.asarray(image), path)
            if image.mode == "F":
                raise InputError(f"{path}: floating-point pixels; expected 8 or 16 bits per channel")
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            return np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found; expected an image file") from None
    except _UNREADABLE as error:
        raise InputError(f"{path}: not a readable image ({_one_line(error)}); expected png, jpg, bmp or tif") from None


def load_mask(path: Path, size: tuple[int, int] | None = None, any_value: bool = False) -> NDArray[np.bool_]:
    """Decode a mask to bool [H, W]: True where the brightest channel is at least half of the file's maximum.

    So 0/1, 0/255, RGB and anti-aliased masks all read alike; a mask of zeros is empty. Alpha is ignored.
    With `any_value` every value above 0 is True: for masks that number kinds of defects. With `size` =
    (height, width) it is resized to that by nearest neighbour.

    Raises:
        InputError: missing or unreadable.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            image.load()
            plain = image.mode in ("L", "1", "F") or image.mode.startswith("I")
            values = np.asarray(image if plain else image.convert("RGB")).astype(np.float32)
    except FileNotFoundError:
        raise InputError(f"{path}: not found; expected a mask image") from None
    except _UNREADABLE as error:
        raise InputError(f"{path}: not a readable mask ({_one_line(error)}); expected png, bmp or tif") from None
    if values.ndim == 3:
        values = values.max(axis=2)
    top = values.max(initial=0)
    mask = values > 0 if any_value else (2 * values >= top) & (top > 0)
    if size is not None and mask.shape != tuple(size):
        mask = np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
    return np.array(mask, dtype=bool)


def save_png(array: NDArray[Any], path: Path) -> None:
    """Write uint8 [H, W] or [H, W, 3], or bool [H, W] as 0/255; makes the folder; no metadata, stable bytes."""
    array = np.asarray(array)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(f"expected uint8 [H, W] or [H, W, 3] or bool [H, W], got {array.dtype} {array.shape}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(array)).save(path, format="PNG", compress_level=6)


def pixel_digest(image: NDArray[np.uint8]) -> str:
    """sha256 over mode, size and bytes of a decoded RGB image [H, W, 3]."""
    height, width = image.shape[:2]
    digest = hashlib.sha256(f"RGB {width} {height} ".encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


_SCHEMA = {field.name: (int if field.type is int else str) for field in fields(Record)}
_ARROW_NAMES = {str: "string", int: "int64", float: "float64", bool: "bool"}


def write_table(rows: Sequence[dict[str, Any]], schema: dict[str, type], path: Path) -> None:
    """Write rows as parquet with exactly the columns of `schema`; through a temporary file, so never half."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.schema(
        [(name, getattr(pa, _ARROW_NAMES[kind].replace("bool", "bool_"))()) for name, kind in schema.items()]
    )
    table = pa.Table.from_pylist([{name: row[name] for name in schema} for row in rows], schema=arrow)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    pq.write_table(table, partial, compression="zstd")
    os.replace(partial, path)


def read_table(path: Path, schema: dict[str, type]) -> list[dict[str, Any]]:
    """Read a parquet file that must have exactly the columns and types of `schema`.

    Raises:
        InputError: missing, no parquet, or another schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except FileNotFoundError:
        raise InputError(f"{path}: not found; expected a parquet table") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({_one_line(error)})") from None
    for name, kind in schema.items():
        if name not in table.column_names:
            raise InputError(f"{path}: column {name!r} is missing; expected {', '.join(schema)}")
        found = str(table.schema.field(name).type).removeprefix("large_").replace("double", "float64")
        if found != _ARROW_NAMES[kind]:
            raise InputError(f"{path}: column {name!r} is {found}; expected {_ARROW_NAMES[kind]}")
    for name in table.column_names:
        if name not in schema:
            raise InputError(f"{path}: unknown column {name!r}; expected {', '.join(schema)}")
    rows: list[dict[str, Any]] = table.select(list(schema)).to_pylist()
    return rows


def _from_16_bit(values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise InputError(f"{path}: pixel values outside 0 to 65535; expected 8 or 16 bits per channel")
    gray = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
