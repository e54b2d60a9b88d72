"""Choice of the settings that sample the most realistic normal images of a product."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from defect_core.adaptation.normal_sampler import PLAIN_SAMPLING, NormalSampler, SamplerConfig
from defect_core.adaptation.sensor_noise import estimate_sensor_noise
from defect_core.generators.base import Image
from defect_core.metrics.features import Lite0Features
from defect_core.metrics.frechet import frechet_distance

# Plain sampling was best for textures, the other settings for objects, in our own trials (docs/research/trials.md).
OBJECT_SAMPLING = SamplerConfig(guidance_scale=1.6, final_level=0.4, noise_scale=1.06)
CANDIDATES = (PLAIN_SAMPLING, OBJECT_SAMPLING)


def choose_sampler(
    sampler: NormalSampler, seeds: Sequence[int], candidates: Sequence[SamplerConfig] = CANDIDATES
) -> tuple[NormalSampler, list[dict[str, Any]]]:
    """Return the sampler whose images are nearest to the real ones, and the distances of all candidates.

    Every candidate samples the same seeds, with and without estimated sensor noise. The Fréchet distance on pooled
    Lite0 features, rounded to one decimal, decides. Of equal distances the first wins, in the order of the candidates,
    each without sensor noise first.

    Args:
        sampler: gives backbones and real images; its settings do not matter.
        seeds: one per sampled image of a candidate.
        candidates: settings to compare.

    Returns:
        The sampler, and one dict per candidate: its settings, `distance` and `distance_with_sensor_noise`.
    """
    network = Lite0Features()
    real = network.extract(np.stack(sampler.real_images)).pooled

    def distance(images: Sequence[Image]) -> float:
        return round(frechet_distance(network.extract(np.stack(images)).pooled, real), 1)

    options: list[tuple[float, NormalSampler]] = []
    rows: list[dict[str, Any]] = []
    for config in candidates:
        plain = replace(sampler, config=config, sensor_noise=None)
        images = plain.sample_without_sensor_noise(seeds)
        noisy = replace(plain, sensor_noise=estimate_sensor_noise(sampler.real_images, images))
        distances = distance(images), distance(noisy.add_sensor_noise(images, seeds))
        options += zip(distances, (plain, noisy), strict=True)
        rows.append({**config._asdict(), "distance": distances[0], "distance_with_sensor_noise": distances[1]})
    _, best = min(options, key=lambda option: option[0])
    return best, rows
