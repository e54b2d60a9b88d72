"""Procedurally generated corpus of rendered scenes: surfaces, objects and defects. It needs no torch."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from defect_core.pretraining.corpus.scene import Scene as Scene
    from defect_core.pretraining.corpus.scene import crop_view as crop_view
    from defect_core.pretraining.corpus.scene import render_scene as render_scene
    from defect_core.pretraining.corpus.scene import vocabulary_texts as vocabulary_texts

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"scene": ["Scene", "crop_view", "render_scene", "vocabulary_texts"]}
)
