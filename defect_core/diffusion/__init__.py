"""Diffusion mathematics that several methods share: schedules, sampling, guidance, attention, tokens, losses, masks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
