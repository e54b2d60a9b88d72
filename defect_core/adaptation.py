"""Tuning a backbone to one product's good images, with early stopping on a held-out part of them.

The denoiser learns the product under the prompt that the generators give its background; VAE and text encoder stay
frozen. The loss is the squared error of the predicted noise weighted by 1 / alpha_bar, that is, of the velocity
(Salimans and Ho 2022, section 4), as in the pretraining: with the noise's own weighting the noisy end, and with it
the layout, would hardly be learned.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from defect_core.backbones import Backbone
from defect_core.diffusion.ddim import add_noise, ddim_move, make_trajectory
from defect_core.generators.base import Example, Image
from defect_core.generators.views import (
    augmented_views,
    encode_views,
    on_device,
    round_to_half,
    to_pixels,
    to_tensor,
    words,
)
from defect_core.params import Adapt
from defect_core.progress import track
from defect_core.training import fast, train

PROMPT = "a photo of a {product}"
EMPTY_PROMPT_SHARE = 0.1
LOCAL_CONTEXT, LOCAL_SIDE = 2.5, 48
_CHECK_TIMES = 8


def adapt(backbone: Backbone, good: Sequence[Example], settings: Adapt, work_dir: Path, seed: int) -> list[dict]:
    """Tune the backbone's denoiser in place; killed and called again with the same folder, it goes on.

    Args:
        backbone: its denoiser is changed; ends with the best weights seen, rounded to half precision.
        good: good training images of one product, at least two.
        settings: see `Adapt`.
        work_dir: holds the checkpoint and the best weights.
        seed: decides views, order and noise.

    Returns:
        One dict per check: `step`, `loss` (mean over the training steps since the last check) and `held_out`.

    Raises:
        ValueError: fewer than two images.
    """
    if len(good) < 2:
        raise ValueError(f"adapt needs at least two good images, got {len(good)}")
    held = max(1, round(settings.validation_fraction * len(good)))
    chosen = set(np.random.default_rng([seed, 0]).permutation(len(good))[:held].tolist())
    parts = ([e for i, e in enumerate(good) if i not in chosen], [e for i, e in enumerate(good) if i in chosen])
    banks = [_bank(backbone, part, settings, seed, number) for number, part in enumerate(parts)]
    with torch.no_grad():
        text, empty = backbone.encode_text([PROMPT.format(product=words(good[0].product)), ""])
    denoiser = backbone.denoiser.requires_grad_(True)

    def error(latents: Tensor, times: Tensor, noise: Tensor, states: Tensor) -> Tensor:
        levels = backbone.schedule[times]
        latents, noise = on_device(backbone, latents), on_device(backbone, noise)
        with fast(backbone.device, backbone.latent_size):
            predicted = denoiser(add_noise(latents, noise, levels), on_device(backbone, times), states).sample
        weight = on_device(backbone, 1 / levels)[:, None, None, None]
        return (weight * (predicted.float() - noise) ** 2).mean()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(banks[0]), (settings.batch_size,), generator=generator)
        times = torch.randint(len(backbone.schedule), rows.shape, generator=generator)
        noise = torch.randn((len(rows), *banks[0].shape[1:]), generator=generator)
        bare = torch.rand(len(rows), generator=generator) < EMPTY_PROMPT_SHARE
        states = torch.where(bare.to(text.device)[:, None, None], empty, text)
        return error(banks[0][rows], times, noise, states)

    def held_out() -> float:
        """The same noise and times at every check, spread evenly over the schedule."""
        generator = torch.Generator().manual_seed(seed)
        total = 0.0
        times = torch.linspace(0, len(backbone.schedule) - 1, 2 * _CHECK_TIMES + 1)[1::2].long()
        with torch.no_grad():
            for time in times:
                noise = torch.randn(banks[1].shape, generator=generator)
                total += float(error(banks[1], time.expand(len(noise)), noise, text.expand(len(noise), -1, -1)))
        return total / len(times)

    best = _Best(work_dir, settings, held_out(), denoiser)

    def watch(done: int) -> bool:
        if done % settings.check_every and done != settings.steps:
            return False
        return best.check(done, held_out(), denoiser)

    losses = train(
        denoiser,
        loss,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        weight_decay=1e-2,
        seed=seed,
        work_dir=work_dir,
        label=f"adapting the backbone to {good[0].product}",
        watch=watch,
    )
    best.restore(denoiser)
    denoiser.requires_grad_(False)
    round_to_half(denoiser)
    return best.curve(losses)


@torch.no_grad()
def draw_normals(
    backbone: Backbone,
    product: str,
    seeds: Sequence[int],
    steps: int = 25,
    batch_size: int = 25,
    references: Sequence[Image] = (),
    level: float = 1.0,
) -> list[Image]:
    """Good images of a product by deterministic DDIM: uint8 [R, R, 3] each, one per seed.

    Args:
        references: images uint8 [R, R, 3] to begin from, one per seed, noised to `level`; none: pure noise.
        level: share of the steps that is walked, above 0 and at most 1.
    """
    trajectory = make_trajectory(backbone.schedule, steps)
    text = backbone.encode_text([PROMPT.format(product=words(product))])
    shape = (backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    first = max(1, round(level * steps))
    images: list[Image] = []
    for start in track(range(0, len(seeds), batch_size), f"drawing good images of {product}"):
        part = seeds[start : start + batch_size]
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in part]
        latents = on_device(backbone, torch.stack(noise))
        if len(references):
            clean = backbone.encode(on_device(backbone, to_tensor(list(references[start : start + batch_size]))))
            latents = add_noise(clean, latents, trajectory.alpha_bars[first].expand(len(part)))
        for step in range(first, 0, -1):
            time = trajectory.timesteps[step].to(latents.device)
            predicted = backbone.denoiser(latents, time, text.expand(len(part), -1, -1)).sample
            latents = ddim_move(latents, predicted, trajectory.alpha_bars[step], trajectory.alpha_bars[step - 1])
        images += list(np.clip(np.rint(to_pixels(backbone.decode(latents))), 0, 255).astype(np.uint8))
    return images


def _bank(backbone: Backbone, part: Sequence[Example], settings: Adapt, seed: int, number: int) -> Tensor:
    """Latents [N, C, h, h] of whole images and local windows of one part of the good images."""
    rng = np.random.default_rng([seed, 1 + number])
    count = settings.views if number == 0 else max(16, round(settings.views * settings.validation_fraction))
    local = round(count * settings.local_share)
    views = []
    for kind, wanted in (("local", local), ("whole", count - local)):
        for index in rng.integers(len(part), size=wanted):
            views += augmented_views([part[index]], 1, kind, LOCAL_CONTEXT, LOCAL_SIDE, backbone.resolution, rng)
    return encode_views(backbone, views, ()).latents


class _Best:
    """The best weights so far and every check, on disk, so that a killed run ends like an unbroken one."""

    def __init__(self, folder: Path, settings: Adapt, start: float, denoiser: nn.Module) -> None:
        self.weights, self.file, self.settings = folder / "best.safetensors", folder / "checks.json", settings
        self.checks: dict[int, float] = {}
        if self.file.is_file():
            self.checks = {int(step): value for step, value in json.loads(self.file.read_text()).items()}
        else:
            self.check(0, start, denoiser)

    def check(self, done: int, value: float, denoiser: nn.Module) -> bool:
        """Note a check; True when there was no new best for `patience` checks."""
        self.checks = {step: old for step, old in self.checks.items() if step < done} | {done: value}
        best = min(self.checks, key=lambda step: self.checks[step])
        self.weights.parent.mkdir(parents=True, exist_ok=True)
        if best == done:
            save_file({k: v.contiguous() for k, v in denoiser.state_dict().items()}, self.weights)
        self.file.write_text(json.dumps(self.checks))
        return sum(step > best for step in self.checks) >= self.settings.patience

    def restore(self, denoiser: nn.Module) -> None:
        denoiser.load_state_dict(load_file(self.weights))

    def curve(self, losses: list[float]) -> list[dict]:
        points, last = [], 0
        for step, value in sorted(self.checks.items()):
            mean = round(float(np.mean(losses[last:step])), 6) if step else None
            points.append({"step": step, "loss": mean, "held_out": round(value, 6)})
            last = step
        return points
