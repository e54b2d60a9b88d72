"""Tuning a backbone to one product's good images, with early stopping on a held-out part of them.

The denoiser learns local windows of the product under the prompt that the generators give its background, and whole
images under another, or it would draw half of each; VAE and text encoder stay frozen. The loss is the squared error of
the predicted noise weighted by 1 / alpha_bar, that is, of the velocity (Salimans and Ho 2022, section 4), as in the
pretraining: with the noise's own weighting the noisy end, and with it the layout, would hardly be learned.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from defect_core.backbones import Backbone
from defect_core.data.augment import AugmentOptions
from defect_core.diffusion.schedule import add_noise, noise_ratio
from defect_core.generators.base import Example
from defect_core.generators.canvas import CanvasKind
from defect_core.generators.views import augmented_views, encode_views, prompt_words, round_to_half, to_denoiser
from defect_core.project.params import Adapt
from defect_core.training.loop import bf16_autocast, train

PROMPT = "a photo of a {product}"
WHOLE_PROMPT = "a photo of a whole {product}"
EMPTY_PROMPT_SHARE = 0.1
LOCAL_CONTEXT, LOCAL_SIDE = 2.5, 48
MIDDLE = (0.6, 1.0)
WAY_DOWN = "conv_in.", "down_blocks."  # of the U-Net: what it would learn for drawing does not pay for its time
_CHECK_TIMES = 8
_LOCAL, _WHOLE, _EMPTY = range(3)
_AS_PHOTOGRAPHED = AugmentOptions(False, False, rotation=0, scale=0, shift=0, brightness=0, contrast=0, colour=0)


def adapt(
    backbone: Backbone,
    good: Sequence[Example],
    settings: Adapt,
    work_dir: Path,
    seed: int,
    *,
    drawing: bool = False,
) -> list[dict]:
    """Tune the backbone's denoiser in place; killed and called again with the same folder, it goes on.

    Args:
        backbone: its denoiser is changed; ends with the best weights seen, rounded to half precision.
        good: good training images of one product, at least two.
        settings: see `Adapt`.
        work_dir: holds the checkpoint and the best weights.
        seed: decides views, order and noise.
        drawing: for drawing good images and nothing else: `drawing_steps` steps on whole images, with Muon for the
            matrices, the U-Net's way down as it is.

    Returns:
        One dict per check: `step`, `loss` (mean over the training steps since the last check) and `held_out`.

    Raises:
        ValueError: fewer than two images.
    """
    if len(good) < 2:
        raise ValueError(f"adapt needs at least two good images, got {len(good)}")
    empty_share = EMPTY_PROMPT_SHARE
    if drawing:
        changed = {"steps": settings.drawing_steps, "batch_size": settings.drawing_batch_size, "local_share": 0.0}
        settings = settings.model_copy(update=changed | {"learning_rate": settings.drawing_rate})
        empty_share = 0.0
    held = max(1, round(settings.validation_fraction * len(good)))
    chosen = set(np.random.default_rng([seed, 0]).permutation(len(good))[:held].tolist())
    parts = ([e for i, e in enumerate(good) if i not in chosen], [e for i, e in enumerate(good) if i in chosen])
    known, unseen = (_bank(backbone, part, settings, seed, number) for number, part in enumerate(parts))
    product = prompt_words(good[0].product)
    with torch.no_grad():
        texts = backbone.encode_text([PROMPT.format(product=product), WHOLE_PROMPT.format(product=product), ""])
    denoiser = backbone.denoiser.requires_grad_(True)
    for name, parameter in denoiser.named_parameters() if drawing else ():
        parameter.requires_grad_(not name.startswith(WAY_DOWN))

    def error(latents: Tensor, times: Tensor, noise: Tensor, prompts: Tensor) -> Tensor:
        levels = backbone.schedule[times]
        latents, noise = to_denoiser(backbone, latents), to_denoiser(backbone, noise)
        states = texts[prompts.to(texts.device)]
        with bf16_autocast(backbone.device, backbone.latent_size, written_out=drawing):
            predicted = denoiser(add_noise(latents, noise, levels), to_denoiser(backbone, times), states).sample
        weight = to_denoiser(backbone, 1 / levels)[:, None, None, None]
        return (weight * (predicted.float() - noise) ** 2).mean()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        whole = torch.rand(settings.batch_size, generator=generator) >= settings.local_share
        latents = torch.stack([_draw(known[int(each)], generator) for each in whole])
        even = torch.randint(len(backbone.schedule), whole.shape, generator=generator)
        times = torch.where(whole, middle_times(backbone.schedule, len(whole), generator, stratified=drawing), even)
        noise = torch.randn(latents.shape, generator=generator)
        bare = torch.rand(len(whole), generator=generator) < empty_share
        return error(latents, times, noise, torch.where(bare, _EMPTY, whole.long()))

    @torch.no_grad()
    def held_out() -> float:
        """The same noise and times at every check, spread evenly over the schedule."""
        generator = torch.Generator().manual_seed(seed)
        times = torch.linspace(0, len(backbone.schedule) - 1, 2 * _CHECK_TIMES + 1)[1::2].long()
        total = 0.0
        for prompt, share in ((_LOCAL, settings.local_share), (_WHOLE, 1 - settings.local_share)):
            latents = unseen[prompt]
            for time in times if share else ():
                noise = torch.randn(latents.shape, generator=generator)
                for rows in torch.arange(len(latents)).split(settings.batch_size):
                    found = error(latents[rows], time.expand(len(rows)), noise[rows], torch.full(rows.shape, prompt))
                    total += share * float(found) * len(rows) / (len(latents) * len(times))
        return total

    # while the rate is held the error on what is held out stays high
    best = _Best(work_dir, settings, held_out(), denoiser, since=settings.steps // 2 if drawing else 0)

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
        muon=drawing,
    )
    best.restore(denoiser)
    denoiser.requires_grad_(False)
    round_to_half(denoiser)
    return best.curve(losses)


def middle_times(alphas_cumprod: Tensor, count: int, generator: torch.Generator, *, stratified: bool = False) -> Tensor:
    """Training steps int64 [count] from the middle of a schedule [N], where the layout of an image is settled: the
    logarithm of noise over signal is normal (as in Karras et al. 2022, section 5), with `MIDDLE`'s mean and deviation.
    `stratified`: one from each of `count` equally likely parts, rising, so that every batch has as much of each.
    """
    mean, deviation = MIDDLE
    if stratified:
        within = torch.rand(count, generator=generator, dtype=torch.float64)
        normal = torch.special.ndtri((torch.arange(count) + within) / count)
    else:
        normal = torch.randn(count, generator=generator, dtype=torch.float64)
    rising = noise_ratio(alphas_cumprod.double().cpu()).log()
    return torch.searchsorted(rising, mean + deviation * normal).clamp(max=len(rising) - 1)


def _bank(
    backbone: Backbone, part: Sequence[Example], settings: Adapt, seed: int, number: int
) -> tuple[Tensor, Tensor]:
    """Latents [N, C, h, h] of local windows and [M, C, h, h] of whole images, none of them twice; as photographed: what
    is turned, shifted or relit here would be drawn so.
    """
    rng = np.random.default_rng([seed, 1 + number])
    held = min(64, max(16, round(settings.views * settings.validation_fraction)))  # more would cost and tell little
    count = settings.views if number == 0 else held
    local = max(1, round(count * settings.local_share)) if settings.local_share else 0
    shown = LOCAL_CONTEXT, LOCAL_SIDE, backbone.resolution
    windows = [part[index] for index in rng.integers(len(part), size=local)]
    wholes = [part[index] for index in rng.permutation(len(part))[: max(1, count - local)]]
    kinds: tuple[tuple[CanvasKind, list[Example]], ...] = (("local", windows), ("whole", wholes))
    views = [augmented_views(chosen, 1, kind, *shown, rng, _AS_PHOTOGRAPHED) for kind, chosen in kinds]
    latents = encode_views(backbone, views[0] + views[1], ()).latents
    return latents[:local], latents[local:]


def _draw(latents: Tensor, generator: torch.Generator) -> Tensor:
    return latents[int(torch.randint(len(latents), (), generator=generator))]


class _Best:
    """The best weights so far and every check, on disk, so that a killed run ends like an unbroken one."""

    def __init__(self, folder: Path, settings: Adapt, start: float, denoiser: nn.Module, since: int) -> None:
        self.weights, self.file = folder / "best.safetensors", folder / "checks.json"
        self.patience, self.since = settings.patience, since
        self.checks: dict[int, float] = {}
        if self.file.is_file():
            self.checks = {int(step): value for step, value in json.loads(self.file.read_text()).items()}
        else:
            self.check(0, start, denoiser)

    def check(self, done: int, value: float, denoiser: nn.Module) -> bool:
        """Note a check; True when there was no new best for `patience` checks, those up to step `since` not counted."""
        self.checks = {step: old for step, old in self.checks.items() if step < done} | {done: value}
        best = min(self.checks, key=lambda step: self.checks[step])
        self.weights.parent.mkdir(parents=True, exist_ok=True)
        if best == done:
            save_file({k: v.contiguous() for k, v in denoiser.state_dict().items()}, self.weights)
        self.file.write_text(json.dumps(self.checks))
        return sum(step > max(best, self.since) for step in self.checks) >= self.patience

    def restore(self, denoiser: nn.Module) -> None:
        denoiser.load_state_dict(load_file(self.weights))

    def curve(self, losses: list[float]) -> list[dict]:
        points, last = [], 0
        for step, value in sorted(self.checks.items()):
            mean = round(float(np.mean(losses[last:step])), 6) if step else None
            points.append({"step": step, "loss": mean, "held_out": round(value, 6)})
            last = step
        return points
