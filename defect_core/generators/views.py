"""What every diffusion method does around its network: views of real examples, tensors, texts, half precision.

A *view* is a canvas (see `canvas.py`) shown at the backbone's resolution, with its mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from defect_core.backbones import Backbone
from defect_core.data.augment import AugmentOptions, augment
from defect_core.data.masks import downsample_mask
from defect_core.data.placement import foreground, has_texture_direction
from defect_core.errors import InputError
from defect_core.generators.base import Example, Image, Mask, SampleRequest
from defect_core.generators.canvas import CanvasKind, choose_window, crop_image, crop_mask

CONTEXT_JITTER = (0.8, 1.4)


class View(NamedTuple):
    """`image` uint8 [R, R, 3] and `mask` bool [R, R] (all False for a good example) of one example of `defect`."""

    image: Image
    mask: Mask
    defect: str


@dataclass(frozen=True)
class LatentBank:
    """Encoded views, on the CPU.

    `latents` [N, C, h, h]; `masks` float {0, 1} [N, 1, h, h], no defect lost; `defects` int64 [N], indices into the
    list of defects that was given.
    """

    latents: Tensor
    masks: Tensor
    defects: Tensor


def augmented_views(
    examples: Sequence[Example],
    variants: int,
    canvas: CanvasKind,
    context: float,
    min_side: int,
    resolution: int,
    rng: np.random.Generator,
    options: AugmentOptions | None = None,
) -> list[View]:
    """Every example `variants` times, from several windows and turns (`options`; None: `default_augmentation` of its image); a
    defect is never lost.

    A good example (no mask) is shown in a window as large as a square of `min_side` times `context` at a random
    place, or whole, as `canvas` says.
    """
    views = []
    for example in examples:
        changes = default_augmentation(example.image) if options is None else options
        for _ in range(variants):
            near = max(1.0, context * rng.uniform(*CONTEXT_JITTER))
            place = example.mask if example.mask is not None else _anywhere(example.image, min_side, rng)
            window = choose_window(place, canvas, near, min_side, rng)
            image = crop_image(example.image, window, resolution)
            mask = np.zeros((resolution, resolution), bool)
            if example.mask is not None:
                mask = crop_mask(example.mask, window, resolution)
            views.append(View(*augment(image, mask, rng, changes), example.defect))
    return views


def default_augmentation(image: Image) -> AugmentOptions:
    """What views of an image are put through: no turn across the grain of a ground or brushed texture, for no image of
    the product has it there."""
    options = AugmentOptions()
    if has_texture_direction(image):
        return replace(options, rotate90=False, rotation=0.3 * options.rotation)
    return options


def encode_views(backbone: Backbone, views: Sequence[View], defects: Sequence[str]) -> LatentBank:
    """Encode views once (the VAE is frozen). A view whose defect is not among `defects` gets the index -1."""
    with torch.no_grad():
        latents = [
            backbone.encode(to_tensor([view.image for view in views[i : i + 16]])).cpu()
            for i in range(0, len(views), 16)
        ]
    numbers = [defects.index(view.defect) if view.defect in defects else -1 for view in views]
    return LatentBank(torch.cat(latents), latent_masks(backbone, [view.mask for view in views]), torch.tensor(numbers))


def latent_masks(backbone: Backbone, masks: Sequence[Mask]) -> Tensor:
    """Masks bool [H, W] of any size at the latents' size, float {0, 1} [B, 1, h, h], max-pooled, none is lost."""
    small = [downsample_mask(mask, backbone.latent_size, "max") for mask in masks]
    return torch.from_numpy(np.stack(small)).float()[:, None]


def to_tensor(images: Sequence[Image]) -> Tensor:
    """uint8 [R, R, 3] images to float [B, 3, R, R] in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images: Tensor) -> np.ndarray:
    """float [B, 3, R, R] in [-1, 1] to float [B, R, R, 3] in 0 to 255, not rounded."""
    return ((images.float() + 1) * 127.5).permute(0, 2, 3, 1).cpu().numpy()


def to_denoiser(backbone: Backbone, tensor: Tensor) -> Tensor:
    """The tensor where the denoiser is; floats in its number type."""
    parameter = next(backbone.denoiser.parameters())
    return tensor.to(parameter.device, parameter.dtype if tensor.is_floating_point() else tensor.dtype)


def prompt_words(name: str) -> str:
    """The name of a product or defect as words of a prompt."""
    return name.replace("_", " ").replace("-", " ")


def round_to_half(module: nn.Module) -> None:
    """Weights are saved in half precision; rounding them before makes save -> load change nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half().to(parameter.dtype))


def backbone_metadata(backbone: Backbone) -> dict[str, str]:
    """What a saved generator says of the backbone it was fitted on."""
    return {"name": backbone.name, "digest": backbone.digest}


def check_backbone(folder: Path, described: dict[str, Any], backbone: Backbone) -> None:
    """Refuse to load a generator onto another backbone than it was fitted on.

    Raises:
        InputError: other weights.
    """
    if described["backbone"]["digest"] != backbone.digest:
        raise InputError(
            f"{folder}: was fitted on backbone {described['backbone']['name']!r} with other weights; "
            f"expected those of {backbone.name!r}: run the finetune stage again"
        )


def check_on_product(request: SampleRequest) -> None:
    """Refuse a request whose mask lies beside the product (see `placement.foreground`).

    Raises:
        InputError: no pixel of the mask is on the product.
    """
    if not (request.mask & foreground(request.normal_image)).any():
        raise InputError(
            f"request {request.sample_id}: the mask lies outside the object; expected it to overlap the product "
            "on the normal image"
        )


def _anywhere(image: Image, side: int, rng: np.random.Generator) -> Mask:
    """A square of `side` at a random place, for the window of an image without a defect."""
    height, width = image.shape[:2]
    tall, wide = min(side, height), min(side, width)
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    place = np.zeros((height, width), bool)
    place[top : top + tall, left : left + wide] = True
    return place
