"""Each U-Net method on a model of Stable Diffusion 1.5's size with random weights: two steps, two samples."""

import multiprocessing
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from backbones.full_size import TEXT, UNET, VAE
from backbones.sd_layout import write_random_backbone

LIMIT_GB = 20
# The smallest batch of each method; the other values are those of the paper.
SETTINGS = {
    "anomaly-diffusion": {"tune_denoiser": False, "reweighting": "paper", "batch_size": 1, "anomaly_tokens": 8},
    "seas": {"batch_size": 1, "mask_steps": 2, "mask_width": 192, "noise_weighting": "noise", "alignment": "paper"},
    "cadiff": {"batch_size": 1, "normal_fraction": 0, "self_adaptive_interaction": "attention", "localising": "paper"},
}
SHORT = {"steps": 2, "variants": 1, "sampling_steps": 4, "canvas": "whole"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_backbone(tmp_path_factory.mktemp("sd") / "full", VAE, UNET, TEXT, torch.float16)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(SETTINGS))
def test_a_method_fits_and_samples_at_512_px_within_20_gb(method: str, folder: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a new process measures its own peak memory
        peak, losses, shapes = pool.apply(_fit_and_sample, (method, folder, tmp_path))
    print(f"{method}: {peak:.1f} GB")
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert shapes == [((512, 512, 3), (512, 512))] * 2
    assert peak < LIMIT_GB


def _fit_and_sample(method: str, folder: Path, work: Path) -> tuple[float, list[float], list]:
    from defect_core.backbones import load_backbone
    from defect_core.generators.base import Example, SampleRequest
    from defect_core.generators.registry import generator_class, generator_config

    # SeaS trains the whole U-Net. In bfloat16 its weights, gradients and moments need 7 GB.
    backbone = load_backbone(folder, dtype=torch.bfloat16)
    rng = np.random.default_rng(0)
    normal = rng.integers(0, 256, (512, 512, 3), np.uint8)
    mask = np.zeros((512, 512), bool)
    mask[200:280, 220:300] = True
    scratched = np.where(mask[..., None], 255 - normal, normal)
    examples = [
        Example("plate", "good", normal, None, "good.png"),
        Example("plate", "scratch", scratched, mask, "scratch.png"),
    ]
    generator = generator_class(method).create(generator_config(method, {**SHORT, **SETTINGS[method]}), backbone)
    generator.fit(examples, work, seed=0)
    requests = [
        SampleRequest(f"scratch-{i}", "plate", "scratch", i, normal, mask, source=examples[1], warped=scratched)
        for i in range(2)
    ]
    pairs = list(generator.sample(requests))
    losses = generator.training["loss"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return peak, losses, [(pair.image.shape, pair.mask.shape) for pair in pairs]
