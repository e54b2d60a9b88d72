"""Latent diffusion models: load, encode, decode, save.

This package holds the run-time code and the embedded weights. `defect_core.pretraining` holds the code that makes them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
