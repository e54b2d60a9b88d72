"""Settings of the stage `adapt` (no torch)."""

from pydantic import Field

from defect_core.settings import Settings


class AdaptConfig(Settings):
    """Fine-tuning of the backbone on the normal images of a product. Without this section no backbone is adapted.

    A fraction of the normal images is held out. The loss on them is measured every `check_every` steps. Training stops
    after `patience` checks without a new minimum, and the best weights are kept.
    """

    steps: int = Field(default=600, ge=1)
    """Optimiser steps of the denoiser that the generators use."""
    batch_size: int = Field(default=16, ge=1)
    """Images per step."""
    learning_rate: float = Field(default=6e-4, gt=0)
    """Peak learning rate of AdamW."""
    views: int = Field(default=1200, ge=1)
    """Views of the training images that are encoded before training."""
    local_fraction: float = Field(default=0.3, ge=0, le=1)
    """Fraction of training views that are local windows, as on the local canvas; the rest are whole images."""
    normal_sampler_steps: int = Field(default=0, ge=0)
    """Further steps, on whole images only, for a second denoiser that samples normal images. Generators do not use
    it. 0: the generators' denoiser samples the normal images."""
    normal_sampler_batch_size: int = Field(default=32, ge=1)
    """Images per step of the second denoiser."""
    normal_sampler_learning_rate: float = Field(default=2e-3, gt=0)
    """Learning rate of the second denoiser."""
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Fraction of the normal images that is held out for early stopping."""
    check_every: int = Field(default=100, ge=1)
    """Steps between two measurements of the held-out loss."""
    patience: int = Field(default=5, ge=1)
    """Checks without a new minimum after which training stops."""
