"""The parquet manifest of a synthetic set: one row per generated pair, accepted or rejected."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from defect_core.data.guarded import CURE, inside
from defect_core.data.records import check_name
from defect_core.data.tables import Schema, frame_rows, read_frame, read_rows, write_table
from defect_core.errors import InputError, InputErrors

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ManifestRow:
    """One synthetic pair.

    Attributes:
        sample_id: unique in the manifest.
        product: the product that the pair shows.
        defect: its defect type.
        image: POSIX path relative to the folder of the manifest; None if the pair was rejected and not stored.
        mask: like `image`.
        generator: name of the generator.
        seed: at most 63 bits.
        source_image: the real normal image, relative to `data/raw/<product>`.
        source_mask: the real image whose mask was placed, relative to `data/raw/<source_product>`.
        prompt: text that the generator was conditioned on.
        strength: requested intensity of the defect.
        mask_area: in pixels.
        quality: None if nothing scores it.
        accepted: whether the filter accepted the pair.
        reject_reason: None for an accepted pair.
        model_digest: digest of the generator's folder; empty for methods without weights.
        image_sha256: pixel digest of the image.
        source_product: product of `source_mask`; differs from `product` for a defect type of another product.
        change_inside: measured by the filter, like the following fields, also for rejected pairs. See
            `defect_core.synthesis.filter.PairMeasurements`.
        change_outside: as above.
        on_product: as above.
        nearest_image: the most similar real training example.
        nearest_distance: distance to it.
    """

    sample_id: str
    product: str
    defect: str
    image: str | None
    mask: str | None
    generator: str
    seed: int
    source_image: str | None
    source_mask: str | None
    prompt: str | None
    strength: float | None
    mask_area: int
    quality: float | None
    accepted: bool
    reject_reason: str | None
    model_digest: str | None
    image_sha256: str | None
    source_product: str | None = None
    change_inside: float | None = None
    change_outside: float | None = None
    on_product: float | None = None
    nearest_image: str | None = None
    nearest_distance: float | None = None


_SCHEMA: Schema = dict.fromkeys(ManifestRow.__dataclass_fields__, str)
_SCHEMA |= dict.fromkeys(("strength", "quality", "change_inside", "change_outside", "on_product"), float)
_SCHEMA |= {"nearest_distance": float, "seed": int, "mask_area": int, "accepted": bool}
MANIFEST_COLUMNS = tuple(_SCHEMA)


def write_manifest(rows: "Sequence[ManifestRow] | pd.DataFrame", path: Path) -> None:
    """Write the manifest, rows in the given order; the same rows give the same bytes.

    Args:
        rows: rows, or a frame with the columns `MANIFEST_COLUMNS`.
        path: the parquet file to write.

    Raises:
        ValueError: a frame with other columns.
    """
    write_table(rows, _SCHEMA, Path(path))


def read_manifest(path: Path) -> "pd.DataFrame":
    """Return a manifest as a frame with the columns `MANIFEST_COLUMNS`, one row per pair.

    Text columns have the dtype object and None for a missing value. A missing number is NaN.

    Raises:
        InputError: the file is missing, is not parquet, or has other columns or types.
    """
    return read_frame(Path(path), _SCHEMA)


def manifest_rows(source: "Path | pd.DataFrame") -> list[ManifestRow]:
    """Return the rows of a manifest file, or of a frame that `read_manifest` returned; a missing value is None.

    Raises:
        InputError: as `read_manifest`.
        ValueError: a frame with other columns.
    """
    rows = read_rows(Path(source), _SCHEMA) if isinstance(source, (str, Path)) else frame_rows(source, _SCHEMA)
    return [ManifestRow(**row) for row in rows]


def accepted_rows(folder: Path) -> list[ManifestRow]:
    """Return the accepted rows of the set in a folder, after a check of their names and files.

    Args:
        folder: folder of a synthetic set, with its manifest.

    Raises:
        InputErrors: a name is unusable, or the image or mask of a row is missing or not inside the folder, or the two
            have different sizes.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(folder) / "manifest.parquet"
    rows, problems = [row for row in manifest_rows(path) if row.accepted], []
    for row in rows:
        try:
            check_name(row.defect, "defect")
            check_name(row.sample_id, "sample_id")
            sizes = set()
            for file in (row.image, row.mask):
                with Image.open(inside(folder, file or "")) as image:
                    sizes.add(image.size)
            if len(sizes) > 1:
                problems.append(f"{path}: {row.sample_id}: image and mask have different sizes; {CURE}")
        except InputError as error:
            problems.append(f"{path}: {row.sample_id}: {error}")
        except (OSError, ValueError, UnidentifiedImageError) as error:
            problems.append(f"{path}: {row.sample_id}: {' '.join(str(error).split())}; {CURE}")
    if problems:
        raise InputErrors(problems[:20])
    return rows
