"""Exported images with the values of the original files, for products whose images are not 8 bit."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defect_core.data.depth import EIGHT_BIT, Depth
from defect_core.data.images import HARD_LIMIT, read_stored
from defect_core.data.records import Record, load_image
from defect_core.errors import InputError


class OriginalValues:
    """Gives the images of a product their original depth back.

    A pixel that a generator left as it is has the stored value of the normal image. A changed pixel has the value that
    its 8-bit level stands for.
    """

    def __init__(self, raw: Path, records: list[Record]) -> None:
        """Keep the records of images that are not 8 bit.

        Args:
            raw: folder of the real images of the product.
            records: records of the product.
        """
        self._raw = raw
        self._depths = {r.image: r.depth for r in records if r.depth not in ("", EIGHT_BIT)}

    def __bool__(self) -> bool:
        """Return whether an image of the product is not 8 bit."""
        return bool(self._depths)

    def suffix(self, image: str | None) -> str:
        """Return the suffix of an exported image: `.png` for 8 and 16 bits, otherwise `.tif`.

        Args:
            image: path of the real image, or of the normal image of a generated one.
        """
        text = self._depths.get(image or "") or (next(iter(self._depths.values())) if image is None else None)
        return ".png" if text is None or Depth.parse(text).dtype == "uint16" else ".tif"

    def real(self, image: str) -> NDArray[Any] | None:
        """Return the stored values of a real image, [H, W] or [H, W, 3]; None if it has 8 bits.

        Args:
            image: path of the image in its record.

        Raises:
            InputError: the original is missing.
        """
        if image not in self._depths:
            return None
        originals = sorted((self._raw / "originals").glob(f"{Path(image).stem}.*"))
        if not originals:
            raise InputError(f"{self._raw / 'originals'}: no original of {image}; run the stage ingest again")
        return read_stored(originals[0], HARD_LIMIT)[0]

    def generated(self, image: Path, source_image: str | None) -> NDArray[Any] | None:
        """Return a generated image with the values of its product's originals; None if they have 8 bits.

        Args:
            image: the generated image, 8 bit.
            source_image: path of its normal image in its record; None if it has none.
        """
        if not self._depths:
            return None
        if source_image is not None and source_image not in self._depths:
            return None
        depth = Depth.parse(self._depths.get(source_image or "") or next(iter(self._depths.values())))
        levels = load_image(image)
        values = depth.to_original(levels)
        stored = None if source_image is None else self.real(source_image)
        if stored is None or source_image is None:
            return values
        before = load_image(self._raw / source_image)
        if before.shape != levels.shape:
            return values
        changed = (levels != before).any(axis=2)
        if stored.ndim == 2:
            values = depth.to_original(np.rint(levels.mean(axis=2)).astype(np.uint8))
        result = stored.astype(depth.dtype)
        result[changed] = values[changed]
        return result


def write_values(values: NDArray[Any], path: Path) -> Path:
    """Write values as 16-bit PNG, or as TIFF if they are not 16 bit, and return the path with its suffix.

    Args:
        values: uint16, int32 or float32, [H, W] or [H, W, 3].
        path: the file without suffix.
    """
    import cv2

    target = path.with_name(path.name + (".png" if values.dtype == np.uint16 else ".tif"))
    target.parent.mkdir(parents=True, exist_ok=True)
    done, content = cv2.imencode(target.suffix, np.ascontiguousarray(values if values.ndim == 2 else values[..., ::-1]))
    if not done:
        raise ValueError(f"OpenCV cannot write {values.dtype} {values.shape}")
    target.write_bytes(content.tobytes())
    return target
