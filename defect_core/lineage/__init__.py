"""Provenance: what an image was made from, and why two revisions of a project differ.

A module here reads git, dvc.lock and DVC's cache. It imports the graph and the project, but no stage, and writes no
output of a stage.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
