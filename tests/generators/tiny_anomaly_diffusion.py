"""Examples, requests and quick settings for the tests of AnomalyDiffusion."""

import dataclasses

import numpy as np

from defect_core.generators.anomaly_diffusion.generator import AnomalyDiffusion
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.registry import generator_config

QUICK = {
    "steps": 3,
    "batch_size": 2,
    "variants": 2,
    "sampling_steps": 3,
    "tune_denoiser": False,
    "encoder": {"side": 32},
    "mask_model": {"steps": 2, "sampling_steps": 2},
}
CONCEPTS = (("cloth", "scratch"), ("plate", "dent"), ("plate", "scratch"))


def make_example(product, defect, number=0, mask=None):
    rng = np.random.default_rng(number)
    image = np.clip(128 + rng.normal(0, 6, (80, 96, 3)), 0, 255).astype(np.uint8)
    if mask is None:
        mask = np.zeros((80, 96), bool)
        mask[20 + number : 44 + number, 30 : 46 if defect == "dent" else 36] = True
    image[mask] = 230
    return Example(product, defect, image, mask, f"{product}/{defect}/{number}.png")


def make_generator(backbone, **changes):
    return AnomalyDiffusion.create(generator_config("anomaly-diffusion", {**QUICK, **changes}), backbone)


def make_request(**changes):
    example = make_example("plate", "dent")
    normal = np.full((80, 96, 3), 120, np.uint8)
    request = SampleRequest("dent-0", "plate", "dent", 7, normal, example.mask, None, example, example.image)
    return dataclasses.replace(request, **changes)
