"""Regularisation losses of CADiff: localizing masked loss (eq. 5), contrastive disentanglement loss (eq. 6, 7).

Source: Tong et al. 2026, sec. "Context-aware Text Prompt".
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from defect_core.diffusion.attention import AttentionMaps
from defect_core.diffusion.losses import alignment_loss, resize_mask

LocalizingForm = Literal["balanced", "token", "paper"]


def localizing_masked_loss(maps: AttentionMaps, masks: Tensor, form: LocalizingForm = "balanced") -> Tensor:
    """Return L_loc (eq. 5), a scalar: the squared distance between attention maps and masks, summed over layers.

    The paper sums over positions. This function takes the mean, as the noise loss does, so that γ means the same at
    every latent size.

    Args:
        maps: captured maps of the context token and each anomaly token, [B, 1 + n, s, s] per layer.
        masks: M_i of each defect, [B, n, h, w]; max-pooled to each layer, so that no defect vanishes.
        form: `paper` averages over tokens before squaring, so opposite errors cancel. `token` squares the error of
            each token. `balanced` (not in the paper, which prints no weights for its "balanced" loss) averages the mean
            of (1 − A)² inside the mask and the mean of A² outside. Without it a small defect has too little weight.
    """
    total = masks.new_zeros(())
    for _, attention in maps.layers:
        targets = token_masks(resize_mask(masks, attention.shape[-1])).to(attention)
        if form == "balanced":
            total = total + _balanced_loss(attention, targets)
        else:
            total = total + alignment_loss(attention, targets, form)
    return total


def token_masks(masks: Tensor) -> Tensor:
    """Return the mask of each token, [B, 1 + n, h, w]: first the context token's M_* = 1 − Σ M_i, then each defect's.

    The masks sum to 1 at every position. Where defects overlap, the first one has the position.

    Args:
        masks: M_i, [B, n, h, w] in {0, 1}.
    """
    covered = masks.cumsum(1) - masks
    disjoint = masks * (covered == 0)
    return torch.cat([1 - disjoint.sum(1, keepdim=True), disjoint], 1)


def contrastive_disentanglement_loss(vectors: Tensor, temperature: float) -> Tensor:
    """Return L_contrastive (eq. 7), a scalar: NT-Xent (Chen et al. 2020) over concepts.

    l_ij^c = −ln( exp(cos(v_i^c, v_j^c)/τ) / Σ_c' Σ_{j'≠i} exp(cos(v_i^c, v_j'^c')/τ) )    (eq. 6)
    L = 1/(C·B) · Σ_c Σ_i Σ_{j≠i} l_ij^c                                                  (eq. 7)

    Args:
        vectors: v, [B, C, D]: B views of C concepts.
        temperature: τ.

    Raises:
        ValueError: fewer than two views.
    """
    views, concepts, _ = vectors.shape
    if views < 2:
        raise ValueError(f"got {views} view of each concept; expected at least two views")
    unit = F.normalize(vectors, dim=-1)
    similarity = torch.einsum("icd,jed->icje", unit, unit) / temperature  # [view, concept, other view, other concept]
    is_other_view = ~torch.eye(views, dtype=torch.bool, device=vectors.device)
    denominators = similarity.masked_fill(~is_other_view[:, None, :, None], -torch.inf).flatten(2).logsumexp(-1)
    positives = torch.einsum("icjc->icj", similarity)
    losses = (denominators[..., None] - positives) * is_other_view[:, None, :]
    return losses.sum() / (concepts * views)


def _balanced_loss(maps: Tensor, targets: Tensor) -> Tensor:
    squares = (maps - targets) ** 2
    inside, outside = (
        (squares * region).sum((2, 3)) / region.sum((2, 3)).clamp(min=1) for region in (targets, 1 - targets)
    )
    return ((inside + outside) / 2).mean()
