"""Training loop, checkpoints, numeric precision and the Muon optimizer. Nothing here knows a method or a product."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
