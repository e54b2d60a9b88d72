"""Real and synthetic images, masks and their tables: reading, writing, splitting, augmenting and placing defects.

A module here depends on numpy, scipy, PIL, pyarrow and pandas only. It knows no generator, no network and no project.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
