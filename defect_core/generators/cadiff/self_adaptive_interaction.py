"""Self-adaptive interaction module (SAIM) of CADiff (Tong et al. 2026, "Self-adaptive Spatial Control", eq. 9, 10)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HEAD_CHANNELS = 64  # channels per attention head, as in Stable Diffusion 2
NORM_EPS = 1e-2  # At y_c = 0 the slope of the norm is 1 / sqrt(eps), so a small eps would destabilise the first steps.


class SelfAdaptiveInteractionModule(nn.Module):
    """Merges the output y_c of a control block, after its zero convolution, into the output y of a U-Net block.

    y_a = CrossAttn(RMSNorm(y), RMSNorm(y_c))    (eq. 9; queries from y, keys and values from y_c)
    y_f = concat(y, y + MLP(y_a))                (eq. 10)

    The paper does not say how the 2C channels of y_f enter the decoder. Here a 1 × 1 convolution reduces them to C. It
    starts as the mean of the two parts, and no layer has a bias. With y_c = 0 (a new zero convolution) the module
    therefore returns y bit for bit.

    Args:
        channels: C, the channels of y and y_c.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // _HEAD_CHANNELS) if channels % _HEAD_CHANNELS == 0 else 1
        self.norm_trunk, self.norm_control = _RMSNorm(channels), _RMSNorm(channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels, bias=False) for _ in range(4))
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels, bias=False), nn.GELU(), nn.Linear(channels, channels, bias=False)
        )
        self.merge = nn.Conv2d(2 * channels, channels, 1, bias=False)
        with torch.no_grad():
            half_identity = torch.eye(channels) / 2
            self.merge.weight.copy_(torch.cat([half_identity, half_identity], 1)[..., None, None])

    def fuse(self, y: Tensor, y_c: Tensor) -> Tensor:
        """Return y_f of eq. 10, [B, 2C, h, w].

        Args:
            y: output of the U-Net block, [B, C, h, w].
            y_c: output of the control block, [B, C, h, w].
        """
        trunk, control = (x.flatten(2).transpose(1, 2) for x in (y, y_c))
        keys = self.norm_control(control)
        projections = (self.query(self.norm_trunk(trunk)), self.key(keys), self.value(keys))
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projections)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        change = self.mlp(self.out(attended)).transpose(1, 2).reshape(y.shape)
        return torch.cat([y, y + change], 1)

    def forward(self, y: Tensor, y_c: Tensor) -> Tensor:
        """Return the merged feature [B, C, h, w]; arguments as in `fuse`."""
        return self.merge(self.fuse(y, y_c))


class _RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · g over the last dimension (Zhang and Sennrich 2019).

    torch.nn.RMSNorm warns under autocast, and warnings are errors in the tests.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = (x.float().square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
        return x * scale.to(x) * self.weight.to(x)
