"""What CADiff minimises besides the noise loss: attention on the right places (eq. 5), tokens apart (eq. 6, 7)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from defect_core.diffusion.attention import AttentionMaps
from defect_core.diffusion.losses import alignment_loss, resize_mask

Form = Literal["balanced", "token", "paper"]


def token_masks(masks: Tensor) -> Tensor:
    """Where each token belongs: the context token to M_* = 1 − Σ M_i, each anomaly token to its defect.

    Args:
        masks: M_i, [B, n, h, w] in {0, 1}.

    Returns:
        [B, 1 + n, h, w], the context first; sums to 1 everywhere, for where masks overlap the first keeps the place.
    """
    before = masks.cumsum(1) - masks
    own = masks * (before == 0)
    return torch.cat([1 - own.sum(1, keepdim=True), own], 1)


def localising_loss(maps: AttentionMaps, masks: Tensor, form: Form = "balanced") -> Tensor:
    """Σ over layers of the distance between attention and mask, of eq. 5.

    The paper's sum over places is a mean here, as is the noise loss', so that γ keeps its balance at every latent size.

    Args:
        maps: captured for the context and each defect, [B, 1 + n, s, s].
        masks: M_i, [B, n, h, w]; max-pooled to each layer, so no defect is lost.
        form: `balanced` (ours, for the paper calls its loss balanced and prints no weights) is the mean over tokens of
            half the mean of (1 − A)² inside the mask plus half that of A² outside; without it a small defect is learned
            as "nowhere". `token` and `paper` as in `alignment_loss`; in the paper's, errors of tokens cancel.
    """
    total = masks.new_zeros(())
    for _, part in maps.layers:
        wanted = token_masks(resize_mask(masks, part.shape[-1])).to(part)
        total = total + (_balanced(part, wanted) if form == "balanced" else alignment_loss(part, wanted, form))
    return total


def contrast_loss(vectors: Tensor, temperature: float) -> Tensor:
    """NT-Xent over concepts: the same token in two views attracts, other tokens repel.

    l_ij^c = −ln( exp(cos(v_i^c, v_j^c)/τ) / Σ_c' Σ_{j'≠i} exp(cos(v_i^c, v_j'^c')/τ) ), and
    L = 1/(CB) · Σ_c Σ_i Σ_{j≠i} l_ij^c.

    Args:
        vectors: v, [B, C, D]: B views of C concepts, B at least 2.
        temperature: τ.
    """
    views, concepts, _ = vectors.shape
    if views < 2:
        raise ValueError(f"the contrast needs at least two views, got {views}")
    unit = F.normalize(vectors, dim=-1)
    similar = torch.einsum("icd,jed->icje", unit, unit) / temperature  # [view, concept, other view, other concept]
    other = ~torch.eye(views, dtype=torch.bool, device=vectors.device)
    barred = similar.masked_fill(~other[:, None, :, None], -torch.inf)
    total = barred.flatten(2).logsumexp(-1)
    positive = torch.einsum("icjc->icj", similar)
    each = (total[..., None] - positive) * other[:, None, :]
    return each.sum() / (concepts * views)


def _balanced(maps: Tensor, wanted: Tensor) -> Tensor:
    squares = (maps - wanted) ** 2
    halves = [(squares * places).sum((2, 3)) / places.sum((2, 3)).clamp(min=1) for places in (wanted, 1 - wanted)]
    return (sum(halves) / 2).mean()
