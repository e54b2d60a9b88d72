"""Decoupled Anomaly Alignment (DA) loss of SeaS (Dai et al. 2025, sec. 3.2, eq. 3).

It moves the attention of the anomaly tokens to the defect, and that of the normal token away from it. The form
`official` is what the public code computes instead of eq. 3.
Maps and masks are dictionaries by side: {32: [B, 1, 32, 32], 16: [B, 1, 16, 16]}.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from defect_core.diffusion.losses import resize_mask

AlignmentForm = Literal["paper", "official"]
_MIN_RANGE = 1e-8  # below this range a map counts as constant


class TokenMaps(NamedTuple):
    """Cross-attention maps by side, averaged over the layers of that side.

    Attributes:
        anomaly: mean map of the N anomaly tokens, [B, 1, s, s].
        normal: map of the normal token, [B, 1, s, s].
    """

    anomaly: dict[int, Tensor]
    normal: dict[int, Tensor]


def decoupled_anomaly_alignment_loss(maps: TokenMaps, masks: Mapping[int, Tensor], form: AlignmentForm) -> Tensor:
    """Return the DA loss L_DA (eq. 3), a scalar; arguments as in `decoupled_anomaly_alignment_terms`."""
    return torch.stack(decoupled_anomaly_alignment_terms(maps, masks, form)).sum()


def decoupled_anomaly_alignment_terms(
    maps: TokenMaps, masks: Mapping[int, Tensor], form: AlignmentForm
) -> tuple[Tensor, Tensor]:
    """Return the two terms of the DA loss, each summed over the sides.

    `paper` is Σ_l ‖A_df − M‖² and Σ_l ‖A_ob ⊙ M‖², summed over positions and averaged over the batch. The softmax is
    over tokens, so the mean A_df of N tokens is at most 1/N: the first term is at least (1 − 1/N)² per defect position.

    `official` takes the softmax over positions, scales the maps to [0, 1] over the whole batch, and averages squares
    over positions. Its second term averages over the positions with M = 1. Where there is none, the public code returns
    NaN; this function then takes the positions with M > 0, and returns 0 if there are none.

    Args:
        maps: attention maps of the defect images.
        masks: M by side, from `mask_pyramid` in the same form.
        form: `paper` or `official`.
    """
    anomaly_terms, normal_terms = [], []
    for side, anomaly in maps.anomaly.items():
        normal, mask = maps.normal[side], masks[side].to(anomaly)
        if form == "paper":
            anomaly_terms.append(((anomaly - mask) ** 2).sum((1, 2, 3)).mean())
            normal_terms.append(((normal * mask) ** 2).sum((1, 2, 3)).mean())
            continue
        anomaly_terms.append(((_scale_to_unit_range(anomaly) - mask) ** 2).mean())
        full = mask == 1
        inside = torch.where(full.any(), full, mask > 0)  # a Python condition would wait for the device
        squares = torch.where(inside, _scale_to_unit_range(normal) ** 2, 0.0)
        normal_terms.append(squares.sum() / inside.sum().clamp(min=1))
    return torch.stack(anomaly_terms).sum(), torch.stack(normal_terms).sum()


def encoder_attention_maps(layers: Iterable[tuple[str, Tensor]], count: int) -> TokenMaps:
    """Return the captured maps of the U-Net encoder for the first `count` images of the batch.

    Args:
        layers: pairs of layer name and maps [B, 2, s, s], as in `AttentionMaps.layers`. Group 0 is the anomaly tokens,
            group 1 the normal token.
        count: number of defect images, which come first in the batch.
    """
    by_side: dict[int, list[Tensor]] = {}
    for name, maps in layers:
        if name.startswith("down_blocks"):
            by_side.setdefault(maps.shape[-1], []).append(maps[:count].float())
    means = {side: torch.stack(parts).mean(0) for side, parts in by_side.items()}
    return TokenMaps({s: m[:, :1] for s, m in means.items()}, {s: m[:, 1:2] for s, m in means.items()})


def mask_pyramid(masks: Tensor, latent_size: int, sides: Iterable[int], form: AlignmentForm) -> dict[int, Tensor]:
    """Return the masks at the sides of the attention maps.

    The masks are first brought to the size of the latents, then max-pooled to each side.

    Args:
        masks: [B, 1, R, R] in {0, 1}.
        latent_size: side of the latents.
        sides: sides of the attention maps, at most `latent_size`.
        form: `paper` max-pools to the latents' size, so a single pixel survives. `official` interpolates bilinearly,
            so values lie between 0 and 1 and a thin defect can vanish.
    """
    if form == "paper":
        small = resize_mask(masks, latent_size, "max")
    else:
        small = F.interpolate(masks.float(), size=(latent_size, latent_size), mode="bilinear")
    return {side: resize_mask(small, side, "max") for side in sides}


def select_aligned_sides(latent_size: int, available: Sequence[int]) -> list[int]:
    """Return the sides of the aligned layers: one half and one quarter of the latents' side (paper: 32 and 16 of 64).

    Args:
        latent_size: side of the latents.
        available: sides of the encoder's cross-attention layers. If none of them fits, the largest is returned.
    """
    sides = [side for side in (latent_size // 2, latent_size // 4) if side in available]
    return sides or [max(available)]


def _scale_to_unit_range(maps: Tensor) -> Tensor:
    """Scale maps to [0, 1] by the minimum and maximum of the whole batch; a constant map becomes 0."""
    low, high = maps.amin(), maps.amax()
    return (maps - low) / (high - low).clamp(min=_MIN_RANGE)
