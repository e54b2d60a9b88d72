"""Refined Mask Prediction (RMP) branch of SeaS (Dai et al. 2025, sec. 3.3, fig. 4): network and loss.

The branch reads features of the frozen U-Net and of the decoded image (`mask_features.py`).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defect_core.backbones.load import Backbone
from defect_core.diffusion.losses import focal_loss, resize_mask
from defect_core.generators.seas.config import SeasConfig
from defect_core.generators.seas.mask_features import image_feature_channels, unet_feature_channels

Norm = Literal["group", "batch"]
_NORM_GROUPS = 8
_HEADS = 8  # attention heads of the transformer layers


class RefinedMaskPrediction(nn.Module):
    """Predicts defect masks: a coarse feature from the U-Net, one mask refinement module per image feature, one head.

    With group norm, a mask does not depend on the other images of the batch. The public code has batch norm.

    Args:
        unet_channels: channels of the two U-Net features; (1280, 640) for Stable Diffusion.
        image_channels: channels of the image features, coarsest first; (512, 512, 256) for Stable Diffusion.
        width: channels inside the branch (paper: 192), a multiple of 24.
        layers: number of transformer layers (paper: 4).
        fuse: whether each mask refinement module ends with a 3 × 3 convolution (paper: yes; public code: no).
        stems: whether a 3 × 3 convolution first processes each image feature; needed if the features are pixels.
        norm: `group` or `batch`.
        normalise_image: whether the image feature is normalised, with a ReLU (public code; not in the paper).
    """

    def __init__(
        self,
        unet_channels: tuple[int, int],
        image_channels: Sequence[int],
        width: int = 192,
        layers: int = 4,
        fuse: bool = True,
        stems: bool = False,
        norm: Norm = "group",
        normalise_image: bool = False,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(unet_channels[0], 2 * width // 3, 1)
        self.second = nn.Conv2d(unet_channels[1], width // 3, 1)
        self.attention = nn.ModuleList(
            nn.TransformerEncoderLayer(width, _HEADS, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.stems = nn.ModuleList(_conv_block(c, width, 3, norm) if stems else nn.Identity() for c in image_channels)
        self.refinements = nn.ModuleList(
            MaskRefinementModule(width if stems else c, width, fuse, norm, normalise_image) for c in image_channels
        )
        self.head = nn.Sequential(_make_norm(norm, width), nn.ReLU(), nn.Conv2d(width, 2, 3, padding=1))

    @classmethod
    def for_backbone(cls, backbone: Backbone, config: SeasConfig) -> "RefinedMaskPrediction":
        """Return an untrained branch that fits the features of a backbone; its weights are the same at every call."""
        width, layers, is_paper = config.mask_width, config.mask_layers, config.refinement == "paper"
        unet_channels, image_channels = unet_feature_channels(backbone), image_feature_channels(backbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            stems, norm = backbone.patch_size > 1, config.mask_norm
            branch = cls(unet_channels, image_channels, width, layers, is_paper, stems, norm, not is_paper)
        return branch.to(backbone.device)

    def extract_coarse(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the coarse feature F̂ [B, width, s, s] (coarse feature extraction, sec. 3.3).

        Args:
            first: U-Net feature F_1, [B, c, s', s'].
            second: U-Net feature F_2, [B, c', s, s].
        """
        first = F.interpolate(self.first(first.float()), size=second.shape[-2:], mode="bilinear")
        feature = torch.cat([first, self.second(second.float())], 1)
        positions = feature.flatten(2).transpose(1, 2)
        for layer in self.attention:
            positions = layer(positions)
        return positions.transpose(1, 2).unflatten(2, feature.shape[-2:])

    def refine(self, feature: Tensor, image_features: Sequence[Tensor]) -> Tensor:
        """Return the refined feature [B, width, S, S]; S is the side of the last image feature.

        Args:
            feature: coarse feature [B, width, s, s].
            image_features: one per mask refinement module, coarsest first.
        """
        for stem, refinement, image_feature in zip(self.stems, self.refinements, image_features, strict=True):
            feature = refinement(feature, stem(image_feature.float()))
        return feature

    def forward(self, unet_features: tuple[Tensor, Tensor], image_features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the logits of (background, defect): refined [B, 2, S, S] and coarse [B, 2, s, s]."""
        feature = self.extract_coarse(*unet_features)
        return self.head(self.refine(feature, image_features)), self.head(feature)

    def probability(self, unet_features: tuple[Tensor, Tensor], image_features: Sequence[Tensor]) -> Tensor:
        """Return the defect probability of each pixel from the refined logits, [B, S, S] in [0, 1]."""
        return self(unet_features, image_features)[0].softmax(1)[:, 1]


class MaskRefinementModule(nn.Module):
    """Mask Refinement Module (MRM, sec. 3.3 and fig. 12c): u + s ⊙ φ(F).

    u is the enlarged input feature, s the sum of two chained convolution blocks and a 1 × 1 convolution of u, and φ(F)
    a 1 × 1 convolution of the image feature F, with normalisation and ReLU in the public code.

    Args:
        image_channels: channels of the image feature.
        width: channels of the input and output feature.
        fuse: whether the module ends with a 3 × 3 convolution.
        norm: `group` or `batch`.
        normalise_image: whether φ has a normalisation and a ReLU.
    """

    def __init__(
        self, image_channels: int, width: int, fuse: bool, norm: Norm = "group", normalise_image: bool = False
    ) -> None:
        super().__init__()
        # These attribute names are keys of saved weights. `near` and `wide` are the chained blocks, `fine` is φ.
        self.near = nn.Sequential(*(_conv_block(width, width, size, norm) for size in (1, 3, 1)))
        self.wide = nn.Sequential(*(_conv_block(width, width, size, norm) for size in (1, 3, 1)))
        self.local = _conv_block(width, width, 1, norm)
        if normalise_image:
            self.fine: nn.Module = _conv_block(image_channels, width, 1, norm)
        else:
            self.fine = nn.Conv2d(image_channels, width, 1)
        self.fuse = nn.Conv2d(width, width, 3, padding=1) if fuse else nn.Identity()

    def forward(self, feature: Tensor, image_feature: Tensor) -> Tensor:
        """Return the refined feature [B, width, S, S] at the size of the image feature [B, c, S, S]."""
        enlarged = F.interpolate(feature, size=image_feature.shape[-2:], mode="bilinear")
        near = self.near(enlarged)
        multi_scale = near + self.wide(near) + self.local(enlarged)
        return self.fuse(enlarged + multi_scale * self.fine(image_feature))


def refined_mask_prediction_loss(
    branch: RefinedMaskPrediction,
    unet_features: tuple[Tensor, Tensor],
    image_features: Sequence[Tensor],
    masks: Tensor,
    gamma: float,
) -> Tensor:
    """Return the loss L_M (eq. 7), a scalar: focal losses of the coarse and refined masks of defect and normal images.

    The refined prediction of a normal image is its enlarged coarse feature, without mask refinement modules.
    The masks are max-pooled: a cell that contains any defect is defect. The public code drops partly covered cells, and
    with them thin defects.

    Args:
        branch: the RMP branch.
        unet_features: U-Net features of B defect images followed by normal images.
        image_features: image features of the B defect images.
        masks: masks of the B defect images, [B, 1, R, R] in {0, 1}.
        gamma: gamma of the focal loss.
    """
    feature = branch.extract_coarse(*unet_features)
    defect, normal = feature[: len(masks)], feature[len(masks) :]
    refined = branch.head(branch.refine(defect, image_features))
    enlarged = branch.head(F.interpolate(normal, size=refined.shape[-2:], mode="bilinear"))
    total = torch.zeros((), device=feature.device)
    for logits in (refined, branch.head(defect)):
        target = resize_mask(masks, logits.shape[-1], "max")[:, 0].to(logits.device)
        total = total + focal_loss(logits, (target > 0.5).long(), gamma)
    for logits in (enlarged, branch.head(normal)):
        empty = torch.zeros(logits.shape[0], *logits.shape[2:], dtype=torch.long, device=logits.device)
        total = total + focal_loss(logits, empty, gamma)
    return total


def _conv_block(channels: int, width: int, size: int, norm: Norm) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, size, padding=size // 2, bias=False)
    return nn.Sequential(convolution, _make_norm(norm, width), nn.ReLU())


def _make_norm(norm: Norm, width: int) -> nn.Module:
    return nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(_NORM_GROUPS, width)
