"""DefectDiffu on a transformer with random weights of the size of DiT-XL/2 loads, trains and samples at 512 px."""

import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sd_layout import write_random_backbone
from test_full_size import TEXT, VAE

from defect_core.backbones import load_backbone
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.defectdiffu.config import DefectDiffuConfig
from defect_core.generators.defectdiffu.generator import DefectDiffu

DIT_XL_2 = {  # facebook/DiT-XL-2-512
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 64,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
}
UNET = {  # DefectDiffu does not use it
    "sample_size": 64,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 768,
}
MAX_MEMORY = 20e9  # bytes


def _write_dit(folder: Path) -> None:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        DiTTransformer2DModel(**DIT_XL_2).half().save_pretrained(folder / "transformer")


@pytest.mark.slow
def test_dit_xl_2_loads_trains_and_samples_within_20_gb(tmp_path: Path) -> None:
    _write_dit(tmp_path / "dit")
    backbone = load_backbone(write_random_backbone(tmp_path / "sd", VAE, UNET, TEXT, torch.float16))
    config = DefectDiffuConfig(
        dit=str(tmp_path / "dit"),
        text=str(tmp_path / "sd"),
        steps=1,
        learning_rate=1e-5,
        batch_size=2,
        variants=1,
        normal_variants=1,
        canvas="whole",
        gradient_checkpointing=True,
        sampling_steps=3,
    )
    generator = DefectDiffu.create(config, backbone)
    assert generator.model.split == (10, 10, 8)
    assert generator.resolution == 512
    # DiT-XL/2 has 675 million parameters, of which the class table is not loaded
    assert sum(p.numel() for p in generator.model.dit.parameters()) > 670e6

    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (512, 512, 3), np.uint8)
    mask = np.zeros((512, 512), bool)
    mask[200:260, 200:300] = True
    before = {
        name: value.clone() for name, value in generator.model.named_parameters() if name.endswith("query.weight")
    }
    first_query = generator.model.dit.transformer_blocks[0].attn1.to_q.weight.detach().clone()
    examples = [
        Example("screw", "scratch", image, mask, "scratch/0.png"),
        Example("screw", "good", image, None, "0.png"),
    ]
    generator.fit(examples, tmp_path / "work", 0)
    assert len(generator.training["loss"]) == 1 and np.isfinite(generator.training["loss"][0])
    assert not torch.equal(first_query, generator.model.dit.transformer_blocks[0].attn1.to_q.weight)
    assert all(not torch.equal(old, generator.model.get_parameter(name)) for name, old in before.items())

    (pair,) = generator.sample([SampleRequest("0", "screw", "scratch", 1, image, mask, 1.5)])
    assert pair.image.shape == image.shape and pair.mask.shape == mask.shape
    assert pair.soft_mask is not None and np.isfinite(pair.soft_mask).all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"peak memory {peak / 1e9:.1f} GB")
    assert peak < MAX_MEMORY  # of the process, including the tests before this one
