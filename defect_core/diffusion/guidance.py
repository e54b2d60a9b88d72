"""How a sampling loop is steered: guidance combines noise predictions, blending keeps a normal image around a mask."""

from torch import Tensor


def combine_guidance(base: Tensor, *branches: tuple[float | Tensor, Tensor]) -> Tensor:
    """Return ε_0 + Σ_i s_i·(ε_i − ε_0); with one branch, classifier-free guidance (Ho and Salimans 2022).

    Args:
        base: ε_0, usually the noise predicted under the empty prompt.
        *branches: (s_i, ε_i), the guidance scale and the predicted noise of each further prompt.
    """
    guided = base
    for guidance_scale, noise in branches:
        guided = guided + guidance_scale * (noise - base)
    return guided


def blend(latents: Tensor, noised_normal_latents: Tensor, mask: Tensor) -> Tensor:
    """Return m⊙z_t + (1 − m)⊙q_t(z_normal), the step of blended diffusion (Avrahami et al. 2022).

    Args:
        latents: z_t, [B, C, h, w].
        noised_normal_latents: the normal image's latents at the same noise level, [B, C, h, w].
        mask: m, [B, 1, h, w] in [0, 1]; the result is exact where it is 0 or 1.
    """
    return mask * latents + (1 - mask) * noised_normal_latents
