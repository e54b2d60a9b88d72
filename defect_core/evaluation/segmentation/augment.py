"""Augmentation of a batch of images together with its masks, in one resampling."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def augment_batch(
    images: Tensor, masks: Tensor, generator: torch.Generator, max_rotation: float = 8.0, mirror: bool = True
) -> tuple[Tensor, Tensor]:
    """Flip, rotate, scale and shift images with their masks, and change brightness and contrast.

    Image and mask are sampled on one grid that is reflected at the border. The mask is interpolated and stays soft, so
    that a defect of one pixel is not lost between two pixels.

    Args:
        images: `[B,3,S,S]` float in 0..255.
        masks: `[B,1,S,S]` float in 0..1.
        generator: random generator on the CPU.
        max_rotation: largest small rotation in degrees. The scale is within 0.9..1.1, the shift within 5 % of S.
        mirror: whether to flip and to rotate by multiples of 90 degrees too.

    Returns:
        Images in 0..255 and masks in 0..1, of the same shapes.
    """
    count, side = images.shape[0], images.shape[-1]

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    turns = torch.randint(0, 4, (count,), generator=generator) * (math.pi / 2)
    angle = turns + uniform(-max_rotation, max_rotation) * (math.pi / 180)
    scale, flip = uniform(0.9, 1.1), torch.randint(0, 2, (count,), generator=generator) * 2.0 - 1.0
    if not mirror:
        angle, flip = angle - turns, torch.ones_like(flip)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    top = torch.stack([cos * flip, -sin, uniform(-0.1, 0.1)], dim=1)
    bottom = torch.stack([sin * flip, cos, uniform(-0.1, 0.1)], dim=1)
    theta = torch.stack([top, bottom], dim=1).to(images.device)
    contrast, brightness = uniform(0.85, 1.15), uniform(-20, 20)
    grid = F.affine_grid(theta, [count, 4, side, side], align_corners=False)
    joint = F.grid_sample(
        torch.cat([images, masks * 255], 1), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    mean = joint[:, :3].mean((1, 2, 3), keepdim=True)
    contrast, brightness = (v.view(-1, 1, 1, 1).to(images.device) for v in (contrast, brightness))
    changed = (joint[:, :3] - mean) * contrast + mean + brightness
    return changed.clamp(0, 255), (joint[:, 3:] / 255).clamp(0, 1)
