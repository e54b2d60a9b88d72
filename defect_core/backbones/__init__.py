"""Latent diffusion models: load, encode, decode, save.

This package holds the run-time code and the embedded weights. `defect_core.pretraining` holds the code that makes them.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from defect_core.backbones.load import Backbone as Backbone
    from defect_core.backbones.load import load_backbone as load_backbone

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"load": ["Backbone", "load_backbone"]})
