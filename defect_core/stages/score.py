"""score: a synthetic set against real defects, into `metrics/score/`.

Distances between distributions are to the test side, which no generator has seen; variety around real examples and
copies of them are about the training side, which it has. A defect that was carried over from another product
(`zero_shot`) is scored on its own, against the test side where that has it.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from defect_core.data.manifest import read_manifest
from defect_core.data.records import load_image, load_mask
from defect_core.errors import InputError
from defect_core.generators.base import Example, Image, Mask
from defect_core.metrics.protocol import score_sets
from defect_core.metrics.store import FeatureStore
from defect_core.project.loading import load_examples
from defect_core.project.paths import Project, write_json

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
MASK_FOLDERS = ("masks", "mask", "ground_truth")

_Sets = dict[str, list[Example]]


def run(project: Project, product: str, generator: str) -> None:
    train, test = (_by_defect(load_examples(project, product, side)) for side in ("train", "test"))
    folder = project.path(f"data/synthetic/{product}/{generator}")
    made: dict[str, list[Example]] = {}
    for row in read_manifest(folder / "manifest.parquet"):
        if row.accepted:
            pair = Example(product, row.defect, load_image(folder / row.image), load_mask(folder / row.mask), row.image)
            made.setdefault(row.defect, []).append(pair)
    if not made:
        raise InputError(f"data/synthetic/{product}/{generator}: holds no accepted pair; nothing to score")
    lenders = {wish.defect: wish.lender for wish in project.params.borrowed(product, generator)}
    carried = {defect: made.pop(defect) for defect in lenders if defect in made}
    result: dict[str, Any] = {"protocol": {}, "scores": {"pooled": {}, "defects": {}}, "missing": {}}
    if made:
        result = _score(project, train, made, test)
    for defect, pairs in sorted(carried.items()):
        found: dict[str, Any] = {"from": lenders[defect], "generated": len(pairs)}
        found |= {"scores": {}, "missing": {"all": "the product has no real example of it"}}
        if defect in test:
            real = {defect: test[defect]}
            scored = _score(project, real, {defect: pairs}, real)
            found |= {"scores": scored["scores"]["pooled"], "missing": scored["missing"]}
        result.setdefault("zero_shot", {})[defect] = found
    result["product"], result["generator"] = product, generator
    result["acceptance"] = json.loads((folder / "summary.json").read_text())
    write_json(project.path(f"metrics/score/{product}/{generator}.json"), result)


def score_folders(
    real: Path, generated: Path, image_size: int, seed: int, store: FeatureStore | None = None
) -> dict[str, Any]:
    """Score all images below one folder against all below another, pooled; no project is needed.

    Images may differ in size and type: each is read as `data.records.load_image` says (gray is repeated, alpha is
    dropped, 16 bits become 8) and brought to `image_size`. Masks count where both folders have them, as
    `NAME_mask.png` beside an image or as the same path below `masks/` or `ground_truth/`; every image must then have
    one, and `load_mask` says which pixels are defective (at least half of the file's brightest). One image is
    enough for a folder; scores that need more are listed in `missing` with the reason, as are masked scores where
    no mask of a side has a defect pixel.

    Raises:
        InputError: a folder is missing or holds no image, an image is unreadable, or some images lack a mask.
    """
    sides = [_read_folder(folder) for folder in (real, generated)]
    masks, why = {"real": sides[0].masks, "generated": sides[1].masks}, ""
    if without := [side for side, found in masks.items() if found is None]:
        why = f"no masks in {' and '.join(without)}"
    elif empty := [side for side, found in masks.items() if not any(mask.any() for mask in found or ())]:
        why = f"no defect pixel in any mask of {' and '.join(empty)}"
    given = [None, None] if why else [{"all": found} for found in masks.values()]
    result = score_sets(
        {"all": sides[0].images},
        {"all": sides[1].images},
        real_masks=given[0],
        generated_masks=given[1],
        image_size=image_size,
        seed=seed,
        names=({"all": sides[0].names}, {"all": sides[1].names}),
        store=store,
    )
    for name, reason in result["missing"].items():
        if why and reason == "no masks given":
            result["missing"][name] = why
    return result


def _score(project: Project, train: _Sets, made: _Sets, test: _Sets) -> dict[str, Any]:
    return score_sets(
        _images(train),
        _images(made),
        real_masks=_masks(train),
        generated_masks=_masks(made),
        unseen=_images(test),
        image_size=project.params.score.image_size,
        seed=project.params.seed,
        names=(_names(train), _names(made)),
        store=FeatureStore(project.state / "features"),
    )


def _by_defect(examples: list[Example]) -> dict[str, list[Example]]:
    grouped: dict[str, list[Example]] = {}
    for example in examples:
        if example.mask is not None:
            grouped.setdefault(example.defect, []).append(example)
    return grouped


def _images(grouped: dict[str, list[Example]]) -> dict[str, list[Image]]:
    return {defect: [example.image for example in examples] for defect, examples in grouped.items()}


def _masks(grouped: dict[str, list[Example]]) -> dict[str, list[Mask]]:
    return {defect: [example.mask for example in examples] for defect, examples in grouped.items()}


def _names(grouped: dict[str, list[Example]]) -> dict[str, list[str]]:
    return {defect: [example.name for example in examples] for defect, examples in grouped.items()}


class _Folder(NamedTuple):
    """`names` are paths below the folder; `masks` is None where the folder has none."""

    names: list[str]
    images: list[Image]
    masks: list[Mask] | None


def _read_folder(folder: Path) -> _Folder:
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; expected a folder with images")
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    beside = {path for path in found if path.stem.endswith("_mask")}
    apart = {path for path in found if path.parts[0] in MASK_FOLDERS and len(path.parts) > 1}
    names = [path for path in found if path not in beside | apart]
    if not names:
        raise InputError(f"{folder}: holds no image; expected at least one ({', '.join(sorted(IMAGE_SUFFIXES))})")
    images = [load_image(folder / name) for name in names]
    if not beside | apart:
        return _Folder([name.as_posix() for name in names], images, None)
    stems = {path.with_suffix("").as_posix().removesuffix("_mask"): path for path in sorted(beside - apart)}
    stems |= {Path(*path.parts[1:]).with_suffix("").as_posix().removesuffix("_mask"): path for path in sorted(apart)}
    masks = []
    for name, image in zip(names, images, strict=True):
        mask = stems.get(name.with_suffix("").as_posix())
        if mask is None:
            raise InputError(
                f"{folder / name}: has no mask, though {len(stems)} other(s) have; expected {name.stem}_mask.png "
                "beside it or masks/ with the same path, for all images or for none"
            )
        masks.append(load_mask(folder / mask, image.shape[:2]))
    return _Folder([name.as_posix() for name in names], images, masks)
