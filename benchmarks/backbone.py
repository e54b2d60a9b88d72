"""Quality of a backbone on products that it was not trained on.

    python -m benchmarks.backbone vae PROJECT PRODUCT ...       round trip of the autoencoder on real images
    python -m benchmarks.backbone adapt PROJECT PRODUCT         generated against real normal images, after `adapt`
    python -m benchmarks.backbone denoiser                      error of the predicted noise on unseen corpus images
    python -m benchmarks.backbone sampling                      seconds per pair of disentangled inversion

`vae` needs the stages `ingest` and `split` of the products, `adapt` also the stage `adapt`. LPIPS needs the published
AlexNet weights (DEFECTORY_WEIGHTS).
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.__main__ import BATCHES, sampling_time
from defect_core.adaptation.normal_sampler import NormalSampler, StartImages
from defect_core.backbones.load import Backbone, load_backbone
from defect_core.data.records import record_rows, save_png
from defect_core.diffusion.schedule import add_noise
from defect_core.errors import InputError
from defect_core.generators.views import to_pixels, to_tensor
from defect_core.metrics.features import InceptionFeatures, Lite0Features, LpipsDistance
from defect_core.metrics.frechet import frechet_distance
from defect_core.metrics.neighbours import memorisation
from defect_core.pretraining.corpus.scene import render_scene
from defect_core.project.examples import load_example
from defect_core.project.paths import Project
from defect_core.report.adapted import shuffle_together
from defect_core.report.sheets import contact_sheet

BATCH_SIZE = 16
GENERATED = 300
SPLITS = 5
SHEET_IMAGES = 20
LEVELS, SHEET_LEVEL = (0, 0.2, 0.4, 0.6, 0.8), 0.4
TIMESTEPS = (20, 100, 300, 600, 900, 999)
UNSEEN, UNSEEN_SEED = 128, 77  # scenes that the pretraining does not use
Images = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    vae = commands.add_parser("vae")
    vae.add_argument("project", type=Path)
    vae.add_argument("products", nargs="+")
    adapt = commands.add_parser("adapt")
    adapt.add_argument("project", type=Path)
    adapt.add_argument("product")
    adapt.add_argument(
        "--sheet", type=Path, help="PNG to write: 20 real and 20 generated images in random order; NAME-start.png too"
    )
    denoiser = commands.add_parser("denoiser")
    commands.add_parser("sampling")
    for command in (vae, adapt, denoiser):
        command.add_argument("--backbone", default="embedded", help="name or folder, as for load_backbone")
    options = parser.parse_args()
    if options.command == "sampling":
        for batch_size in BATCHES:
            print(f"{sampling_time(batch_size):.3f} s per pair at 25 + 25 steps, 128 px, batch of {batch_size}")
        return
    backbone = load_backbone(options.backbone)
    if options.command == "vae":
        result = round_trips(backbone, Project(options.project), options.products)
    elif options.command == "adapt":
        result = adapted_distances(backbone, Project(options.project), options.product, options.sheet)
    else:
        result = noise_errors(backbone)
    print(json.dumps(result, indent=2))


def round_trips(backbone: Backbone, project: Project, products: list[str]) -> dict[str, dict[str, float]]:
    """Return the results of `round_trip` by product, and their mean over the products."""
    results = {product: round_trip(backbone, project, product) for product in products}
    scores = ("psnr_db", "psnr_in_masks_db", "lpips_alex")
    return {**results, "mean": {score: _mean([result[score] for result in results.values()]) for score in scores}}


def round_trip(backbone: Backbone, project: Project, product: str) -> dict[str, float]:
    """Return PSNR in dB (peak 255) of whole images and inside the defect masks, and LPIPS-Alex, as means at 128 px."""
    lpips = LpipsDistance("alex")
    records = record_rows(project.path(f"data/raw/{product}/records.parquet"))
    psnrs, mask_psnrs, distances = [], [], []
    for start in range(0, len(records), BATCH_SIZE):
        examples = [load_example(project, record) for record in records[start : start + BATCH_SIZE]]
        images = _resize([example.image for example in examples], backbone.resolution)
        with torch.inference_mode():
            decoded = np.rint(to_pixels(backbone.decode(backbone.encode(to_tensor(list(images)))))).clip(0, 255)
        errors = ((decoded - images.astype(np.float64)) ** 2).mean(-1)
        psnrs += [_psnr(error.mean()) for error in errors]
        for example, error in zip(examples, errors, strict=True):
            if example.mask is not None:
                mask = Image.fromarray(example.mask.astype(np.float32)).resize(error.shape[::-1], Image.Resampling.BOX)
                mask_psnrs.append(_psnr(error[np.asarray(mask) > 0].mean()))
        difference = lpips.embed(images) - lpips.embed(decoded.astype(np.uint8))
        distances += (difference.astype(np.float64) ** 2).sum(1).tolist()
    return {
        "images": len(records),
        "defects": len(mask_psnrs),
        "psnr_db": _mean(psnrs),
        "psnr_in_masks_db": _mean(mask_psnrs),
        "lpips_alex": round(float(np.mean(distances)), 4),
    }


def noise_errors(backbone: Backbone) -> dict[str, dict[str, float]]:
    """Return the mean squared error of the predicted noise by timestep, on whole images that training did not use.

    A prediction of zero has an error of 1. `scaled_input` is the error of the noisy latents at unit variance, and
    `empty_caption` that of the network with an empty prompt.
    """
    scenes = [render_scene(np.random.default_rng([UNSEEN_SEED, index])) for index in range(UNSEEN)]
    generator = torch.Generator().manual_seed(0)
    results = {}
    with torch.inference_mode():
        latents = backbone.encode(to_tensor([scene.image for scene in scenes]))
        text = backbone.encode_text([scene.caption for scene in scenes])
        empty_text = backbone.encode_text([""]).expand_as(text)
        for timestep in TIMESTEPS:
            noise = torch.randn(latents.shape, generator=generator)
            noisy = add_noise(latents, noise, backbone.alphas_cumprod[[timestep] * len(latents)])
            errors = {"scaled_input": noisy / noisy.std() - noise}
            for name, condition in (("network", text), ("empty_caption", empty_text)):
                errors[name] = backbone.denoiser(noisy, timestep, condition).sample - noise
            results[str(timestep)] = {name: round(float(error.square().mean()), 4) for name, error in errors.items()}
    return results


def adapted_distances(original: Backbone, project: Project, product: str, sheet: Path | None) -> dict[str, Any]:
    """Return Fréchet distances on EfficientNet-Lite0 features (not FID) between normal images at 128 px.

    | key | distance |
    |---|---|
    | `real_halves` | between two random halves of the real images, mean over five splits |
    | `generated` | between 300 images, sampled with the settings of the stage, and all real images |
    | `generated_without_sensor_noise` | the same without sensor noise |
    | `generated_same_size` | between as many images as a half has and a half; comparable with `real_halves` |
    | `generated_before_adapt` | between images of the original backbone and all real images |
    | `generated_nearest` | to the nearest training image, relative to that between training images; 0 are copies |
    | `from_real` | see `from_real_distances` |
    | `inception` | see `inception_distances` |
    """
    folder = project.path(f"data/backbone/{product}")
    normal = [row for row in record_rows(project.path(f"data/split/{product}.parquet")) if row.mask is None]
    real = _resize([load_example(project, row).image for row in normal], original.resolution)
    train = [load_example(project, row) for row in normal if row.split == "train"]
    sampler = NormalSampler.load(folder, load_backbone(folder), original, train)
    seeds = list(range(GENERATED))
    noiseless = sampler.sample_without_sensor_noise(seeds)
    generated = np.stack(sampler.add_sensor_noise(noiseless, seeds))
    unadapted = replace(sampler, backbone=original, guidance_backbone=None).sample_without_sensor_noise(seeds)
    network = Lite0Features()
    real_features, features, unadapted_features, noiseless_features = (
        network.extract(np.stack(list(images))).pooled for images in (real, generated, unadapted, noiseless)
    )
    is_train = np.array([row.split == "train" for row in normal])
    half = len(real) // 2
    splits = [np.random.default_rng(seed).permutation(len(real)) for seed in range(SPLITS)]
    halves = [(real_features[split[:half]], real_features[split[half:]]) for split in splits]
    distances = {
        "real_halves": np.mean([frechet_distance(first, second) for first, second in halves]),
        "generated": frechet_distance(features, real_features),
        "generated_without_sensor_noise": frechet_distance(noiseless_features, real_features),
        "generated_same_size": np.mean([frechet_distance(features[:half], first) for first, _ in halves]),
        "generated_before_adapt": frechet_distance(unadapted_features, real_features),
        "generated_nearest": memorisation(features, real_features[is_train]).ratio or np.nan,
    }
    start, unseen = real[splits[0][:half]], real[splits[0][half : 2 * half]]
    from_real, sheet_images = from_real_distances(sampler, start, unseen)
    if sheet is not None:
        _write_sheet(real, generated, sheet)
        _write_sheet(unseen, sheet_images, sheet.with_stem(f"{sheet.stem}-start"))
    return {
        "real": len(real),
        "generated_images": GENERATED,
        "sampler": sampler.config._asdict(),
        **{key: round(float(value), 2) for key, value in distances.items()},
        "inception": inception_distances(real, generated),
        "from_real": from_real,
    }


def from_real_distances(
    sampler: NormalSampler, start: Images, unseen: Images
) -> tuple[dict[str, dict[str, float | None]], Images]:
    """Return distances of images sampled from noised real images, by noise level, and the images of SHEET_LEVEL.

    The level is a fraction of the timesteps; 0 is the round trip of the autoencoder. Sampling uses small steps only and
    no guidance. `distance` is the Fréchet distance to unseen images, `nearest` that to the nearest start image.
    """
    network = Lite0Features()
    start_features, unseen_features = (network.extract(images).pooled for images in (start, unseen))
    results, sheet_images = {}, start
    for level in LEVELS:
        images = sample_from_real(sampler.backbone, sampler.product, start, level)
        features = network.extract(images).pooled
        nearest = memorisation(features, start_features)
        results[str(level)] = {
            "distance": round(float(frechet_distance(features[: len(start)], unseen_features)), 2),
            "nearest": nearest.ratio and round(nearest.ratio, 3),
        }
        sheet_images = images if level == SHEET_LEVEL else sheet_images
    return results, sheet_images


def inception_distances(real: Images, generated: Images) -> dict[str, float] | None:
    """Return `real_halves` (one split) and `generated` on the features of Inception, by which no setting was chosen.

    None if the weights of Inception are not available (`DEFECTORY_WEIGHTS`).
    """
    try:
        network = InceptionFeatures()
    except InputError:
        return None
    half = len(real) // 2
    split = np.random.default_rng(0).permutation(len(real))
    features, _ = network.extract(real)
    distances = {
        "real_halves": frechet_distance(features[split[:half]], features[split[half:]]),
        "generated": frechet_distance(network.extract(generated)[0], features),
    }
    return {name: round(value, 2) for name, value in distances.items()}


def sample_from_real(backbone: Backbone, product: str, real: Images, level: float) -> Images:
    """Return 300 images sampled from real ones [N, R, R, 3], noised to `level`; 0 only encodes and decodes them."""
    start = [real[index % len(real)] for index in range(GENERATED)]
    if level > 0:
        sampler = NormalSampler(product, backbone, real_images=list(real))
        return np.stack(sampler.sample_without_sensor_noise(list(range(GENERATED)), StartImages(start, level)))
    batches = [start[i : i + BATCH_SIZE] for i in range(0, GENERATED, BATCH_SIZE)]
    with torch.inference_mode():
        decoded = [to_pixels(backbone.decode(backbone.encode(to_tensor(batch)))) for batch in batches]
    return np.clip(np.rint(np.concatenate(decoded)), 0, 255).astype(np.uint8)


def _write_sheet(real: Images, generated: Images, path: Path) -> None:
    """Write 20 real and 20 generated images in random order, and a JSON list of the generated ones' positions."""
    rng = np.random.default_rng(0)
    chosen = list(real[rng.permutation(len(real))[:SHEET_IMAGES]])
    images, positions = shuffle_together(chosen, list(generated[:SHEET_IMAGES]), rng)
    save_png(contact_sheet(images, [None] * len(images), columns=10, cell=images[0].shape[0]), path)
    path.with_suffix(".json").write_text(json.dumps(positions) + "\n")


def _resize(images: list[Images], side: int) -> Images:
    return np.stack([np.asarray(Image.fromarray(i).resize((side, side), Image.Resampling.BICUBIC)) for i in images])


def _psnr(error: float) -> float:
    return 10 * np.log10(255**2 / max(float(error), 1e-6))


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 2 if max(values) > 1 else 4)


if __name__ == "__main__":
    main()
