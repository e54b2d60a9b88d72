"""Small settings, examples and batches for the tests of CADiff."""

import torch
from plate_examples import plate_examples

from defect_core.diffusion.losses import resize_mask
from defect_core.generators.cadiff.model import TrainingBatch

QUICK = {"steps": 3, "batch_size": 2, "variants": 2, "sampling_steps": 4, "contrast_views": 2, "tune_denoiser": False}


def cadiff_examples():
    """Return a normal example, a dent and a scratch."""
    return plate_examples(1, slice(20, 40), slice(10, 30))


def training_batch(count=2, seed=0):
    """Return a batch of random latents with one rectangular mask; the defects alternate."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 1, 64, 64)
    masks[..., 16:40, 8:32] = 1
    return TrainingBatch(
        torch.randn((count, 4, 8, 8), generator=generator),
        resize_mask(masks, 8),
        masks,
        torch.arange(count) % 2,
        torch.randn((count, 4, 8, 8), generator=generator),
        torch.randint(1000, (count,), generator=generator),
        ["a photo of a {context} with {anomaly}"] * count,
        torch.ones(count, dtype=torch.bool),
    )


def wake_up(model):
    """Give the zero convolutions and tokens random weights, so that they have an effect as after a long training."""
    generator = torch.Generator().manual_seed(3)
    net = model.control.net
    with torch.no_grad():
        for convolution in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            convolution.weight.copy_(torch.randn(convolution.weight.shape, generator=generator) * 0.3)
        net.controlnet_cond_embedding.conv_out.weight.mul_(20)
        for vector in model.tokens.parameters():
            vector.copy_(torch.randn(vector.shape, generator=generator))
