"""The spatial encoder E, which turns a mask into n token embeddings (paper §3.2).

A feature pyramid (Lin et al. 2017) fuses ResNet features (He et al. 2016) of several sizes. One head per token reduces
the finest map to a vector. `ir` is the architecture of the public code, `resnet50` that of the paper; the paper says
"several fully-connected networks", so the heads are those of the public code in both. Two changes:

- With `norm: group` a sample does not depend on its batch. Paper and public code have batch normalisation.
- A layer normalisation before each head's last layer scales the initial output like the embeddings of words.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defect_core.generators.anomaly_diffusion.config import EncoderConfig

_Norm = Callable[[int], nn.Module]


class SpatialEncoder(nn.Module):
    """Spatial encoder E: masks [B, 1, H, W] in [0, 1] of any size to tokens [B, n, D].

    Args:
        config: architecture and sizes.
        tokens: n.
        width: D, the width of the text encoder's token embeddings.
        scale: root mean square of a token embedding's components.
    """

    def __init__(self, config: EncoderConfig, tokens: int, width: int, scale: float) -> None:
        super().__init__()
        self.side = config.side
        build = _resnet50 if config.architecture == "resnet50" else _ir_stages
        self.stem, stages, channels = build(config, _group_norm if config.norm == "group" else nn.BatchNorm2d)
        self.stages = nn.ModuleList(stages)
        self.lateral = nn.ModuleList(nn.Conv2d(each, config.width, 1) for each in channels)
        # Lin et al. smooth each map by a 3 × 3 convolution; the public code does not.
        is_paper = config.architecture == "resnet50"
        self.smooth = nn.Conv2d(config.width, config.width, 3, padding=1) if is_paper else nn.Identity()
        finest = config.side // 4
        head_width = config.head_width or width
        self.heads = nn.ModuleList(_Head(config.width, head_width, width, finest, scale) for _ in range(tokens))

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
        for feature, lateral in zip(
            reversed(stage_features[-len(self.lateral) :]), reversed(self.lateral), strict=True
        ):
            part = lateral(feature)
            fused = part if fused is None else part + F.interpolate(fused, size=part.shape[-2:], mode="bilinear")
        fused = self.smooth(fused)
        return torch.stack([head(fused) for head in self.heads], 1)


def _ir_stages(config: EncoderConfig, norm: _Norm) -> tuple[nn.Module, list[nn.Module], list[int]]:
    """Return stem, stages at 1/2 to 1/16 of the side, and the channels of the last three, which feed the pyramid."""
    first, *outer = config.channels
    stem = nn.Sequential(nn.Conv2d(3, first, 3, padding=1), norm(first), nn.PReLU(first))
    stages: list[nn.Module] = []
    in_channels = first
    for channels, depth in zip(config.channels, config.depths, strict=True):
        rest = (_Residual(channels, channels, 1, norm) for _ in range(depth - 1))
        stages.append(nn.Sequential(_Residual(in_channels, channels, 2, norm), *rest))
        in_channels = channels
    return stem, stages, outer


def _resnet50(config: EncoderConfig, norm: _Norm) -> tuple[nn.Module, list[nn.Module], list[int]]:
    """Return stem and stages of ResNet-50 with random weights, at 1/4 to 1/32 of the side, and their channels."""
    from torchvision.models import resnet50

    network = resnet50(weights=None, norm_layer=norm)
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    return stem, [network.layer1, network.layer2, network.layer3, network.layer4], [256, 512, 1024, 2048]


class _Residual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: _Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            norm(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            norm(out_channels),
            nn.PReLU(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            norm(out_channels),
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


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)
