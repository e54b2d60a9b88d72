"""Choice of the sampler settings: the smallest distance wins, of equal distances the first."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from defect_core.adaptation import sampler_choice
from defect_core.adaptation.normal_sampler import NormalSampler, SamplerConfig
from defect_core.adaptation.sampler_choice import choose_sampler
from defect_core.backbones.load import load_backbone
from defect_core.generators.base import Image

CONFIGS = (SamplerConfig(1.0), SamplerConfig(2.0))


@pytest.mark.parametrize(
    ("distances", "guidance_scale", "has_sensor_noise"),
    [
        ([4.0, 3.0, 2.0, 1.0], 2.0, True),
        ([4.0, 3.0, 2.0, 5.0], 2.0, False),
        ([2.0, 1.0, 1.0, 1.0], 1.0, True),
        ([1.04, 1.01, 1.0, 1.0], 1.0, False),  # equal after rounding
    ],
)
def test_smallest_distance_wins_and_the_first_of_equals(
    distances: list[float], guidance_scale: float, has_sensor_noise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = iter(distances)
    monkeypatch.setattr(sampler_choice, "frechet_distance", lambda *_: next(queue))
    monkeypatch.setattr(
        sampler_choice, "Lite0Features", lambda: SimpleNamespace(extract=lambda images: SimpleNamespace(pooled=images))
    )
    monkeypatch.setattr(sampler_choice, "estimate_sensor_noise", lambda *_: torch.zeros(3, 3, 16, 16))

    def sample(self: NormalSampler, seeds: Sequence[int]) -> list[Image]:
        return [np.zeros((32, 32, 3), np.uint8) for _ in seeds]

    monkeypatch.setattr(NormalSampler, "sample_without_sensor_noise", sample)
    real = [np.zeros((32, 32, 3), np.uint8)]
    sampler = NormalSampler("plate", load_backbone("embedded"), None, real)
    best, rows = choose_sampler(sampler, [1, 2], CONFIGS)
    assert best.config.guidance_scale == guidance_scale
    assert (best.sensor_noise is not None) == has_sensor_noise
    rounded = [round(distance, 1) for distance in distances]
    assert [(row["distance"], row["distance_with_sensor_noise"]) for row in rows] == [
        (rounded[0], rounded[1]),
        (rounded[2], rounded[3]),
    ]
    assert [row["guidance_scale"] for row in rows] == [1.0, 2.0]
