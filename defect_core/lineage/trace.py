"""From a synthetic image back to the pixels and settings that made it, and forward again to the very same bytes."""

import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from defect_core.data.manifest import ManifestRow, read_manifest
from defect_core.data.records import Record, load_image, pixel_digest, read_records
from defect_core.errors import InputError
from defect_core.generators.base import read_description
from defect_core.generators.registry import generator_capabilities, generator_class, weights_folder
from defect_core.lineage.git import commit_of
from defect_core.lineage.lock import output_digest, read_lock, recorded_params
from defect_core.project.loading import open_backbone, split_records_of
from defect_core.project.paths import Project, folder_digest
from defect_core.stages.synthesize import examples_for
from defect_core.synthesis.batches import RECIPE_FILE, SynthesisPlan, batch_around, make_request

MANIFEST = "manifest.parquet"


def trace(project: Project, image: Path) -> dict[str, Any]:
    """Everything that made an image.

    Args:
        image: of a synthetic set or of a release, or its mask; absolute or relative to the current folder.

    Returns:
        `image`, `mask`, `sample_id`, `product`, `defect`, `seed`, `prompt`, `strength`, `quality`; `unaltered`:
        whether the pixels are those that were recorded; `generator`: `name`, `weights` (sha256 over its folder when
        the image was drawn), `weights_here` (that of the folder as it lies here, None when it is not here) and its
        `config`; `settings`: the recipe of the set with its base seed, and the backbone on DVC's record;
        `source_image` and `source_mask`: the real images behind this one; `training`: all that the generator was
        fitted on; each with `path` and `sha256` (over the pixels; of a mask over its file); `set`: DVC's digest of
        the whole set; `commit`: see `commit_of`.

    Raises:
        InputError: not an image of a synthetic set of this project, or the real images are not there.
    """
    folder, row = _find(project, image)
    lender = row.source_product or row.product
    source = _record(project, row.product, row.source_image, row)
    example = _record(project, lender, row.source_mask, row)
    weights = project.path(weights_folder(row.product, row.generator))
    here = folder_digest(weights) if weights.is_dir() else None
    address = f"synthesize@{row.product}-{row.generator}"
    lock = read_lock(project)
    digest = output_digest(lock, address, f"data/synthetic/{row.product}/{row.generator}")
    if folder.is_relative_to(project.path("data/release").resolve()):  # the set may have been drawn anew since
        digest = output_digest(lock, f"release@{row.product}", f"data/release/{row.product}")
    mask_file = project.path(f"data/raw/{lender}") / str(example.mask)
    return {
        "image": _relative(project, folder / str(row.image)),
        "mask": _relative(project, folder / str(row.mask)),
        "sample_id": row.sample_id,
        "product": row.product,
        "defect": row.defect,
        "seed": row.seed,
        "prompt": row.prompt,
        "strength": row.strength,
        "quality": row.quality,
        "unaltered": pixel_digest(load_image(folder / str(row.image))) == row.image_sha256,
        "generator": {
            "name": row.generator,
            "weights": row.model_digest,
            "weights_here": here,
            "config": read_description(weights, row.generator)["config"] if here == row.model_digest else None,
        },
        "settings": asdict(read_recipe(folder)) | {"backbone": recorded_params(lock, address).get("backbone")},
        "source_image": {"path": _raw(source), "sha256": source.sha256},
        "source_mask": {
            "path": _relative(project, mask_file),
            "sha256": hashlib.sha256(mask_file.read_bytes()).hexdigest() if mask_file.is_file() else None,
            "of": {"path": _raw(example), "sha256": example.sha256},
        },
        "training": [
            {"path": _raw(record), "defect": record.defect, "sha256": record.sha256}
            for record in _learned_from(project, row)
        ],
        "set": digest,
        "commit": commit_of(project, digest),
    }


def verify(project: Project, image: Path) -> str:
    """Draw an image again, from its seed and in its batch, with the weights that lie here.

    Returns:
        "" when both PNG files come out byte for byte; else one line that says what differs.

    Raises:
        InputError: as `trace`.
    """
    folder, row = _find(project, image)
    weights = project.path(where := weights_folder(row.product, row.generator))
    if not weights.is_dir():
        return f"{where}: not here; `dvc checkout` or `dvc pull` brings it"
    if folder_digest(weights) != row.model_digest:
        return f"{where}: holds other weights than those that drew the image"
    recipe = read_recipe(folder)
    examples = examples_for(project, row.product, row.generator)
    normals = [example for example in examples if example.mask is None and example.product == row.product]
    sources = [example for example in examples if example.defect == row.defect]
    index = int(row.sample_id.rpartition("-")[2])
    batch = batch_around(recipe, row.defect, index)
    made = [make_request(recipe, row.defect, number, normals, sources) for number in batch]
    request, normal = made[index - batch.start]
    if (normal, request.source.name) != (row.source_image, row.source_mask):
        return f"data/split/{row.product}.parquet: other training images than those that the image was drawn from"
    fitted = generator_class(row.generator).load(weights, open_backbone(project, row.product, row.generator))
    pair = list(fitted.sample([request for request, _ in made]))[index - batch.start]
    for what, drawn, file in (("image", pair.image, row.image), ("mask", pair.mask.astype(np.uint8) * 255, row.mask)):
        if _png(drawn) != (folder / str(file)).read_bytes():
            return f"the {what} drawn again differs from {_relative(project, folder / str(file))}"
    return ""


def read_recipe(folder: Path) -> SynthesisPlan:
    """The recipe of a synthetic set.

    Raises:
        InputError: the set has none, or one of another version.
    """
    try:
        return SynthesisPlan(**json.loads((folder / RECIPE_FILE).read_text()))
    except (FileNotFoundError, TypeError, ValueError):
        raise InputError(
            f"{folder.name}/{RECIPE_FILE}: missing or of another version; synthesize the set again"
        ) from None


def print_trace(found: dict[str, Any]) -> None:
    """Print a trace for people; good training images as their number only."""
    good = sum(entry["defect"] == "good" for entry in found["training"])
    generator, commit = found["generator"], found["commit"]
    here = "" if generator["weights_here"] == generator["weights"] else "  (not the ones that lie here now)"
    lines = [
        ("image", f"{found['image']}" + ("" if found["unaltered"] else "  (ALTERED since it was drawn)")),
        ("mask", found["mask"]),
        ("defect", f"{found['defect']} on {found['product']}, sample {found['sample_id']}"),
        ("generator", generator["name"]),
        ("weights", f"sha256 {generator['weights']}{here}"),
        ("its settings", _short(generator["config"])),
        ("settings", _short(found["settings"])),
        ("seed", found["seed"]),
        ("drawn on", _file(found["source_image"])),
        ("mask from", _file(found["source_mask"])),
        ("  of", _file(found["source_mask"]["of"])),
        ("learned from", f"{len(found['training'])} images, {good} of them good (--json lists all):"),
        *(("  " + entry["defect"], _file(entry)) for entry in found["training"] if entry["defect"] != "good"),
        ("commit", f"{commit['head'] or 'not in git'}" + (", with changes" if commit["dirty"] else "")),
        ("recorded in", commit["recorded_in"] or "no commit yet"),
    ]
    for name, value in lines:
        print(f"{name:14} {value}")


def _find(project: Project, image: Path) -> tuple[Path, ManifestRow]:
    """The folder of the set that an image belongs to, and its row."""
    path = image.absolute()
    if not path.is_file() and project.path(image.as_posix()).is_file():
        path = project.path(image.as_posix())
    path = path.parent.resolve() / path.name
    if not path.is_file():
        raise InputError(f"{image}: not found; expected an image under data/synthetic or data/release")
    inside = any(path.is_relative_to(project.path(f"data/{kind}").resolve()) for kind in ("synthetic", "release"))
    folder = next((parent for parent in path.parents if (parent / MANIFEST).is_file()), None)
    if not inside or folder is None:
        raise InputError(f"{image}: not a synthetic image; expected one under data/synthetic/<product>/<generator>")
    name = path.relative_to(folder).as_posix()
    for row in read_manifest(folder / MANIFEST):
        if row.accepted and name in (row.image, row.mask):
            return folder, row
    raise InputError(f"{image}: not in the manifest beside it; expected an accepted image of the set")


def _record(project: Project, product: str, name: str | None, row: ManifestRow) -> Record:
    for record in read_records(project.path(f"data/split/{product}.parquet")):
        if record.image == name:
            return record
    raise InputError(
        f"data/split/{product}.parquet: {name} is not in it, from which {row.sample_id} was drawn; "
        "expected the real images as they were then (`dvc checkout` of that commit)"
    )


def _learned_from(project: Project, row: ManifestRow) -> list[Record]:
    """The training side of the product, or of all products where the generator was fitted on the whole catalogue."""
    shared = generator_capabilities(row.generator).scope == "catalogue"
    products = project.params.products if shared else (row.product,)
    return [record for product in products for record in split_records_of(project, product, "train")]


def _raw(record: Record) -> str:
    return f"data/raw/{record.product}/{record.image}"


def _relative(project: Project, path: Path) -> str:
    return path.resolve().relative_to(project.root).as_posix() if path.resolve().is_relative_to(project.root) else ""


def _png(array: np.ndarray) -> bytes:
    """The bytes that `save_png` writes."""
    stream = io.BytesIO()
    PILImage.fromarray(np.ascontiguousarray(array)).save(stream, format="PNG", compress_level=6)
    return stream.getvalue()


def _file(entry: dict[str, Any]) -> str:
    return f"{entry['path']}  sha256 {(entry['sha256'] or 'missing')[:16]}"


def _short(settings: dict[str, Any] | None) -> str:
    if not settings:
        return "not on record here"
    return ", ".join(f"{name}={value}" for name, value in settings.items())
