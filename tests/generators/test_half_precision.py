"""Every U-Net method trains and samples on a bfloat16 backbone, which large backbones need to fit into memory."""

import numpy as np
import pytest
import torch
from tiny_unet import tiny_backbone

from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.registry import generator_class, generator_config

SHORT = {"steps": 2, "batch_size": 2, "variants": 1, "sampling_steps": 4}
METHODS = {
    "anomaly-diffusion": {"tune_denoiser": False},
    "cadiff": {"contrast_views": 2, "focus_threshold": 0.0, "guidance_scale": 2.0},
    "disentangled-inversion": {},
    "seas": {"mask_steps": 2, "mask_layers": 1},
}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_bfloat16_backbone_trains_and_samples(name, tmp_path):
    backbone = tiny_backbone().to(dtype=torch.bfloat16)
    rng = np.random.default_rng(0)
    normal = np.clip(128 + rng.normal(0, 6, (64, 64, 3)), 0, 255).astype(np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[20:40, 10:30] = True
    defective = np.where(mask[..., None], 230, normal).astype(np.uint8)
    examples = [Example("plate", "good", normal, None, "0.png"), Example("plate", "dent", defective, mask, "1.png")]
    generator = generator_class(name).create(generator_config(name, {**SHORT, **METHODS[name]}), backbone)
    generator.fit(examples, tmp_path, seed=1)
    request = SampleRequest("dent-0", "plate", "dent", 5, normal, mask, source=examples[1], warped=defective)
    (pair,) = generator.sample([request])
    assert pair.image.shape == normal.shape and pair.mask.any()
