"""A model with random weights of the size of Stable Diffusion 1.5 loads, trains and samples at 512 px."""

from pathlib import Path

import pytest
import torch
from full_size import TEXT, UNET, VAE
from sd_layout import write_random_backbone

from defect_core.backbones import load_backbone


@pytest.mark.slow
def test_full_size_model_loads_trains_and_samples(tmp_path: Path) -> None:
    backbone = load_backbone(write_random_backbone(tmp_path / "full", VAE, UNET, TEXT, torch.float16))
    assert (backbone.resolution, backbone.latent_size, backbone.latent_channels) == (512, 64, 4)
    assert (
        sum(parameter.numel() for parameter in backbone.denoiser.parameters()) == 859_520_964
    )  # as in Stable Diffusion 1.5
    generator = torch.Generator().manual_seed(0)
    latents = backbone.encode(torch.rand(1, 3, 512, 512, generator=generator) * 2 - 1)
    assert latents.shape == (1, 4, 64, 64)
    states = backbone.encode_text(["a photo of a scratch on a screw"])
    assert states.shape == (1, 77, 768)

    # Only the keys and values of the cross-attention, as in SeaS: the moments of all weights need 14 GB.
    trained = [p for n, p in backbone.denoiser.named_parameters() if ".attn2.to_k." in n or ".attn2.to_v." in n]
    for parameter in trained:
        parameter.requires_grad_(True)
    before = [parameter.detach().clone() for parameter in trained]
    backbone.denoiser.enable_gradient_checkpointing()
    backbone.denoiser.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    for time in (200, 700):
        noise = torch.randn(latents.shape, generator=generator)
        level = backbone.alphas_cumprod[time]
        noisy = level.sqrt() * latents + (1 - level).sqrt() * noise
        loss = (backbone.denoiser(noisy, time, states).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    assert all(not torch.equal(old, new) for old, new in zip(before, trained, strict=True))

    backbone.denoiser.eval()
    with torch.inference_mode():
        sample = torch.randn(latents.shape, generator=generator)
        for now, then in ((999, 500), (500, 0)):
            a, b = backbone.alphas_cumprod[now], backbone.alphas_cumprod[then]
            noise = backbone.denoiser(sample, now, states).sample
            sample = b.sqrt() * (sample - (1 - a).sqrt() * noise) / a.sqrt() + (1 - b).sqrt() * noise
        image = backbone.decode(sample)
    assert image.shape == (1, 3, 512, 512)
    assert torch.isfinite(image).all()
