"""The range of grey levels in images that are not 8 bit: detected, declared, applied and inverted."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defect_core.errors import InputError

EIGHT_BIT = "8 bit"
"""Depth of a record whose image has 8 bits."""
BIT_DEPTHS = (8, 10, 12, 14, 16)
_NUMBER = r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?"
_RANGE = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})")
_DARK_FRACTION = 1 / 8  # below it, the brightest pixels are under 32 of 255
_BRIGHT = 0.999  # quantile of the values that counts as bright; hot pixels are above it
_MARGIN = 0.25  # of the span of floating-point values, on both sides, for defects brighter or darker than normal images


@dataclass(frozen=True)
class Depth:
    """A range of stored values that becomes 0 to 255.

    Attributes:
        low: value that becomes 0; lower values do as well.
        high: value that becomes 255; higher values do as well.
        dtype: type of the stored values: `uint16`, `int32` or `float32`.
    """

    low: float
    high: float
    dtype: str = "uint16"

    @classmethod
    def of_bits(cls, bits: int) -> "Depth":
        """Return the range of unsigned integers of some bits."""
        return cls(0, 2**bits - 1)

    @classmethod
    def parse(cls, text: str | int, dtype: str = "uint16") -> "Depth":
        """Return a depth that the user declared or that `str` wrote.

        Args:
            text: a number of bits (`12`, `12 bit in 16`) or a range (`0..4095`, `float 0..1`).
            dtype: type of the stored values, unless the text names it.

        Raises:
            InputError: the text is neither.
        """
        words = str(text).strip()
        for name, kind in (("float", "float32"), ("int", "int32")):
            if words.startswith(f"{name} "):
                words, dtype = words[len(name) :].strip(), kind
        found = _RANGE.match(words)
        if found and float(found[1]) < float(found[2]):
            return cls(float(found[1]), float(found[2]), dtype)
        bits = re.fullmatch(r"([0-9]{1,2})(?: ?bits?(?: in 16)?)?", words)
        if bits and 1 <= int(bits[1]) <= 16:
            return cls(0, 2 ** int(bits[1]) - 1, dtype)
        raise InputError(f"options.depth: {text!r}; expected bits such as 12, or a range such as 0..4095 or 0..1")

    def __str__(self) -> str:
        """Return the depth as words, which `parse` reads."""
        if self.dtype == "uint16":
            bits = [bits for bits in range(1, 17) if self.low == 0 and self.high == 2**bits - 1]
            return f"{bits[0]} bit in 16" if bits else f"{self.low:.9g}..{self.high:.9g} in 16 bit"
        return f"{self.dtype.removesuffix('32')} {self.low:.9g}..{self.high:.9g}"

    def to_8_bit(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Return round(255 (v - low) / (high - low)), clipped to 0 to 255; halves are rounded up."""
        if values.dtype == np.uint16:
            table: NDArray[np.uint8] = self._scale(np.arange(65536, dtype=np.float64))
            return table[values]
        result = np.empty(values.shape, np.uint8)
        for top in range(0, len(values), 256):  # a few rows at a time, because float64 is eight times larger
            result[top : top + 256] = self._scale(values[top : top + 256].astype(np.float64))
        return result

    def to_original(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Return 8-bit levels as values of the stored type: low + v (high - low) / 255."""
        table = self.low + np.arange(256, dtype=np.float64) * (self.high - self.low) / 255
        if self.dtype != "float32":
            table = np.floor(table + 0.5)
        result: NDArray[Any] = table.astype(self.dtype)[image]
        return result

    def clips(self, values: NDArray[Any]) -> bool:
        """Return whether a value is outside the range."""
        return bool(values.size and (values.max() > self.high or values.min() < self.low))

    def _scale(self, values: NDArray[np.float64]) -> NDArray[np.uint8]:
        scaled = np.floor((values - self.low) * (255 / (self.high - self.low)) + 0.5)
        return np.clip(scaled, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class ValueRange:
    """The values of one image in short: its extremes, and the value below which 99.9 % of the pixels are."""

    low: float
    bright: float
    high: float
    dark: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> "ValueRange":
        """Measure the values of an image; quantiles are those of at most 250 000 pixels, evenly spaced."""
        flat = values.reshape(-1)
        sample = flat[:: max(1, flat.size // 250_000)]
        dark, bright = np.quantile(sample, [1 - _BRIGHT, _BRIGHT])
        return cls(float(flat.min()), float(bright), float(flat.max()), float(dark))


def detect_range(ranges: Sequence[ValueRange], dtype: str) -> Depth:
    """Return the range of the values of a product's normal images.

    uint16: the smallest of `BIT_DEPTHS` that holds the largest value. If the images would be nearly black by it,
    because few pixels are much brighter than the others, the bit depth that holds 99.9 % of the pixels.

    Other types: 0 to 1, or 0 to 255, if the values use that range. Otherwise the quantiles 0.1 % and 99.9 % and a
    margin of 25 %, rounded to two digits of the span.

    Args:
        ranges: what `ValueRange.of` measured, at least one.
        dtype: type of the stored values.
    """
    high, low = max(one.high for one in ranges), min(one.low for one in ranges)
    bright, dark = max(one.bright for one in ranges), min(one.dark for one in ranges)
    if dtype == "uint16":
        bits = _bits(high)
        if bright < _DARK_FRACTION * (2**bits - 1):
            if _bits(bright) == BIT_DEPTHS[0]:
                return Depth(0, max(1, 2 ** int(np.ceil(np.log2(bright + 1))) - 1))
            bits = _bits(bright)
        return Depth.of_bits(bits)
    for top in (1.0, 255.0):
        if low >= 0 and high <= top and bright >= 2 * _DARK_FRACTION * top:
            return Depth(0.0, top, dtype)
    span = bright - dark or 1.0
    step = 10.0 ** (np.floor(np.log10(span)) - 1)
    lower = np.floor((dark - _MARGIN * span) / step) * step
    upper = np.ceil((bright + _MARGIN * span) / step) * step
    return Depth(float(f"{lower:.6g}"), float(f"{upper:.6g}"), dtype)


def _bits(value: float) -> int:
    return next(bits for bits in BIT_DEPTHS if value <= 2**bits - 1)
