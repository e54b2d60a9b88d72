"""Diffusion mathematics that several methods share: schedules, sampling, guidance, attention, tokens, losses, masks."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from defect_core.diffusion.attention import AttentionControl as AttentionControl
    from defect_core.diffusion.attention import AttentionMaps as AttentionMaps
    from defect_core.diffusion.attention import control_attention as control_attention
    from defect_core.diffusion.guidance import blend as blend
    from defect_core.diffusion.guidance import combine_guidance as combine_guidance
    from defect_core.diffusion.samplers import NoiseStream as NoiseStream
    from defect_core.diffusion.samplers import make_ddim_step as make_ddim_step
    from defect_core.diffusion.samplers import make_dpm_solver_step as make_dpm_solver_step
    from defect_core.diffusion.samplers import noise_from_seeds as noise_from_seeds
    from defect_core.diffusion.samplers import sample as sample
    from defect_core.diffusion.schedule import Trajectory as Trajectory
    from defect_core.diffusion.schedule import add_noise as add_noise
    from defect_core.diffusion.schedule import ddim_step as ddim_step
    from defect_core.diffusion.schedule import make_trajectory as make_trajectory
    from defect_core.diffusion.schedule import pred_original_sample as pred_original_sample
    from defect_core.diffusion.tokens import ConceptTokens as ConceptTokens
    from defect_core.diffusion.tokens import EncodedPrompts as EncodedPrompts
    from defect_core.diffusion.tokens import encode_prompts as encode_prompts

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "attention": ["AttentionControl", "AttentionMaps", "control_attention"],
        "guidance": ["blend", "combine_guidance"],
        "samplers": ["NoiseStream", "make_ddim_step", "make_dpm_solver_step", "noise_from_seeds", "sample"],
        "schedule": ["Trajectory", "add_noise", "ddim_step", "make_trajectory", "pred_original_sample"],
        "tokens": ["ConceptTokens", "EncodedPrompts", "encode_prompts"],
    },
)
