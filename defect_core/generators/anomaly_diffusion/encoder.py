"""The spatial encoder E, which turns a mask into n token embeddings (paper §3.2).

A feature pyramid (Lin et al. 2017) fuses ResNet features (He et al. 2016) of three sizes. One head per token reduces
the finest map to a vector. The architecture is that of the public code, with two changes:

- Group normalisation replaces batch normalisation, so that a sample does not depend on its batch.
- A layer normalisation before each head's last layer scales the initial output like the embeddings of words.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defect_core.generators.anomaly_diffusion.config import EncoderConfig


class SpatialEncoder(nn.Module):
    """Spatial encoder E: masks [B, 1, H, W] in [0, 1] of any size to tokens [B, n, D].

    Args:
        config: sizes.
        tokens: n.
        width: D, the width of the text encoder's token embeddings.
        scale: root mean square of a token embedding's components.
    """

    def __init__(self, config: EncoderConfig, tokens: int, width: int, scale: float) -> None:
        super().__init__()
        stem, *outer = config.channels
        self.side = config.side
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, padding=1), _norm(stem), nn.PReLU(stem))
        self.stages = nn.ModuleList()
        in_channels = stem
        for channels, depth in zip(config.channels, config.depths, strict=True):
            rest = (_Residual(channels, channels, 1) for _ in range(depth - 1))
            self.stages.append(nn.Sequential(_Residual(in_channels, channels, 2), *rest))
            in_channels = channels
        self.lateral = nn.ModuleList(nn.Conv2d(channels, config.width, 1) for channels in outer)
        finest = config.side // 4
        self.heads = nn.ModuleList(_Head(config.width, config.head_width, width, finest, scale) for _ in range(tokens))

    def forward(self, masks: Tensor) -> Tensor:
        """Return the tokens [B, n, D] of masks [B, 1, H, W]."""
        resized = F.adaptive_max_pool2d(masks, self.side) if masks.shape[-1] > self.side else masks
        if resized.shape[-1] < self.side:
            resized = F.interpolate(resized, size=(self.side, self.side), mode="nearest")
        features = self.stem(resized.repeat(1, 3, 1, 1) * 2 - 1)
        stage_features = []
        for stage in self.stages:
            features = stage(features)
            stage_features.append(features)
        fused = None
        for feature, lateral in zip(reversed(stage_features[1:]), reversed(self.lateral), strict=True):
            part = lateral(feature)
            fused = part if fused is None else part + F.interpolate(fused, size=part.shape[-2:], mode="bilinear")
        return torch.stack([head(fused) for head in self.heads], 1)


class _Residual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _norm(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            _norm(out_channels),
            nn.PReLU(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            _norm(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class _Head(nn.Module):
    """Stride-2 convolutions down to one position, then a linear layer whose initial outputs have the size `scale`."""

    def __init__(self, in_channels: int, width: int, out_features: int, side: int, scale: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        while side > 1:
            convolution = nn.Conv2d(in_channels, width, 3, stride=2, padding=1)
            nn.init.kaiming_normal_(convolution.weight, a=0.01)
            layers += [convolution, nn.LeakyReLU(0.01)]
            in_channels, side = width, (side + 1) // 2
        self.down = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(in_channels)
        self.out = nn.Linear(in_channels, out_features)
        nn.init.normal_(self.out.weight, std=scale / in_channels**0.5)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.down(x).flatten(1)))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)
