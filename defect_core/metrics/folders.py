"""Scores of one folder of images against another, without a project."""

from pathlib import Path
from typing import Any, NamedTuple

from defect_core.data.records import load_image, load_mask
from defect_core.errors import InputError
from defect_core.generators.base import Image, Mask
from defect_core.metrics.protocol import ImageSets, ScoreOptions, score_sets
from defect_core.metrics.sheet import NO_MASKS
from defect_core.metrics.store import FeatureStore

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
MASK_FOLDERS = ("masks", "mask", "ground_truth")
_DEFECT = "all"


def score_folders(
    real: Path, generated: Path, image_size: int = 128, seed: int = 0, store: FeatureStore | None = None
) -> dict[str, Any]:
    """Returns the scores of all images below one folder against all images below another, pooled.

    Images may differ in size and type (see `data.records.load_image`). Masked scores need masks in both folders: as
    `NAME_mask.png` beside an image, or with the same path below `masks/`, `mask/` or `ground_truth/`. Every image
    must then have one (see `data.records.load_mask`). One image per folder is enough. Scores that need more are
    listed in `missing` with the reason.

    Args:
        real: folder of real images.
        generated: folder of generated images.
        image_size: side in pixels to which all images are resized.
        seed: seed of subsets and caps.
        store: stored features of earlier calls.

    Returns:
        The result of `protocol.score_sets` with one defect type, `all`.

    Raises:
        InputError: a folder is missing or has no image, an image is unreadable, or some images lack a mask.
    """
    sides = [_read_folder(folder) for folder in (real, generated)]
    masks, reason = {"real": sides[0].masks, "generated": sides[1].masks}, ""
    if without := [side for side, masks_of_side in masks.items() if masks_of_side is None]:
        reason = f"no masks in {' and '.join(without)}"
    elif empty := [side for side, masks_of_side in masks.items() if not any(m.any() for m in masks_of_side or ())]:
        reason = f"no defect pixel in any mask of {' and '.join(empty)}"
    sets = [
        ImageSets(
            {_DEFECT: side.images},
            None if reason or side.masks is None else {_DEFECT: side.masks},
            {_DEFECT: side.names},
        )
        for side in sides
    ]
    options = ScoreOptions(image_size=image_size, seed=seed, store=store or FeatureStore())
    result = score_sets(sets[0], sets[1], options=options)
    for name, missing_reason in result["missing"].items():
        if reason and missing_reason == NO_MASKS:
            result["missing"][name] = reason
    return result


class _Folder(NamedTuple):
    """Images of a folder. `names` are paths below it; `masks` is None if the folder has none."""

    names: list[str]
    images: list[Image]
    masks: list[Mask] | None


def _read_folder(folder: Path) -> _Folder:
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; expected a folder with images")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    beside = {path for path in files if path.stem.endswith("_mask")}
    apart = {path for path in files if path.parts[0] in MASK_FOLDERS and len(path.parts) > 1}
    paths = [path for path in files if path not in beside | apart]
    if not paths:
        raise InputError(f"{folder}: no image; expected at least one ({', '.join(sorted(IMAGE_SUFFIXES))})")
    images = [load_image(folder / path) for path in paths]
    names = [path.as_posix() for path in paths]
    if not beside | apart:
        return _Folder(names, images, None)
    mask_of = {path.with_suffix("").as_posix().removesuffix("_mask"): path for path in sorted(beside - apart)}
    mask_of |= {Path(*path.parts[1:]).with_suffix("").as_posix().removesuffix("_mask"): path for path in sorted(apart)}
    masks = []
    for path, image in zip(paths, images, strict=True):
        mask = mask_of.get(path.with_suffix("").as_posix())
        if mask is None:
            raise InputError(
                f"{folder / path}: no mask, but {len(mask_of)} other image(s) have one; expected {path.stem}_mask.png "
                "beside it or the same path below masks/, for all images or for none"
            )
        masks.append(load_mask(folder / mask, image.shape[:2]))
    return _Folder(names, images, masks)
