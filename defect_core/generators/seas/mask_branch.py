"""SeaS' refined mask prediction (RMP): masks from the U-Net's features, sharpened by features of the decoded image.

Source: paper §3.3, fig. 4 and 12c. The branch reads frozen features, so no gradient reaches the backbone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defect_core.backbones import Backbone
from defect_core.diffusion.losses import focal_loss, resize_mask

_NORM_GROUPS = 8


class MaskBranch(nn.Module):
    """Coarse features, refined once per given size, and one head for both.

    Group norm stands where the public code has batch norm: no statistics of a batch enter a mask, and a resumed
    training has nothing else to restore.

    Args:
        coarse_channels: of the two U-Net features, (1280, 640) for Stable Diffusion.
        fine_channels: of the image features, coarsest first, (512, 512, 256) for Stable Diffusion; one refinement
            module each.
        width: channels of everything in between (paper: 192), a multiple of 24.
        layers: of self-attention (paper: 4).
        fuse: a closing 3 × 3 convolution in each refinement module, as the paper's text has it; its code has none.
        stems: look at each fine feature through a 3 × 3 convolution first; for features that are bare pixels.
    """

    def __init__(
        self,
        coarse_channels: tuple[int, int],
        fine_channels: Sequence[int],
        width: int = 192,
        layers: int = 4,
        fuse: bool = True,
        stems: bool = False,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(coarse_channels[0], 2 * width // 3, 1)
        self.second = nn.Conv2d(coarse_channels[1], width // 3, 1)
        self.attention = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 8, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.stems = nn.ModuleList(_conv(count, width, 3) if stems else nn.Identity() for count in fine_channels)
        self.refinements = nn.ModuleList(_Refinement(width if stems else c, width, fuse) for c in fine_channels)
        self.head = nn.Sequential(nn.GroupNorm(_NORM_GROUPS, width), nn.ReLU(), nn.Conv2d(width, 2, 3, padding=1))

    def coarse(self, first: Tensor, second: Tensor) -> Tensor:
        """F̂ [B, width, s, s] from the two U-Net features, [B, c, s', s'] and [B, c', s, s]."""
        first = F.interpolate(self.first(first.float()), size=second.shape[-2:], mode="bilinear")
        feature = torch.cat([first, self.second(second.float())], 1)
        places = feature.flatten(2).transpose(1, 2)
        for layer in self.attention:
            places = layer(places)
        return places.transpose(1, 2).unflatten(2, feature.shape[-2:])

    def refine(self, feature: Tensor, fine: Sequence[Tensor]) -> Tensor:
        """F̂ through one refinement module per image feature: [B, width, S, S], S the side of the last."""
        for stem, refinement, image_feature in zip(self.stems, self.refinements, fine, strict=True):
            feature = refinement(feature, stem(image_feature.float()))
        return feature

    def forward(self, coarse: tuple[Tensor, Tensor], fine: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of (background, defect): fine [B, 2, S, S] and coarse [B, 2, s, s]."""
        feature = self.coarse(*coarse)
        return self.head(self.refine(feature, fine)), self.head(feature)

    def probability(self, coarse: tuple[Tensor, Tensor], fine: Sequence[Tensor]) -> Tensor:
        """How likely each pixel is part of a defect, [B, S, S] in 0 … 1."""
        return self(coarse, fine)[0].softmax(1)[:, 1]


def branch_loss(
    branch: MaskBranch, coarse: tuple[Tensor, Tensor], fine: Sequence[Tensor], masks: Tensor, gamma: float
) -> Tensor:
    """Eq. 7: focal losses of coarse and fine prediction, of defect images and of normal ones, whose mask is empty.

    The fine prediction of a normal image is its coarse feature enlarged, without refinement modules.

    Args:
        coarse: U-Net features of B defect images, then of the normal ones.
        fine: image features of the B defect images.
        masks: [B, 1, R, R] in {0, 1}; a cell that holds any defect is defect (the public code drops partly covered
            cells, and with them thin defects).
        gamma: of the focal loss (paper: 2).
    """
    feature = branch.coarse(*coarse)
    defect, normal = feature[: len(masks)], feature[len(masks) :]
    refined = branch.head(branch.refine(defect, fine))
    enlarged = branch.head(F.interpolate(normal, size=refined.shape[-2:], mode="bilinear"))
    total = torch.zeros((), device=feature.device)
    for logits in (refined, branch.head(defect)):
        target = resize_mask(masks, logits.shape[-1], "max")[:, 0].to(logits.device)
        total = total + focal_loss(logits, (target > 0.5).long(), gamma)
    for logits in (enlarged, branch.head(normal)):
        empty = torch.zeros(logits.shape[0], *logits.shape[2:], dtype=torch.long, device=logits.device)
        total = total + focal_loss(logits, empty, gamma)
    return total


def make_branch(backbone: Backbone, width: int, layers: int, fuse: bool) -> MaskBranch:
    """The branch that fits a backbone's feature sizes; random weights, the same every time."""
    blocks = backbone.denoiser.up_blocks
    channels = [block.resnets[-1].out_channels for block in (blocks[i] for i in _middle(len(blocks)))]
    offered = _decoder_blocks(backbone)
    fine = [backbone.vae.decoder.up_blocks[i].resnets[-1].out_channels for i in offered]
    fine += [3 * (backbone.resolution // side) ** 2 for side in _image_sides(backbone)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        branch = MaskBranch((channels[0], channels[1]), fine, width, layers, fuse, stems=backbone.patch_size > 1)
    return branch.to(backbone.device)


@contextmanager
def watch_features(backbone: Backbone) -> Iterator[list[Tensor]]:
    """Within it, each call of the U-Net leaves the outputs of its two middle up-blocks in the list, old ones removed.

    Of four blocks these are the second and third (Stable Diffusion: 1280 at 32², 640 at 64²; paper table 14).
    """
    blocks = backbone.denoiser.up_blocks
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        del kept[: max(0, len(kept) - 1)]
        kept.append(output.detach())

    hooks = [blocks[index].register_forward_hook(keep) for index in _middle(len(blocks))]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def image_features(backbone: Backbone, latents: Tensor) -> list[Tensor]:
    """Features finer than the latents, coarsest first, one per size.

    The VAE decoder's up-blocks give their outputs at each size they are first to reach. Where the VAE works on folded
    squares of pixels (the embedded one, which has no up-blocks), the decoded image itself, folded to two, four, …
    times the latents' side, stands for the sizes that are missing.

    Args:
        latents: [B, C, h, w], clean or nearly so.
    """
    features: list[Tensor] = []
    wanted = set(_decoder_blocks(backbone))

    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output: features.append(output))
        for index, block in enumerate(backbone.vae.decoder.up_blocks)
        if index in wanted
    ]
    try:
        image = backbone.decode(latents)
    finally:
        for hook in hooks:
            hook.remove()
    return features + [F.pixel_unshuffle(image, backbone.resolution // side) for side in _image_sides(backbone)]


class _Refinement(nn.Module):
    """A mask refinement module (MRM): u + s⊙φ(F), s the sum of three looks at the enlarged feature u."""

    def __init__(self, fine_channels: int, width: int, fuse: bool) -> None:
        super().__init__()
        self.near = nn.Sequential(_conv(width, width, 1), _conv(width, width, 3), _conv(width, width, 1))
        self.wide = nn.Sequential(_conv(width, width, 1), _conv(width, width, 3), _conv(width, width, 1))
        self.local = _conv(width, width, 1)
        self.fine = nn.Conv2d(fine_channels, width, 1)
        self.fuse = nn.Conv2d(width, width, 3, padding=1) if fuse else nn.Identity()

    def forward(self, feature: Tensor, fine: Tensor) -> Tensor:
        enlarged = F.interpolate(feature, size=fine.shape[-2:], mode="bilinear")
        near = self.near(enlarged)
        seen = near + self.wide(near) + self.local(enlarged)
        return self.fuse(enlarged + seen * self.fine(fine))


def _conv(channels: int, width: int, size: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, size, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(_NORM_GROUPS, width), nn.ReLU())


def _middle(count: int) -> tuple[int, int]:
    """The two middle ones of `count` blocks; of a single one, that twice."""
    return max(0, count // 2 - 1), min(count // 2, count - 1)


def _decoder_blocks(backbone: Backbone) -> list[int]:
    """Up-blocks of the VAE's decoder that double the size; the last one never does."""
    return list(range(len(backbone.vae.config.block_out_channels) - 1))


def _image_sides(backbone: Backbone) -> list[int]:
    """Sizes beyond what the VAE reaches, doubling up to the resolution."""
    side, sides = backbone.resolution // backbone.patch_size, []
    while side < backbone.resolution:
        side = min(2 * side, backbone.resolution)
        sides.append(side)
    return sides
