"""Trace of a synthetic image to its generator, settings and real images, and its exact regeneration."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from pydantic import ValidationError

from defect_core.data.files import folder_digest
from defect_core.data.manifest import ManifestRow, manifest_rows
from defect_core.data.records import GOOD, Record, load_image, pixel_digest, record_rows
from defect_core.errors import InputError
from defect_core.generators.base import SampleRequest, read_description
from defect_core.lineage.git import commit_of
from defect_core.lineage.lock import output_digest, read_lock, recorded_params
from defect_core.project.examples import split_records_of
from defect_core.project.paths import Project, synthetic_folder
from defect_core.project.synthesis import load_project_generator, load_synthesis_job
from defect_core.synthesis.batches import MANIFEST_FILE, PLAN_FILE
from defect_core.synthesis.requests import SynthesisPlan, batch_indices, make_request, normal_examples


def trace_image(project: Project, image: Path) -> dict[str, Any]:
    """Return everything that a synthetic image was made from.

    Args:
        project: of the image.
        image: an image of a synthetic set or of a release, or its mask; absolute, relative to the current folder, or
            relative to the project.

    Returns:
        `image`, `mask`, `sample_id`, `product`, `defect`, `seed`, `prompt`, `strength`, `quality`.
        `unaltered`: whether the pixels have the recorded digest.
        `generator`: `name`, `weights` (sha256 over its folder at the time of sampling), `weights_here` (sha256 over
        the folder now, None without a folder), `config` (None if these differ).
        `settings`: the plan of the set with its base seed, and the recorded backbone.
        `source_image`, `source_mask`: the normal image and the mask of the request. `training`: all training images
        of the generator. Each has `path` and `sha256` (over pixels; over the file for a mask).
        `set`: DVC's digest of the set. `commit`: see `commit_of`.

    Raises:
        InputError: the image is not in a synthetic set of this project, or its real images are missing.
    """
    folder, row = _find(project, image)
    lender = row.source_product or row.product
    source = _record(project, row.product, row.source_image, row)
    example = _record(project, lender, row.source_mask, row)
    recorded, digest = _recorded(project, folder, row)
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
        "generator": _generator(project, row),
        "settings": read_plan(folder).model_dump() | {"backbone": recorded.get("backbone")},
        "source_image": {"path": _raw(source), "sha256": source.sha256},
        "source_mask": {
            "path": _relative(project, mask_file),
            "sha256": hashlib.sha256(mask_file.read_bytes()).hexdigest() if mask_file.is_file() else None,
            "of": {"path": _raw(example), "sha256": example.sha256},
        },
        "training": [
            {"path": _raw(record), "defect": record.defect, "sha256": record.sha256}
            for record in _training_records(project, row)
        ],
        "set": digest,
        "commit": commit_of(project, digest),
    }


def verify_image(project: Project, image: Path) -> str:
    """Generate an image again, from its seed, in its batch and with the present weights, and compare the files.

    Results are bit-identical only on the kind of processor that generated the image.

    Args:
        project: see `trace_image`.
        image: see `trace_image`.

    Returns:
        "" when image and mask have equal bytes; else one line with the difference.

    Raises:
        InputError: see `trace_image`.
    """
    folder, row = _find(project, image)
    weights = project.params.generator_folder(row.product, row.generator)
    if not project.path(weights).is_dir():
        return f"{weights} is missing; expected the weights of the image; run `dvc checkout` or `dvc pull`"
    if folder_digest(project.path(weights)) != row.model_digest:
        return f"{weights} has other weights than those that generated the image; check out the commit of the image"
    requests, position, normal = _requests(project, folder, row)
    source = requests[position].source
    if (normal, source and source.name) != (row.source_image, row.source_mask):
        return (
            f"data/split/{row.product}.parquet has other training images than those that the image was generated "
            "from; check out the commit of the image"
        )
    pair = list(load_project_generator(project, row.product, row.generator).sample(requests))[position]
    for kind, array, file in (("image", pair.image, row.image), ("mask", pair.mask.astype(np.uint8) * 255, row.mask)):
        path = folder / str(file)
        if _png(array) != path.read_bytes():
            return f"the {kind} generated again differs from {_relative(project, path)}"
    return ""


def read_plan(folder: Path) -> SynthesisPlan:
    """Return the plan of a synthetic set.

    Raises:
        InputError: the set has no plan, or one of another version.
    """
    path = folder / PLAN_FILE
    try:
        return SynthesisPlan.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problem = "is missing"
    except ValidationError:
        problem = "is of another version"
    raise InputError(f"{folder.name}/{PLAN_FILE} {problem}; expected the plan of the set; synthesize the set again")


def print_trace(trace: Mapping[str, Any]) -> None:
    """Print a trace as lines of name and value; of the normal training images it prints the number only.

    Args:
        trace: see `trace_image`.
    """
    defects = [entry for entry in trace["training"] if entry["defect"] != GOOD]
    normals = len(trace["training"]) - len(defects)
    generator, commit = trace["generator"], trace["commit"]
    other = "" if generator["weights_here"] == generator["weights"] else "  (the present weights differ)"
    lines = [
        ("image", f"{trace['image']}" + ("" if trace["unaltered"] else "  (ALTERED since it was generated)")),
        ("mask", trace["mask"]),
        ("defect", f"{trace['defect']} on {trace['product']}, sample {trace['sample_id']}"),
        ("generator", generator["name"]),
        ("weights", f"sha256 {generator['weights']}{other}"),
        ("its config", _short(generator["config"])),
        ("settings", _short(trace["settings"])),
        ("seed", trace["seed"]),
        ("normal image", _file(trace["source_image"])),
        ("mask from", _file(trace["source_mask"])),
        ("  of", _file(trace["source_mask"]["of"])),
        ("trained on", f"{len(trace['training'])} images, {normals} of them normal (--json lists all):"),
        *(("  " + entry["defect"], _file(entry)) for entry in defects),
        ("commit", f"{commit['head'] or 'not in git'}" + (", with changes" if commit["dirty"] else "")),
        ("recorded in", commit["recorded_in"] or "no commit yet"),
    ]
    for name, value in lines:
        print(f"{name:14} {value}")


def _requests(project: Project, folder: Path, row: ManifestRow) -> tuple[list[SampleRequest], int, str]:
    """Return the requests of an image's batch, the position of the image, and the name of its normal image."""
    plan = read_plan(folder)
    examples = load_synthesis_job(project, row.product, row.generator).examples
    normals = normal_examples(plan, examples)
    sources = [example for example in examples if example.defect == row.defect]
    index = int(row.sample_id.rpartition("-")[2])
    batch = batch_indices(plan, row.defect, index)
    requests = [make_request(plan, row.defect, number, normals, sources) for number in batch]
    position = index - batch.start
    return [request for request, _ in requests], position, requests[position][1]


def _find(project: Project, image: Path) -> tuple[Path, ManifestRow]:
    """Return the folder of the set that an image belongs to, and its row in the manifest."""
    path = image.absolute()
    if not path.is_file() and project.path(image.as_posix()).is_file():
        path = project.path(image.as_posix())
    path = path.parent.resolve() / path.name
    if not path.is_file():
        raise InputError(f"{image}: file not found; expected an image in data/synthetic or data/release")
    inside = any(path.is_relative_to(project.path(f"data/{kind}").resolve()) for kind in ("synthetic", "release"))
    folder = next((parent for parent in path.parents if (parent / MANIFEST_FILE).is_file()), None)
    if not inside or folder is None:
        raise InputError(f"{image}: not a synthetic image; expected one in data/synthetic/<product>/<generator>")
    name = path.relative_to(folder).as_posix()
    for row in manifest_rows(folder / MANIFEST_FILE):
        if row.accepted and name in (row.image, row.mask):
            return folder, row
    raise InputError(f"{image}: not in the manifest of its set; expected an accepted image")


def _record(project: Project, product: str, name: str | None, row: ManifestRow) -> Record:
    for record in record_rows(project.path(f"data/split/{product}.parquet")):
        if record.image == name:
            return record
    raise InputError(
        f"data/split/{product}.parquet: {name} is missing; expected the real images that {row.sample_id} was "
        "generated from; run `dvc checkout` at the commit of the image"
    )


def _generator(project: Project, row: ManifestRow) -> dict[str, Any]:
    weights = project.path(project.params.generator_folder(row.product, row.generator))
    present = folder_digest(weights) if weights.is_dir() else None
    config = read_description(weights, row.generator)["config"] if present == row.model_digest else None
    return {"name": row.generator, "weights": row.model_digest, "weights_here": present, "config": config}


def _training_records(project: Project, row: ManifestRow) -> list[Record]:
    """Return the training images of the product, or of all products for a generator of scope `catalogue`."""
    is_shared = project.params.capabilities(row.generator).scope == "catalogue"
    products = project.params.products if is_shared else (row.product,)
    return [record for product in products for record in split_records_of(project, product, "train")]


def _recorded(project: Project, folder: Path, row: ManifestRow) -> tuple[dict[str, Any], str | None]:
    """Return the recorded settings of the set's stage instance, and DVC's digest of the set or of the release."""
    lock = read_lock(project)
    address = f"synthesize@{row.product}-{row.generator}"
    release = f"data/release/{row.product}"
    # The set may have been regenerated after its images were released.
    if folder.is_relative_to(project.path("data/release").resolve()):
        digest = output_digest(lock, f"release@{row.product}", release)
    else:
        digest = output_digest(lock, address, synthetic_folder(row.product, row.generator))
    return recorded_params(lock, address), digest


def _raw(record: Record) -> str:
    return f"data/raw/{record.product}/{record.image}"


def _relative(project: Project, path: Path) -> str:
    return path.resolve().relative_to(project.root).as_posix() if path.resolve().is_relative_to(project.root) else ""


def _png(array: NDArray[np.uint8]) -> bytes:
    """Return the bytes that `save_png` writes."""
    stream = io.BytesIO()
    PILImage.fromarray(np.ascontiguousarray(array)).save(stream, format="PNG", compress_level=6)
    return stream.getvalue()


def _file(entry: dict[str, Any]) -> str:
    return f"{entry['path']}  sha256 {(entry['sha256'] or 'missing')[:16]}"


def _short(settings: dict[str, Any] | None) -> str:
    if not settings:
        return "not recorded"
    return ", ".join(f"{name}={value}" for name, value in settings.items())
