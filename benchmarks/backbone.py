"""What the embedded backbone is worth on products it has never seen, in a project that has taken them in.

    python -m benchmarks.backbone vae PROJECT PRODUCT ...       round trip of the autoencoder
    python -m benchmarks.backbone adapt PROJECT PRODUCT         generated against real good images, after `adapt`
    python -m benchmarks.backbone denoiser                      error of the predicted noise on unseen corpus pictures
    python -m benchmarks.backbone sampling                      seconds per pair of disentangled inversion

`vae` and `adapt` need the stages `ingest` and `split` (and `adapt`) of the products; LPIPS also needs AlexNet's
published trunk (DEFECTORY_WEIGHTS).
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.__main__ import BATCHES, sampling_time
from defect_core.adaptation.normal_sampler import NormalSampler, sample_normal_images
from defect_core.backbones import Backbone, load_backbone
from defect_core.data.records import read_records, save_png
from defect_core.diffusion.schedule import add_noise
from defect_core.errors import InputError
from defect_core.generators.composite import is_gray
from defect_core.generators.views import to_pixels, to_tensor
from defect_core.metrics.features import InceptionFeatures, Lite0Features, LpipsDistance
from defect_core.metrics.frechet import frechet_distance
from defect_core.metrics.memorisation import memorisation
from defect_core.pretraining.corpus import draw
from defect_core.project.loading import load_example
from defect_core.project.paths import Project
from defect_core.report.adapted import mixed
from defect_core.report.sheets import contact_sheet

BATCH = 16
GENERATED = 300
SPLITS = 5
SHEET = 20
LEVELS, SHOWN_LEVEL = (0, 0.2, 0.4, 0.6, 0.8), 0.4
UNSEEN, UNSEEN_SEED = 128, 77


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    vae = commands.add_parser("vae")
    vae.add_argument("project", type=Path)
    vae.add_argument("products", nargs="+")
    adapted = commands.add_parser("adapt")
    adapted.add_argument("project", type=Path)
    adapted.add_argument("product")
    adapted.add_argument(
        "--sheet", type=Path, help="PNG to write: 20 real and 20 generated images, mixed; NAME-redrawn.png too"
    )
    denoiser = commands.add_parser("denoiser")
    commands.add_parser("sampling")
    for command in (vae, adapted, denoiser):
        command.add_argument("--backbone", default="embedded", help="name or folder, as for load_backbone")
    options = parser.parse_args()
    if options.command == "vae":
        backbone = load_backbone(options.backbone)
        found = {name: round_trip(backbone, Project(options.project), name) for name in options.products}
        scores = ("psnr_db", "psnr_in_masks_db", "lpips_alex")
        mean = {key: _mean([row[key] for row in found.values()]) for key in scores}
        print(json.dumps({**found, "mean": mean}, indent=2))
    elif options.command == "adapt":
        found = adapted_distance(
            load_backbone(options.backbone), Project(options.project), options.product, options.sheet
        )
        print(json.dumps(found, indent=2))
    elif options.command == "denoiser":
        print(json.dumps(noise_error(load_backbone(options.backbone)), indent=2))
    else:
        for batch in BATCHES:
            print(f"{sampling_time(batch):.3f} s per pair at 25 + 25 steps, 128 px, batch of {batch}")


def round_trip(backbone: Backbone, project: Project, product: str) -> dict[str, float]:
    """Mean PSNR in dB (peak 255) over the images, inside the defect masks alone, and mean LPIPS-Alex, at 128 px."""
    network = LpipsDistance("alex")
    records = read_records(project.path(f"data/raw/{product}/records.parquet"))
    whole, inside, distances = [], [], []
    for start in range(0, len(records), BATCH):
        examples = [load_example(project, record) for record in records[start : start + BATCH]]
        images = _resized([example.image for example in examples], backbone.resolution)
        with torch.inference_mode():
            back = np.rint(to_pixels(backbone.decode(backbone.encode(to_tensor(list(images)))))).clip(0, 255)
        squared = ((back - images.astype(np.float64)) ** 2).mean(-1)
        whole += [_psnr(error.mean()) for error in squared]
        for example, error in zip(examples, squared, strict=True):
            if example.mask is not None:
                small = Image.fromarray(example.mask.astype(np.float32)).resize(error.shape[::-1], Image.Resampling.BOX)
                inside.append(_psnr(error[np.asarray(small) > 0].mean()))
        apart = network.embed(images) - network.embed(back.astype(np.uint8))
        distances += (apart.astype(np.float64) ** 2).sum(1).tolist()
    return {
        "images": len(records),
        "defects": len(inside),
        "psnr_db": _mean(whole),
        "psnr_in_masks_db": _mean(inside),
        "lpips_alex": round(float(np.mean(distances)), 4),
    }


def noise_error(backbone: Backbone) -> dict[str, dict[str, float]]:
    """Mean squared error of the predicted noise, by time step, on whole pictures that the training did not see.

    An estimate that is always zero scores 1. `scaled_input` returns the noisy latents at unit variance instead;
    `empty_caption` is the network without its words.
    """
    scenes = [draw(np.random.default_rng([UNSEEN_SEED, index])) for index in range(UNSEEN)]
    generator = torch.Generator().manual_seed(0)
    found = {}
    with torch.inference_mode():
        clean = backbone.encode(to_tensor([scene.image for scene in scenes]))
        texts = backbone.encode_text([scene.caption for scene in scenes])
        empty = backbone.encode_text([""]).expand_as(texts)
        for time in (20, 100, 300, 600, 900, 999):
            noise = torch.randn(clean.shape, generator=generator)
            noisy = add_noise(clean, noise, backbone.schedule[[time] * len(clean)])
            errors = {"scaled_input": noisy / noisy.std() - noise}
            for name, text in (("network", texts), ("empty_caption", empty)):
                errors[name] = backbone.denoiser(noisy, time, text).sample - noise
            found[str(time)] = {name: round(float(error.square().mean()), 4) for name, error in errors.items()}
    return found


def adapted_distance(original: Backbone, project: Project, product: str, sheet: Path | None) -> dict[str, Any]:
    """Fréchet distances on EfficientNet-Lite0 features (not FID) of generated and real good images at 128 px.

    `halves`: between two random halves of the real ones, mean over five splits. `generated`: 300 generated, in the way
    that the stage chose, against all real ones. The distance falls with the number of images, so `generated_same_size`
    compares a generated set of a half's size with a half, as `halves` does. `generated_nearest`: the distance of their
    features to the nearest training image, in units of the same among training images; near 0 are copies.

    `redrawn`, by level: 300 images that begin from a half of the real good ones, noised to this share of the
    schedule's steps, without guidance and in all steps; as many of them as a half holds are compared with the other
    half. At level 0 it is the autoencoder alone. `nearest`: as above, to the images that they began from.
    """
    folder = project.path(f"data/backbone/{product}")
    good = [r for r in read_records(project.path(f"data/split/{product}.parquet")) if r.mask is None]
    real = _resized([load_example(project, record).image for record in good], original.resolution)
    train = [load_example(project, record) for record in good if record.split == "train"]
    drawer = NormalSampler.load(folder, load_backbone(folder), original, train)
    seeds = list(range(GENERATED))
    clear = drawer.clear(seeds)
    made = np.stack(drawer.grained(clear, seeds))
    bare = np.stack(replace(drawer, backbone=original, guide=None).clear(seeds))
    network = Lite0Features()
    seen, drawn, before, grainless = (network.extract(np.stack(i)).pooled for i in (real, made, bare, clear))
    learned = np.array([record.split == "train" for record in good])
    half = len(real) // 2
    pairs = [np.random.default_rng(seed).permutation(len(real)) for seed in range(SPLITS)]
    found = {
        "halves": np.mean([frechet_distance(seen[order[:half]], seen[order[half:]]) for order in pairs]),
        "generated": frechet_distance(drawn, seen),
        "generated_without_grain": frechet_distance(grainless, seen),
        "generated_same_size": np.mean([frechet_distance(drawn[:half], seen[order[:half]]) for order in pairs]),
        "generated_before_adapt": frechet_distance(before, seen),
        "generated_nearest": memorisation(drawn, seen[learned]).ratio or np.nan,
    }
    order = pairs[0]
    begun, unseen = order[:half], order[half : 2 * half]
    redrawn, example = {}, made
    for level in LEVELS:
        images = redraw(drawer.backbone, product, real[begun], level)
        features = network.extract(images).pooled
        near = memorisation(features, seen[begun])
        redrawn[str(level)] = {
            "distance": round(float(frechet_distance(features[:half], seen[unseen])), 2),
            "nearest": near.ratio and round(near.ratio, 3),
        }
        example = images if level == SHOWN_LEVEL else example
    if sheet is not None:
        _mixed_sheet(real, made, sheet)
        _mixed_sheet(real[unseen], example, sheet.with_stem(f"{sheet.stem}-redrawn"))
    rounded = {key: round(float(value), 2) for key, value in found.items()}
    facts = {"real": len(real), "generated_images": GENERATED, "way": drawer.way._asdict()}
    return {**facts, **rounded, "inception": inception_distances(real, made), "redrawn": redrawn}


def inception_distances(real: np.ndarray, made: np.ndarray) -> dict[str, float] | None:
    """The same distances on Inception's features, that nothing was chosen by; None where its weights are not at hand
    (`DEFECTORY_WEIGHTS`). `halves`: of one split.
    """
    try:
        network = InceptionFeatures()
    except InputError:
        return None
    half = len(real) // 2
    order = np.random.default_rng(0).permutation(len(real))
    seen, _ = network.extract(real)
    found = {
        "halves": frechet_distance(seen[order[:half]], seen[order[half:]]),
        "generated": frechet_distance(network.extract(made)[0], seen),
    }
    return {name: round(value, 2) for name, value in found.items()}


def redraw(backbone: Backbone, product: str, real: np.ndarray, level: float) -> np.ndarray:
    """300 images that begin from real ones [N, R, R, 3] in turn, noised to `level`; 0: encoded and decoded only."""
    begun = [real[number % len(real)] for number in range(GENERATED)]
    if level > 0:
        begun_from = {"references": begun, "level": level, "gray": all(is_gray(image) for image in real)}
        return np.stack(sample_normal_images(backbone, product, list(range(GENERATED)), **begun_from))
    parts = [begun[i : i + BATCH] for i in range(0, GENERATED, BATCH)]
    with torch.inference_mode():
        decoded = [to_pixels(backbone.decode(backbone.encode(to_tensor(part)))) for part in parts]
    return np.clip(np.rint(np.concatenate(decoded)), 0, 255).astype(np.uint8)


def _mixed_sheet(real: np.ndarray, made: np.ndarray, path: Path) -> None:
    """20 real and 20 generated images, mixed; the places of the generated ones, from 1, stand beside the sheet."""
    rng = np.random.default_rng(0)
    images, drawn = mixed(real[rng.permutation(len(real))[:SHEET]], made[:SHEET], rng)
    save_png(contact_sheet(images, [None] * len(images), columns=10, cell=images[0].shape[0]), path)
    path.with_suffix(".json").write_text(json.dumps(drawn) + "\n")


def _resized(images: list[np.ndarray], side: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(i).resize((side, side), Image.Resampling.BICUBIC)) for i in images])


def _psnr(error: float) -> float:
    return 10 * np.log10(255**2 / max(float(error), 1e-6))


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 2) if max(values) > 1 else round(float(np.mean(values)), 4)


if __name__ == "__main__":
    main()
