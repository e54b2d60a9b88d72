"""Good images of a product, drawn from noise by its adapted backbone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from defect_core.adaptation.adapt import WHOLE_PROMPT
from defect_core.adaptation.sensor_noise import add_sensor_noise
from defect_core.backbones import Backbone
from defect_core.diffusion.schedule import add_noise, ancestral_move, make_trajectory
from defect_core.generators.base import Example, Image
from defect_core.generators.canvas import Window, crop_image
from defect_core.generators.composite import is_gray, make_gray
from defect_core.generators.views import prompt_words, to_denoiser, to_pixels, to_tensor
from defect_core.progress import track
from defect_core.training.loop import bf16_inference

GRAIN, WEIGHTS = "grain.safetensors", "drawing.safetensors"
COMPARED = 256  # real images, at most


class SamplerConfig(NamedTuple):
    """How good images are drawn.

    Attributes:
        guidance_scale: how often counts what the adapted backbone says differently than before (guidance by a weaker
            version of the same network: Karras et al. 2024, eq. 3), save in the first step, where it only shifts the
            brightness, and from `finish` on, which it roughens (a limited interval: Kynkäänniemi et al. 2024). 1: no
            guidance.
        finish: share of the schedule from which three moves lead to the clean end, by way of `LAST_MOVES` of it. An
            object's outline frays with every step that a small network takes there; a texture is made by them. Before
            them the image goes back up to `RESTART` and down again, `RESTARTS` times, which mends what the walk did
            wrong (Xu et al. 2023, "Restart sampling for improving generative processes"). 0: all steps, and no restart.
        noise_scale: how often counts the predicted noise, in every step: Ning et al. 2024 ("Elucidating the exposure
            bias in diffusion models", section 5.2) divide by a little more than 1, this does the opposite. A network
            that learned for minutes says too little, and what it draws is soft; above 1 its threads come out.
    """

    guidance_scale: float
    finish: float
    noise_scale: float = 1.0


PLAIN_SAMPLING = SamplerConfig(1.0, 0.0)
RESTARTS, RESTART = 2, 0.64
LAST_MOVES = 0.7, 0.4


@dataclass(frozen=True)
class NormalSampler:
    """A product's adapted backbone, and how it draws good images best; see `steps.adapt`, which finds that out.

    Attributes:
        product, backbone, guide: as for `sample_normal_images`.
        real: uint8 [R, R, 3], good training images as wholes; the drawn ones are like them in brightness and colour.
        way: see `SamplerConfig`.
        grain: kernel of the grain that is added (`defect_core.adaptation.sensor_noise`); None: none.
    """

    product: str
    backbone: Backbone
    guide: Backbone | None
    real: Sequence[Image]
    way: SamplerConfig = PLAIN_SAMPLING
    grain: Tensor | None = None

    @classmethod
    def of(cls, backbone: Backbone, guide: Backbone | None, good: Sequence[Example]) -> "NormalSampler":
        """One that draws in all steps without guidance or grain."""
        return cls(good[0].product, backbone, guide, show_whole(good, COMPARED, backbone.resolution))

    @classmethod
    def load(cls, folder: Path, backbone: Backbone, guide: Backbone, good: Sequence[Example]) -> "NormalSampler":
        """As saved in the folder that `backbone` is loaded from; its denoiser is changed to the one that draws."""
        described = json.loads((folder / "drawing.json").read_text())
        grain = load_file(folder / GRAIN)["kernel"] if (folder / GRAIN).is_file() else None
        if (folder / WEIGHTS).is_file():
            backbone.denoiser.load_state_dict(load_file(folder / WEIGHTS))
        way = SamplerConfig(*(described[field] for field in SamplerConfig._fields))
        return replace(cls.of(backbone, guide, good), way=way, grain=grain)

    def draw(self, seeds: Sequence[int]) -> list[Image]:
        """One image per seed, uint8 [R, R, 3]."""
        return self.grained(self.clear(seeds), seeds)

    def clear(self, seeds: Sequence[int]) -> list[Image]:
        """One image per seed, without grain."""
        return sample_normal_images(
            self.backbone,
            self.product,
            seeds,
            guide=self.guide,
            way=self.way,
            mean=self._mean,
            gray=all(is_gray(image) for image in self.real),
        )

    def grained(self, images: Sequence[Image], seeds: Sequence[int]) -> list[Image]:
        """The images under the grain, if there is one."""
        return list(images) if self.grain is None else add_sensor_noise(images, self.grain, seeds)

    @cached_property
    def _mean(self) -> Tensor:
        return mean_latents(self.backbone, self.real)


@torch.no_grad()
def sample_normal_images(
    backbone: Backbone,
    product: str,
    seeds: Sequence[int],
    steps: int = 25,
    batch_size: int = 25,
    *,
    guide: Backbone | None = None,
    way: SamplerConfig = PLAIN_SAMPLING,
    mean: Tensor | None = None,
    gray: bool = False,
    references: Sequence[Image] = (),
    level: float = 1.0,
) -> list[Image]:
    """Whole good images of a product by ancestral sampling: uint8 [R, R, 3] each, one per seed.

    Args:
        guide: the backbone before it was adapted; None: no guidance, whatever `way` says.
        way: see `SamplerConfig`; of the embedded backbone, that which `steps.adapt` chose for the product.
        mean: latents [C, 1, 1] that the images have on average (`mean_latents`). The schedule's last level still shows
            them a little, and a network that sees none there draws everything grey.
        gray: whether the product's images are (`is_gray`): the drawn ones then are, too.
        references: images uint8 [R, R, 3] to begin from, one per seed, noised to `level`; none: pure noise.
        level: share of the schedule to begin at, above 0 and at most 1.
    """
    trajectory = make_trajectory(backbone.schedule, steps)
    prompt = WHOLE_PROMPT.format(product=prompt_words(product))
    text = backbone.encode_text([prompt])
    guide = None if way.guidance_scale == 1 else guide
    guide_text = None if guide is None else guide.encode_text([prompt])
    shape = (backbone.latent_channels, backbone.latent_size, backbone.latent_size)
    first = max(1, round(level * steps))
    last = max(1, min(first, round(way.finish * steps)))
    path = [*range(first, last - 1, -1)]
    if last > 1:
        up = min(first, round(RESTART * steps))
        path += [*range(up, last - 1, -1)] * (RESTARTS if up > last else 0)
        path += sorted({round(share * last) for share in LAST_MOVES} - {last, 0}, reverse=True)
    path.append(0)
    images: list[Image] = []
    for start in track(range(0, len(seeds), batch_size), f"drawing good images of {product}"):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch_size]]

        def fresh(generators: list[torch.Generator] = generators) -> Tensor:
            return to_denoiser(backbone, torch.stack([torch.randn(shape, generator=each) for each in generators]))

        clean = torch.zeros(shape) if mean is None else mean
        clean = clean.expand(len(generators), *shape)
        if len(references):
            clean = backbone.encode(to_tensor(list(references[start : start + batch_size])))
        latents = add_noise(to_denoiser(backbone, clean), fresh(), trajectory.alpha_bars[first].expand(len(generators)))
        with bf16_inference(*[each.denoiser for each in (backbone, guide) if each is not None]):
            for step, following in pairwise(path):
                levels = trajectory.alpha_bars[step], trajectory.alpha_bars[following]
                if following > step:
                    latents = add_noise(latents, fresh(), (levels[1] / levels[0]).expand(len(generators)))
                    continue
                time = trajectory.timesteps[step].to(latents.device)
                noise = _predict(backbone, latents, time, text)
                if guide is not None and last < step < first:
                    weak = _predict(guide, latents, time, guide_text)
                    noise = weak + way.guidance_scale * (noise - weak)
                latents = ancestral_move(latents, way.noise_scale * noise, *levels, fresh())
        pixels = to_pixels(backbone.decode(latents))
        images += list(np.clip(np.rint(make_gray(pixels) if gray else pixels), 0, 255).astype(np.uint8))
    return images


def _predict(backbone: Backbone, latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
    return backbone.denoiser(latents, time, text.expand(len(latents), -1, -1)).sample.to(latents.dtype)


@torch.no_grad()
def mean_latents(backbone: Backbone, images: Sequence[Image], most: int = 64) -> Tensor:
    """Mean latents [C, 1, 1] of images uint8 [R, R, 3]; of `most` of them, evenly chosen, where there are more."""
    latents = [backbone.encode(to_tensor([images[i]])).float().cpu() for i in _evenly(len(images), most)]
    return torch.cat(latents).mean((0, 2, 3))[:, None, None]


def show_whole(good: Sequence[Example], most: int, side: int) -> list[Image]:
    """At most so many of the images, evenly chosen, each as a whole on a square: uint8 [side, side, 3]."""
    images = [good[i].image for i in _evenly(len(good), most)]
    return [crop_image(image, Window(0, 0, *image.shape[:2]), side) for image in images]


def _evenly(count: int, most: int) -> list[int]:
    """At most so many of the indices below `count`."""
    return [i * count // min(count, most) for i in range(min(count, most))]
