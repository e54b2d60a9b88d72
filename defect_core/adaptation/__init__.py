"""Adaptation of a backbone to the normal images of a product, and sampling of normal images.

Nothing here knows the folders or the params.yaml of a project.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
