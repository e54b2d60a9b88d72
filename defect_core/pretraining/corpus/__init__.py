"""Procedurally generated corpus of rendered scenes: surfaces, objects and defects. It needs no torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
