"""The spatial encoder E: a mask to n vectors in the space of words (paper §3.2).

ResNet (He et al. 2016) features of three sizes are fused from coarse to fine by a feature pyramid (Lin et al. 2017);
one head per token shrinks the finest map to a vector. As in the public code, but with group normalisation, which does
not depend on the batch, and with a normalisation before each head's last layer, which begins in the range of the words.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defect_core.generators.anomaly_diffusion.config import EncoderConfig


class SpatialEncoder(nn.Module):
    """E: mask [B, 1, H, W] in [0, 1], any size -> [B, n, D].

    Args:
        config: sizes.
        tokens: n.
        width: D, of the text encoder's words.
        scale: root mean square of a word's components.
    """

    def __init__(self, config: EncoderConfig, tokens: int, width: int, scale: float) -> None:
        super().__init__()
        stem, *outer = config.channels
        self.side = config.side
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, padding=1), _norm(stem), nn.PReLU(stem))
        self.stages = nn.ModuleList()
        before = stem
        for channels, depth in zip(config.channels, config.depths, strict=True):
            self.stages.append(
                nn.Sequential(
                    _Residual(before, channels, 2), *(_Residual(channels, channels, 1) for _ in range(depth - 1))
                )
            )
            before = channels
        self.lateral = nn.ModuleList(nn.Conv2d(channels, config.width, 1) for channels in outer)
        finest = config.side // 4
        self.heads = nn.ModuleList(_Head(config.width, config.head_width, width, finest, scale) for _ in range(tokens))

    def forward(self, masks: Tensor) -> Tensor:
        shown = F.adaptive_max_pool2d(masks, self.side) if masks.shape[-1] > self.side else masks
        if shown.shape[-1] < self.side:
            shown = F.interpolate(shown, size=(self.side, self.side), mode="nearest")
        features = self.stem(shown.repeat(1, 3, 1, 1) * 2 - 1)
        kept = []
        for stage in self.stages:
            features = stage(features)
            kept.append(features)
        fused = None
        for feature, lateral in zip(reversed(kept[1:]), reversed(self.lateral), strict=True):
            part = lateral(feature)
            fused = part if fused is None else part + F.interpolate(fused, size=part.shape[-2:], mode="bilinear")
        return torch.stack([head(fused) for head in self.heads], 1)


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _norm(before),
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            _norm(after),
            nn.PReLU(after),
            nn.Conv2d(after, after, 3, stride=stride, padding=1, bias=False),
            _norm(after),
        )
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class _Head(nn.Module):
    """Convolutions of stride 2 down to one place, then a linear layer that begins in the range `scale`."""

    def __init__(self, before: int, width: int, out: int, side: int, scale: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        while side > 1:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.LeakyReLU(0.01)]
            nn.init.kaiming_normal_(layers[-2].weight, a=0.01)
            before, side = width, (side + 1) // 2
        self.down = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(before)
        self.out = nn.Linear(before, out)
        nn.init.normal_(self.out.weight, std=scale / before**0.5)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.down(x).flatten(1)))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)
