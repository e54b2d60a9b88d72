"""Self-adaptive spatial control: a ControlNet on the mask, joined to the U-Net by cross-attention (CADiff eq. 9, 10).

y is what a block of the frozen U-Net (the trunk) hands to its decoder, y_c the output of the ControlNet at the same
place, after its zero convolution; both [B, C, h, w].
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Joining = Literal["attention", "addition", "both"]
HINT_FACTOR = 8  # the ControlNet brings its hint down by this
HEAD_WIDTH = 64
NORM_EPS = 1e-2  # the norm's slope at y_c = 0 is 1 / sqrt(eps); a small eps would shake the first steps


class Interaction(nn.Module):
    """The self-adaptive interaction module of one level.

    y_a = CrossAttn(Q = RMSNorm(y); K, V from RMSNorm(y_c)); y_f = concat(y, y + MLP(y_a)); a 1 x 1 convolution, which
    the paper leaves out, brings y_f back from 2C to C channels. It starts as the mean of both halves, and nothing has
    a bias, so with y_c = 0 (a new zero convolution) the module hands on y bit for bit.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // HEAD_WIDTH) if channels % HEAD_WIDTH == 0 else 1
        self.norm_trunk, self.norm_control = _RMSNorm(channels), _RMSNorm(channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels, bias=False) for _ in range(4))
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels, bias=False), nn.GELU(), nn.Linear(channels, channels, bias=False)
        )
        self.merge = nn.Conv2d(2 * channels, channels, 1, bias=False)
        with torch.no_grad():
            half = torch.eye(channels) / 2
            self.merge.weight.copy_(torch.cat([half, half], 1)[..., None, None])

    def fuse(self, y: Tensor, y_c: Tensor) -> Tensor:
        """y_f, [B, 2C, h, w]."""
        trunk, control = (x.flatten(2).transpose(1, 2) for x in (y, y_c))
        keys = self.norm_control(control)
        parts = (self.query(self.norm_trunk(trunk)), self.key(keys), self.value(keys))
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in parts)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        change = self.mlp(self.out(attended)).transpose(1, 2).reshape(y.shape)
        return torch.cat([y, y + change], 1)

    def forward(self, y: Tensor, y_c: Tensor) -> Tensor:
        return self.merge(self.fuse(y, y_c))


class ControlBranch(nn.Module):
    """A ControlNet made from a U-Net, with one interaction module for each place where it joins the U-Net.

    Args:
        denoiser: diffusers' U-Net; its encoder is copied.
        joining: `attention` is the paper's module; `addition` ControlNet's own y + y_c (Zhang et al. 2023); `both`
            the module's result plus y_c.
        seed: of the layers that are new.
    """

    def __init__(self, denoiser: nn.Module, joining: Joining, seed: int) -> None:
        from diffusers.models.controlnets.controlnet import ControlNetModel

        super().__init__()
        self.joining = joining
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            self.net = ControlNetModel.from_unet(denoiser)
            # diffusers lets the hint start at zero too; the zero convolutions behind it keep the U-Net as it is alone,
            # and with both at zero the mask would be learned late (ours)
            self.net.controlnet_cond_embedding.conv_out.reset_parameters()
            joins = [*self.net.controlnet_down_blocks, self.net.controlnet_mid_block]
            channels = [] if joining == "addition" else [join.out_channels for join in joins]
            self.interactions = nn.ModuleList(Interaction(count) for count in channels)
        self.to(next(denoiser.parameters()).device)

    def predict(
        self, denoiser: nn.Module, latents: Tensor, time: Tensor, text: Tensor, hint: Tensor, scale: float = 1.0
    ) -> Tensor:
        """The U-Net's noise under the control of a mask.

        Args:
            denoiser: the U-Net.
            latents: [B, C, h, w].
            time: int64 [B].
            text: [B, T, D].
            hint: the mask as an image, [B, 3, 8h, 8w] in {0, 1}.
            scale: 0 is the U-Net alone, 1 the whole control, between them a mixture.
        """
        if scale == 0:
            return denoiser(latents, time, text).sample
        own = next(self.net.parameters()).dtype  # trained in full precision beside a U-Net that may have less
        down, mid = self.net(latents.to(own), time, text.to(own), hint.to(own), return_dict=False)
        joins = [_Join(self._join(number), y_c, scale) for number, y_c in enumerate([*down, mid])]
        return denoiser(
            latents,
            time,
            text,
            down_block_additional_residuals=tuple(joins[:-1]),
            mid_block_additional_residual=joins[-1],
        ).sample

    def _join(self, number: int) -> Callable[[Tensor, Tensor], Tensor]:
        if self.joining == "addition":
            return torch.add
        module = self.interactions[number]
        if self.joining == "attention":
            return module
        return lambda y, y_c: module(y, y_c) + y_c


def hint_image(masks: Tensor, latent_size: int) -> Tensor:
    """Masks [B, 1, H, W] as the ControlNet's hint, float [B, 3, 8h, 8w]; nearest where the sizes differ."""
    side = HINT_FACTOR * latent_size
    if masks.shape[-1] != side:
        masks = F.interpolate(masks.float(), size=(side, side), mode="nearest")
    return masks.float().expand(-1, 3, -1, -1)


class _RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps)·g over the last dimension; torch's own warns under autocast."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = (x.float().square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
        return x * scale.to(x) * self.weight.to(x)


class _Join:
    """Stands in for a ControlNet residual: where diffusers' U-Net computes y + residual, it gets the joined y."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], y_c: Tensor, scale: float) -> None:
        self.join, self.y_c, self.scale = join, y_c, scale

    def __radd__(self, y: Tensor) -> Tensor:
        joined = self.join(y.to(self.y_c), self.y_c).to(y)
        return joined if self.scale == 1 else torch.lerp(y, joined, self.scale)
