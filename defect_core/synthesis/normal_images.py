"""Normal images in bulk, by generators with this capability."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from defect_core.data.files import atomic_path
from defect_core.data.manifest import ManifestRow, write_manifest
from defect_core.data.records import GOOD, load_image, pixel_digest, save_png
from defect_core.generators.base import Example, Generator, Image
from defect_core.progress import track
from defect_core.seeds import derive_seed

BATCH_SIZE = 8


def synthesize_normals(
    generator: Generator,
    product: str,
    references: Sequence[Example],
    count: int,
    base_seed: int,
    model_digest: str,
    folder: Path,
) -> None:
    """Fill `folder` with `images/` and `manifest.parquet`; finished images of an interrupted call are kept.

    The seed of an image and its reference depend on (base seed, product, generator, index) alone.

    Args:
        generator: trained; it must generate normal images.
        product: name of the product.
        references: real normal images to start from; at least one.
        count: number of images.
        base_seed: seed of the project.
        model_digest: digest of the generator's folder, for the manifest.
        folder: where files are written.
    """
    seeds = [derive_seed(base_seed, product, generator.name, "normal", index) for index in range(count)]
    chosen = [references[int(np.random.default_rng(seed).integers(len(references)))] for seed in seeds]
    files = [f"images/good-{index:05d}.png" for index in range(count)]

    def sample() -> Iterator[tuple[int, Image]]:
        # Whole batches, because rounding may depend on the size of a batch.
        for start in range(0, count, BATCH_SIZE):
            indices = range(start, min(start + BATCH_SIZE, count))
            if not all((folder / files[i]).is_file() for i in indices):
                images = generator.generate_normals([seeds[i] for i in indices], [chosen[i].image for i in indices])
                yield from zip(indices, images, strict=True)

    for index, image in track(sample(), f"{generator.name} generates normal images of {product}", count):
        with atomic_path(folder / files[index]) as file:
            save_png(image, file)
    rows = [
        ManifestRow(
            sample_id=f"{GOOD}-{index:05d}",
            product=product,
            defect=GOOD,
            image=files[index],
            mask=None,
            generator=generator.name,
            seed=seeds[index],
            source_image=chosen[index].name,
            source_mask=None,
            prompt=None,
            strength=None,
            mask_area=0,
            quality=None,
            accepted=True,
            reject_reason=None,
            model_digest=model_digest,
            image_sha256=pixel_digest(load_image(folder / files[index])),
        )
        for index in range(count)
    ]
    write_manifest(rows, folder / "manifest.parquet")
