"""Adaptation of a backbone to the normal images of a product, and sampling of normal images.

Nothing here knows the folders or the params.yaml of a project.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from defect_core.adaptation.adapt import adapt_denoiser as adapt_denoiser
    from defect_core.adaptation.adapt import train_normal_denoiser as train_normal_denoiser
    from defect_core.adaptation.config import AdaptConfig as AdaptConfig
    from defect_core.adaptation.normal_sampler import NormalSampler as NormalSampler
    from defect_core.adaptation.normal_sampler import SamplerConfig as SamplerConfig
    from defect_core.adaptation.product import adapt_to_product as adapt_to_product
    from defect_core.adaptation.sampler_choice import choose_sampler as choose_sampler
    from defect_core.adaptation.sensor_noise import add_sensor_noise as add_sensor_noise
    from defect_core.adaptation.sensor_noise import estimate_sensor_noise as estimate_sensor_noise

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adapt": ["adapt_denoiser", "train_normal_denoiser"],
        "config": ["AdaptConfig"],
        "normal_sampler": ["NormalSampler", "SamplerConfig"],
        "product": ["adapt_to_product"],
        "sampler_choice": ["choose_sampler"],
        "sensor_noise": ["add_sensor_noise", "estimate_sensor_noise"],
    },
)
