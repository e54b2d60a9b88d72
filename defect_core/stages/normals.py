"""normals: defect-free images of one generator, into `data/normals/<product>/<generator>`, and what they are worth."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from defect_core.data.manifest import ManifestRow, read_manifest, write_manifest
from defect_core.data.records import GOOD, load_image, pixel_digest, save_png
from defect_core.errors import InputError
from defect_core.generators.base import Example, Generator, Image, derive_seed
from defect_core.generators.registry import generator_class, weights_folder
from defect_core.metrics.normal_images import score_normals
from defect_core.metrics.store import FeatureStore
from defect_core.progress import track
from defect_core.project.loading import load_examples, open_backbone
from defect_core.project.paths import Project, folder_digest, write_json

BATCH = 8


def run(project: Project, product: str, generator: str) -> None:
    params = project.params
    assert params.normals is not None
    train, test = (
        [e for e in load_examples(project, product, side) if e.mask is None and e.defect == GOOD]
        for side in ("train", "test")
    )
    if not train:
        raise InputError(f"product {product}: has no good training images; expected at least one to begin from")
    weights = project.path(weights_folder(product, generator))
    key = {
        "count": params.normals.count,
        "seed": params.seed,
        "model": folder_digest(weights),
        "good": [example.name for example in train],
    }
    relative = f"data/normals/{product}/{generator}"
    with project.building(relative, key) as work:
        fitted = generator_class(generator).load(weights, open_backbone(project, product, generator))
        draw_set(fitted, product, generator, train, params.normals.count, params.seed, key["model"], work)
    folder = project.path(relative)
    made = [load_image(folder / row.image) for row in read_manifest(folder / "manifest.parquet") if row.image]
    result = score_normals(
        [example.image for example in train],
        [example.image for example in test],
        made,
        image_size=params.score.image_size,
        seed=params.seed,
        store=FeatureStore(project.state / "features"),
    )
    write_json(
        project.path(f"metrics/normals/{product}/{generator}.json"),
        {"product": product, "generator": generator, **result},
    )


def draw_set(
    fitted: Generator, product: str, name: str, good: list[Example], count: int, seed: int, digest: str, folder: Path
) -> None:
    """Fill `folder` with `images/` and `manifest.parquet`; batches that an earlier, killed call finished are kept.

    An image's seed, and the good image it begins from, follow from (seed, product, generator, index) alone.
    """
    seeds = [derive_seed(seed, product, name, "normal", index) for index in range(count)]
    begun = [good[int(np.random.default_rng(one).integers(len(good)))] for one in seeds]
    files = [f"images/good-{index:05d}.png" for index in range(count)]

    def drawn() -> Iterator[tuple[int, Image]]:
        for start in range(0, count, BATCH):  # whole batches, for the last bit may depend on the size of one
            indices = range(start, min(start + BATCH, count))
            if not all((folder / files[i]).is_file() for i in indices):
                images = fitted.generate_normals([seeds[i] for i in indices], [begun[i].image for i in indices])
                yield from zip(indices, images, strict=True)

    for index, image in track(drawn(), f"{name} draws good images of {product}", count):
        fresh = folder / "fresh.png"
        save_png(image, fresh)
        (folder / files[index]).parent.mkdir(exist_ok=True)
        fresh.rename(folder / files[index])
    rows = [
        ManifestRow(
            sample_id=f"{GOOD}-{index:05d}",
            product=product,
            defect=GOOD,
            image=files[index],
            mask=None,
            generator=name,
            seed=seeds[index],
            source_image=begun[index].name,
            source_mask=None,
            prompt=None,
            strength=None,
            mask_area=0,
            quality=None,
            accepted=True,
            reject_reason=None,
            model_digest=digest,
            image_sha256=pixel_digest(load_image(folder / files[index])),
        )
        for index in range(count)
    ]
    write_manifest(rows, folder / "manifest.parquet")
