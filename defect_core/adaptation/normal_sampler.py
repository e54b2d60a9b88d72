"""Sampling of normal images of a product from noise, by its adapted backbone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from defect_core.adaptation.adapt import WHOLE_PROMPT
from defect_core.adaptation.sensor_noise import add_sensor_noise
from defect_core.backbones.load import Backbone
from defect_core.data.files import write_json
from defect_core.data.guarded import read_json, read_tensors
from defect_core.diffusion.guidance import combine_guidance
from defect_core.diffusion.samplers import Denoiser, NoiseStream, make_ddim_step, sample
from defect_core.diffusion.schedule import Trajectory, add_noise, make_trajectory
from defect_core.generators.base import Example, Image
from defect_core.generators.canvas import Window, crop_image
from defect_core.generators.composite import is_gray, make_gray
from defect_core.generators.views import prompt_words, to_denoiser, to_pixels, to_tensor
from defect_core.progress import track
from defect_core.training.precision import inference_autocast

# Files in the folder of an adapted backbone.
CONFIG_FILE = "normal_sampler.json"
DENOISER_FILE = "normal_denoiser.safetensors"
SENSOR_NOISE_FILE = "sensor_noise.safetensors"

MAX_REAL_IMAGES, MAX_MEAN_IMAGES = 256, 64
BATCH_SIZE = 25
# The values below come from our own trials (docs/research/trials.md).
RESTART_COUNT, RESTART_LEVEL = 2, 0.64
FINAL_STEPS = 0.7, 0.4  # levels of the final large steps, as fractions of `SamplerConfig.final_level`


class SamplerConfig(NamedTuple):
    """Settings of ancestral sampling.

    Attributes:
        guidance_scale: weight of autoguidance (Karras et al. 2024, eq. 3), guidance by the backbone before it was
            adapted; 1 disables it. It is off in the first step, where it only shifts the brightness, and from
            `final_level` on, where it roughens the image (limited interval: Kynkäänniemi et al. 2024).
        final_level: noise level, as a fraction of the steps, from which three large steps lead to the clean image.
            Small steps of a small network fray the outline of an object there, but they form a texture. Before these
            steps the image is noised up to `RESTART_LEVEL` and denoised again, `RESTART_COUNT` times, which corrects
            earlier errors (Xu et al. 2023, "Restart sampling for improving generative processes"). 0: all steps are
            small and there is no restart.
        noise_scale: factor of the predicted noise in every step. Ning et al. 2024 ("Elucidating the exposure bias in
            diffusion models", section 5.2) divide by a number above 1; this multiplies. A network that trained for
            minutes predicts too little noise, and its images are soft.
        steps: number of steps from pure noise without restarts.
    """

    guidance_scale: float = 1.0
    final_level: float = 0.0
    noise_scale: float = 1.0
    steps: int = 25


PLAIN_SAMPLING = SamplerConfig()


class StartImages(NamedTuple):
    """Images to start sampling from, instead of pure noise.

    Attributes:
        images: uint8 [R, R, 3], one per seed.
        level: noise level of the start, as a fraction of the steps, above 0 and at most 1.
    """

    images: Sequence[Image]
    level: float


@dataclass(frozen=True)
class NormalSampler:
    """Samples normal images of one product; `choose_sampler` finds the settings.

    Attributes:
        product: name of the product.
        backbone: the backbone adapted to the product.
        guidance_backbone: the backbone before it was adapted, for autoguidance; None disables guidance.
        real_images: normal training images as wholes, uint8 [R, R, 3]. The samples get their mean latents, which decide
            the brightness because the noisiest level still shows a little of the image, and are gray if these are.
        config: sampling settings.
        sensor_noise: kernel of the sensor noise that is added to the samples (`estimate_sensor_noise`); None: none.
    """

    product: str
    backbone: Backbone
    guidance_backbone: Backbone | None = None
    real_images: Sequence[Image] = ()
    config: SamplerConfig = PLAIN_SAMPLING
    sensor_noise: Tensor | None = None

    @classmethod
    def from_examples(
        cls, backbone: Backbone, guidance_backbone: Backbone | None, examples: Sequence[Example]
    ) -> "NormalSampler":
        """Return a sampler with the default settings.

        Args:
            backbone: adapted to the product.
            guidance_backbone: see `NormalSampler`.
            examples: normal training images of the product.
        """
        images = whole_images(examples, MAX_REAL_IMAGES, backbone.resolution)
        return cls(examples[0].product, backbone, guidance_backbone, images)

    @classmethod
    def load(
        cls, folder: Path, backbone: Backbone, guidance_backbone: Backbone | None, examples: Sequence[Example]
    ) -> "NormalSampler":
        """Return the sampler that `save` wrote.

        Args:
            folder: the folder of the adapted backbone.
            backbone: loaded from `folder`; its denoiser gets the weights of the normal denoiser, if there are any.
            guidance_backbone: see `NormalSampler`.
            examples: normal training images of the product.
        """
        stored = read_json(folder / CONFIG_FILE)
        kernel = (
            read_tensors(folder / SENSOR_NOISE_FILE, ("kernel",))[0]["kernel"]
            if (folder / SENSOR_NOISE_FILE).is_file()
            else None
        )
        if (folder / DENOISER_FILE).is_file():
            backbone.denoiser.load_state_dict(read_tensors(folder / DENOISER_FILE)[0])
        config = SamplerConfig(**{field: stored[field] for field in SamplerConfig._fields})
        return replace(cls.from_examples(backbone, guidance_backbone, examples), config=config, sensor_noise=kernel)

    def save(self, folder: Path, candidates: Sequence[dict[str, Any]]) -> None:
        """Write settings and sensor noise to the folder of the adapted backbone; the denoiser is not written.

        Args:
            folder: an existing folder.
            candidates: the compared settings and their distances, for the reader (`choose_sampler`).
        """
        write_json(folder / CONFIG_FILE, {**self.config._asdict(), "candidates": list(candidates)}, sort_keys=False)
        if self.sensor_noise is not None:
            save_file({"kernel": self.sensor_noise}, folder / SENSOR_NOISE_FILE)

    def sample(self, seeds: Sequence[int]) -> list[Image]:
        """Return one normal image per seed, uint8 [R, R, 3]."""
        return self.add_sensor_noise(self.sample_without_sensor_noise(seeds), seeds)

    def add_sensor_noise(self, images: Sequence[Image], seeds: Sequence[int]) -> list[Image]:
        """Return the images with the sampler's sensor noise, if it has any.

        Args:
            images: uint8 [R, R, 3].
            seeds: one per image.
        """
        return list(images) if self.sensor_noise is None else add_sensor_noise(images, self.sensor_noise, seeds)

    @torch.no_grad()
    def sample_without_sensor_noise(self, seeds: Sequence[int], start: StartImages | None = None) -> list[Image]:
        """Return one normal image per seed by ancestral sampling, uint8 [R, R, 3], without sensor noise.

        Args:
            seeds: each decides the noise of its image.
            start: images to start from; None: pure noise.
        """
        backbone, steps = self.backbone, self.config.steps
        trajectory = make_trajectory(backbone.alphas_cumprod, steps)
        first = steps if start is None else max(1, round(start.level * steps))
        final = max(1, min(first, round(self.config.final_level * steps)))
        paths = sampling_paths(first, final, steps)
        denoiser = self._make_denoiser(trajectory, first, final)
        shape = (backbone.latent_channels, backbone.latent_size, backbone.latent_size)
        use_gray = bool(self.real_images) and all(is_gray(image) for image in self.real_images)
        images: list[Image] = []
        for offset in track(range(0, len(seeds), BATCH_SIZE), f"sampling normal images of {self.product}"):
            batch = slice(offset, offset + BATCH_SIZE)
            noise = NoiseStream(seeds[batch], shape)
            clean = self._mean_latents if start is None else backbone.encode(to_tensor(list(start.images[batch])))
            clean = to_denoiser(backbone, clean.expand(len(seeds[batch]), *shape))
            latents = self._sample_latents(clean, noise, denoiser, trajectory, paths)
            pixels = to_pixels(backbone.decode(latents))
            images += list(np.clip(np.rint(make_gray(pixels) if use_gray else pixels), 0, 255).astype(np.uint8))
        return images

    def _sample_latents(
        self,
        clean: Tensor,
        noise: NoiseStream,
        denoiser: Denoiser[Tensor],
        trajectory: Trajectory,
        paths: Sequence[Sequence[int]],
    ) -> Tensor:
        """Return sampled latents, which start from noised `clean` latents [B, C, h, w]."""

        def fresh_noise() -> Tensor:
            return to_denoiser(self.backbone, noise())  # inside `inference_autocast` this rounds the noise to bfloat16

        bars, step = trajectory.alphas_cumprod, make_ddim_step(trajectory, 1.0, fresh_noise)
        latents = add_noise(clean, fresh_noise(), bars[paths[0][0]].expand(len(clean)))
        with inference_autocast(
            *[each.denoiser for each in (self.backbone, self._active_guidance) if each is not None]
        ):
            for index, path in enumerate(paths):
                if index:  # a restart raises the noise level again
                    ratio = bars[path[0]] / bars[paths[index - 1][-1]]
                    latents = add_noise(latents, fresh_noise(), ratio.expand(len(clean)))
                latents = sample(latents, denoiser, trajectory, step, path=path)
        return latents

    def _make_denoiser(self, trajectory: Trajectory, first: int, final: int) -> Denoiser[Tensor]:
        """Return the scaled noise prediction, guided between the levels `first` and `final`, both excluded."""
        prompt = WHOLE_PROMPT.format(product=prompt_words(self.product))
        guidance, config = self._active_guidance, self.config
        text = self.backbone.encode_text([prompt])
        guidance_text = None if guidance is None else guidance.encode_text([prompt])
        high, low = trajectory.timesteps[first], trajectory.timesteps[final]

        def denoiser(latents: Tensor, timestep: Tensor) -> Tensor:
            noise = _predict(self.backbone, latents, timestep, text)
            if guidance is not None and guidance_text is not None and low < timestep < high:
                weak = _predict(guidance, latents, timestep, guidance_text)
                noise = combine_guidance(weak, (config.guidance_scale, noise))
            return config.noise_scale * noise

        return denoiser

    @property
    def _active_guidance(self) -> Backbone | None:
        return None if self.config.guidance_scale == 1 else self.guidance_backbone

    @cached_property
    def _mean_latents(self) -> Tensor:
        return mean_latents(self.backbone, self.real_images) if self.real_images else torch.zeros(1, 1, 1)


def sampling_paths(first: int, final: int, steps: int) -> list[list[int]]:
    """Return the falling paths of noise levels that sampling visits; a restart raises the level between two of them.

    >>> sampling_paths(5, 1, 5)
    [[5, 4, 3, 2, 1, 0]]
    >>> sampling_paths(10, 4, 10)
    [[10, 9, 8, 7, 6, 5, 4], [6, 5, 4], [6, 5, 4, 3, 2, 0]]

    Args:
        first: level of the start.
        final: level from which large steps lead to the clean image; 1: all steps are small and there is no restart.
        steps: number of levels above the clean one.
    """
    paths = [[*range(first, final - 1, -1)]]
    if final > 1:
        restart = min(first, round(RESTART_LEVEL * steps))
        if restart > final:
            paths += [[*range(restart, final - 1, -1)] for _ in range(RESTART_COUNT)]
        paths[-1] += sorted({round(fraction * final) for fraction in FINAL_STEPS} - {final, 0}, reverse=True)
    paths[-1].append(0)
    return paths


@torch.no_grad()
def mean_latents(backbone: Backbone, images: Sequence[Image]) -> Tensor:
    """Return the mean latents [C, 1, 1] of images, of at most `MAX_MEAN_IMAGES` of them, evenly spaced.

    Args:
        backbone: gives the VAE.
        images: uint8 [R, R, 3].
    """
    chosen = _evenly_spaced(len(images), MAX_MEAN_IMAGES)
    latents = [backbone.encode(to_tensor([images[index]])).float().cpu() for index in chosen]
    return torch.cat(latents).mean((0, 2, 3))[:, None, None]


def whole_images(examples: Sequence[Example], limit: int, side: int) -> list[Image]:
    """Return whole images on a square canvas, uint8 [side, side, 3].

    Args:
        examples: real examples.
        limit: largest number of images; they are evenly spaced.
        side: height and width of the canvas.
    """
    images = [examples[index].image for index in _evenly_spaced(len(examples), limit)]
    return [crop_image(image, Window(0, 0, *image.shape[:2]), side) for image in images]


def _predict(backbone: Backbone, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    texts = text.expand(len(latents), -1, -1)
    return backbone.denoiser(latents, timestep.to(latents.device), texts).sample.to(latents.dtype)


def _evenly_spaced(total: int, limit: int) -> list[int]:
    return [index * total // min(total, limit) for index in range(min(total, limit))]
