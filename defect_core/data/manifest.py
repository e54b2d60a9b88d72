"""The parquet manifest of a synthetic set: one row per drawn pair, accepted or not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from defect_core.data.records import read_table, write_table


@dataclass(frozen=True)
class ManifestRow:
    """One synthetic pair.

    `image` and `mask` are posix paths relative to the manifest's folder (None when the pair was rejected and not
    kept); `source_image` and `source_mask` the real images it was drawn from, relative to the project, the latter of
    `source_product` (another one than `product` for a defect that the product has never had). `mask_area` is
    in pixels, `quality` None where nothing scores it, `model_digest` empty for methods without weights,
    `image_sha256` the pixel digest of the image. `seed` is at most 63 bits. The last five are what the filter measured,
    of rejected pairs too: see `defect_core.synthesis.filter.PairMeasurements`; `nearest_image` is a real training example.
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


_SCHEMA = {name: str for name in ManifestRow.__dataclass_fields__}
_SCHEMA |= dict.fromkeys(("change_inside", "change_outside", "on_product", "nearest_distance"), float)
_SCHEMA |= {"seed": int, "strength": float, "mask_area": int, "quality": float, "accepted": bool}
MANIFEST_COLUMNS = tuple(_SCHEMA)


def write_manifest(rows: Sequence[ManifestRow], path: Path) -> None:
    """Write the manifest, rows in the given order; the same rows give the same bytes."""
    write_table([asdict(row) for row in rows], _SCHEMA, Path(path))


def read_manifest(path: Path) -> list[ManifestRow]:
    """Read a manifest written by `write_manifest`.

    Raises:
        InputError: missing, no parquet, or other columns or types.
    """
    return [ManifestRow(**row) for row in read_table(Path(path), _SCHEMA)]
