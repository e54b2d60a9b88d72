"""Reading of images as cameras and tools write them: upright, of any depth, of any size up to a limit."""

import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from defect_core.data.depth import Depth
from defect_core.data.problems import printable
from defect_core.errors import InputError

MAX_PIXELS = 500_000_000
"""Largest number of pixels of an image by default (option `max_pixels` of a source)."""
HARD_LIMIT = 2**31
"""Largest number of pixels that `load_image` reads, whatever the option."""

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
ORIENTATION = 0x0112  # the tag of EXIF and TIFF
_PILLOW = threading.Lock()
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class ImageInfo:
    """What the header of an image file says.

    Attributes:
        width: in pixels, of the upright image.
        height: in pixels, of the upright image.
        mode: pixel type as Pillow names it, such as `L`, `RGB`, `I;16`, `F`.
        bits: bits of a stored channel: 8, 16 or 32.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
        frames: number of images in the file.
    """

    width: int
    height: int
    mode: str
    bits: int
    orientation: int
    frames: int = 1


@contextmanager
def open_image(path: Path, what: str = "image") -> Iterator[Image.Image]:
    """Open an image file by Pillow, without its limit on the number of pixels.

    Args:
        path: the file.
        what: what the file is, for the message.

    Raises:
        InputError: the file is missing or unreadable.
    """
    try:
        # Pillow turns a TIFF wrongly if it maps the file into memory, which it does for a path only.
        with open(path, "rb") as stream:
            with _PILLOW:  # the limit is a global variable of Pillow
                limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                try:
                    image = Image.open(stream)
                finally:
                    Image.MAX_IMAGE_PIXELS = limit
            with image:
                yield image
    except FileNotFoundError:
        raise InputError(f"{printable(path)}: not found; expected an image file") from None
    except UNREADABLE as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise InputError(
            f"{printable(path)}: not a readable {what} ({reason}); expected png, jpg, bmp or tif"
        ) from None


def probe_image(path: Path) -> ImageInfo:
    """Return what the header of an image file says.

    Raises:
        InputError: the file is missing or unreadable.
    """
    path = Path(path)
    try:
        with open_image(path) as image:
            return _info(image)
    except InputError:
        values = _read_by_opencv(path)
        if values is None:
            raise
        height, width = values.shape[:2]
        return ImageInfo(width, height, f"{values.dtype}", 8 * min(values.dtype.itemsize, 4), 1)


def has_more_than_8_bits(path: Path) -> bool:
    """Return whether the channels of an image file have more than 8 bits; False if it is unreadable."""
    try:
        with open_image(path) as image:
            return stored_bits(image) > 8
    except InputError:
        values = _read_by_opencv(path)
        return values is not None and values.dtype != np.uint8


def read_stored(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[NDArray[Any], ImageInfo]:
    """Return the upright pixels with their stored values, [H, W] or [H, W, 3], and what the header says.

    The values are uint8, uint16, int32 or float32, and may be read-only. Palettes are applied, alpha is dropped without
    blending. Of several frames the first is read.

    Args:
        path: the image file.
        max_pixels: largest number of pixels.

    Raises:
        InputError: the file is missing or unreadable, or has more pixels.
    """
    path = Path(path)
    try:
        with open_image(path) as image:
            check_pixels(path, image.width * image.height, max_pixels)
            needs_opencv, info = _needs_opencv(image), _info(image)
            values = None if needs_opencv else _pillow_values(image)
    except InputError:
        values = _read_by_opencv(path)
        if values is None:
            raise
        height, width = values.shape[:2]
        check_pixels(path, width * height, max_pixels)
        return values, ImageInfo(width, height, f"{values.dtype}", 8 * min(values.dtype.itemsize, 4), 1)
    if values is None:
        values = _read_by_opencv(path)
        if values is None:
            raise InputError(f"{printable(path)}: not a readable image (16 bit); expected png or tif")
    if values.shape[:2] != (info.height, info.width) or (info.orientation > 1 and not _is_tiff(path)):
        values = turn_upright(values, info.orientation)
    return values, info


def read_image(path: Path, depth: Depth | None = None, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return the decoded image upright (EXIF orientation applied), uint8 [H, W, 3], 0 to 255.

    Grey is replicated to three channels. Palettes are applied, alpha is dropped without blending. Of several frames the
    first is read.

    Args:
        path: the image file.
        depth: range of the values of an image that is not 8 bit; None: all 16 bits are used, so that 65535 is 255.
        max_pixels: largest number of pixels.

    Raises:
        InputError: the file is missing or unreadable, has more pixels, or has values that need a depth.
    """
    values, _ = read_stored(path, max_pixels)
    image = as_rgb(to_8_bit(values, depth, path))
    return image if image.flags.writeable else image.copy()


def to_8_bit(values: NDArray[Any], depth: Depth | None, path: Path) -> NDArray[np.uint8]:
    """Return values that `read_stored` returned as uint8 of the same shape.

    Args:
        values: uint8, uint16, int32 or float32.
        depth: range of the values; None: 16 bits.
        path: the file, for the message.

    Raises:
        InputError: values outside 16 bits without a depth, or values that are not a number.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.float32 and not np.isfinite(values).all():
        raise InputError(f"{printable(path)}: has pixels that are not a finite number; expected none")
    if depth is None:
        if values.dtype == np.float32:
            raise InputError(f"{printable(path)}: floating-point pixels; expected 8 or 16 bits per channel")
        if values.dtype != np.uint16 and values.size and (values.min() < 0 or values.max() > 65535):
            raise InputError(f"{printable(path)}: pixel values outside 0 to 65535; expected 8 or 16 bits per channel")
        depth = Depth.of_bits(16)
    return depth.to_8_bit(values)


def as_rgb(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image uint8 [H, W, 3]; grey [H, W] is replicated."""
    import cv2

    if values.ndim == 3 or not values.size:
        return values if values.ndim == 3 else np.repeat(values[:, :, None], 3, axis=2)
    return np.asarray(cv2.cvtColor(values, cv2.COLOR_GRAY2RGB), np.uint8)


def turn_upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return stored pixels [H, W] or [H, W, C] turned as an EXIF orientation says.

    Args:
        values: the pixels.
        orientation: 1 to 8 as in the EXIF standard; other values leave the pixels as they are.
    """
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks, or the name of its type."""
    return " ".join(str(error).split()) or type(error).__name__


def check_pixels(path: Path, pixels: int, max_pixels: int) -> None:
    """Check the size of an image.

    Raises:
        InputError: it has more than `max_pixels` pixels.
    """
    if pixels > max_pixels:
        raise InputError(
            f"{printable(path)}: {pixels} pixels; expected at most {max_pixels}, or a larger options.max_pixels"
        )


def _info(image: Image.Image) -> ImageInfo:
    bits, frames = stored_bits(image), getattr(image, "n_frames", 1)
    orientation = image.getexif().get(ORIENTATION, 1)  # decodes a PNG, whose EXIF may follow the pixels
    orientation = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
    width, height = image.size
    if orientation >= 5 and image.format != "TIFF":  # Pillow turns TIFF itself
        width, height = height, width
    return ImageInfo(width, height, image.mode, bits, orientation, frames)


def stored_bits(image: Image.Image) -> int:
    """Return the bits of a stored channel, 8, 16 or 32, of an image that Pillow opened and has not decoded."""
    if image.mode.startswith("I;16") or _needs_opencv(image) or (image.format == "PNG" and image.mode == "I"):
        return 16
    return 32 if image.mode in ("I", "F") else 8


def _needs_opencv(image: Image.Image) -> bool:
    """Return whether Pillow would reduce the channels of an image to 8 bits, or scale them."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return False
    arguments = tiles[0][3]
    if image.format == "PPM":
        return isinstance(arguments, tuple) and any(isinstance(part, int) and part > 255 for part in arguments)
    raw = arguments if isinstance(arguments, str) else arguments[0] if arguments else ""
    return isinstance(raw, str) and ";16" in raw and not image.mode.startswith("I")


def _pillow_values(image: Image.Image) -> NDArray[Any]:
    image.load()
    mode = image.mode
    if mode == "1":
        return np.asarray(image.convert("L"))
    if mode in ("L", "RGB", "LA"):
        return np.asarray(image if mode != "LA" else image.getchannel(0))
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if mode == "I":
        values = np.asarray(image)
        fits = not values.size or (values.min() >= 0 and values.max() <= 65535)
        return values.astype(np.uint16) if fits else np.array(values, np.int32)
    if mode == "F":
        return np.asarray(image, np.float32)
    if mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "RGBX"):
        return np.ascontiguousarray(np.asarray(image)[:, :, :3])
    return np.asarray(image.convert("RGB"))


def _is_tiff(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(4) in _TIFF


def _read_by_opencv(path: Path) -> NDArray[Any] | None:
    """Return the pixels of a deep TIFF, PNG or PNM file, [H, W] or RGB [H, W, 3]; None if it is no such file."""
    import cv2

    try:
        with open(path, "rb") as stream:
            start = stream.read(8)
        if not (start.startswith(_TIFF) or start.startswith(b"\x89PNG") or start[:2] in (b"P5", b"P6")):
            return None
        values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error):
        return None
    if values is None:
        return None
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    elif values.dtype not in (np.uint8, np.uint16, np.int32, np.float32):
        values = values.astype(np.int32)
    if values.ndim == 3:
        values = values[:, :, 0] if values.shape[2] < 3 else values[:, :, 2::-1]
    return np.ascontiguousarray(values)
