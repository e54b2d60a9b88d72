"""The latent diffusion models that the generators stand on; `load_backbone` is the way in."""

from defect_core.backbones.load import Backbone, load_backbone

__all__ = ["Backbone", "load_backbone"]
