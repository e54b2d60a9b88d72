"""SeaS' decoupled alignment (DA) loss.

Source: Dai et al., "SeaS: Few-shot Industrial Anomaly Image Generation with Separation and Sharing Fine-tuning",
eq. 3; the `compat` form is what the public code computes instead. Maps and masks go by side: {32: [B, 1, 32, 32], …}.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from defect_core.diffusion.losses import resize_mask

Form = Literal["paper", "compat"]
_FLAT = 1e-8


class SideMaps(NamedTuple):
    """Attention by side, the mean over the layers of that side: `anomaly` [B, 1, s, s] is already the mean over the N
    anomaly tokens, `normal` [B, 1, s, s] that of the normal token."""

    anomaly: dict[int, Tensor]
    normal: dict[int, Tensor]


def encoder_maps(layers: Iterable[tuple[str, Tensor]], count: int) -> SideMaps:
    """The captured maps of the U-Net's encoder, of the first `count` images of the batch.

    Args:
        layers: (layer name, [B, 2, s, s]), as `AttentionMaps.layers`; group 0 the anomaly tokens, 1 the normal token.
        count: how many images, from the first on, show a defect.
    """
    by_side: dict[int, list[Tensor]] = {}
    for name, maps in layers:
        if name.startswith("down_blocks"):
            by_side.setdefault(maps.shape[-1], []).append(maps[:count].float())
    means = {side: torch.stack(parts).mean(0) for side, parts in by_side.items()}
    return SideMaps({s: m[:, :1] for s, m in means.items()}, {s: m[:, 1:2] for s, m in means.items()})


def mask_pyramid(masks: Tensor, latent_size: int, sides: Iterable[int], form: Form) -> dict[int, Tensor]:
    """Masks at the sides of the attention maps, through the latents' size, the rest by 2 × 2 max-pooling.

    Args:
        masks: [B, 1, R, R] in {0, 1}.
        latent_size: side of the latents.
        sides: of the maps, at most `latent_size`.
        form: `paper` is binary, max-pooled all the way, so a single pixel survives; `compat` goes to the latents'
            size by plain bilinear interpolation first, so values are soft and thin defects may fade.
    """
    if form == "paper":
        small = resize_mask(masks, latent_size, "max")
    else:
        small = F.interpolate(masks.float(), size=(latent_size, latent_size), mode="bilinear")
    return {side: resize_mask(small, side, "max") for side in sides}


def alignment_terms(maps: SideMaps, masks: Mapping[int, Tensor], form: Form) -> tuple[Tensor, Tensor]:
    """The two terms of L_DA, summed over sides: anomaly tokens onto the defect, the normal token off it.

    paper: Σ_l ‖A_df − M‖² and Σ_l ‖A_ob⊙M‖², squares summed over places, mean over the batch; A from the softmax over
    tokens, so that A_df, the mean over N tokens, is 1/N at most and the first term (1 − 1/N)² per defect place at
    least. compat: the maps come from the softmax over places, are brought to 0 … 1 by the least and largest value of
    the whole batch, and squares are averaged over places; the second term over those where M is 1 exactly. Where the
    public code gives NaN there, for no place has 1, this takes those with M > 0, and 0 if there are none.

    Args:
        maps: of the defect images.
        masks: M by side, of `mask_pyramid` in the same form.
    """
    first, second = [], []
    for side, anomaly in maps.anomaly.items():
        normal, mask = maps.normal[side], masks[side].to(anomaly)
        if form == "paper":
            first.append(((anomaly - mask) ** 2).sum((1, 2, 3)).mean())
            second.append(((normal * mask) ** 2).sum((1, 2, 3)).mean())
            continue
        first.append(((_stretch(anomaly) - mask) ** 2).mean())
        inside = mask == 1 if (mask == 1).any() else mask > 0
        squares = torch.where(inside, _stretch(normal) ** 2, 0.0)
        second.append(squares.sum() / inside.sum().clamp(min=1))
    return torch.stack(first).sum(), torch.stack(second).sum()


def aligned_sides(latent_size: int, present: Sequence[int]) -> list[int]:
    """Half and quarter of the latents' side, 32 and 16 of Stable Diffusion's 64, as far as the U-Net has them.

    Falls back to the largest side there is.
    """
    wanted = [side for side in (latent_size // 2, latent_size // 4) if side in present]
    return wanted or [max(present)]


def _stretch(maps: Tensor) -> Tensor:
    """To 0 … 1 over the whole batch; a constant map becomes 0."""
    low, high = maps.amin(), maps.amax()
    return (maps - low) / (high - low).clamp(min=_FLAT)
