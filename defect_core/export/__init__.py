"""Copies of released sets in the layouts of other tools, with a dataset card.

A module here writes files outside the project. It generates and scores nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
