"""Training loop, checkpoints, numeric precision and the Muon optimizer. Nothing here knows a method or a product."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from defect_core.training.checkpoint import load_checkpoint as load_checkpoint
    from defect_core.training.checkpoint import save_checkpoint as save_checkpoint
    from defect_core.training.loop import TrainingConfig as TrainingConfig
    from defect_core.training.loop import step_generator as step_generator
    from defect_core.training.loop import train as train
    from defect_core.training.muon import Muon as Muon
    from defect_core.training.precision import bf16_autocast as bf16_autocast
    from defect_core.training.precision import bf16_inference as bf16_inference

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpoint": ["load_checkpoint", "save_checkpoint"],
        "loop": ["TrainingConfig", "step_generator", "train"],
        "muon": ["Muon"],
        "precision": ["bf16_autocast", "bf16_inference"],
    },
)
