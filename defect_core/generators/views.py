"""Views of real examples for training, and conversions between images, tensors and prompts.

A *view* is a canvas (see `canvas.py`) at the backbone's resolution, with its mask.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from defect_core.backbones.load import Backbone
from defect_core.data.augment import AugmentOptions, augment_pair
from defect_core.data.foreground import has_texture_direction
from defect_core.data.masks import downsample_mask
from defect_core.errors import NonFiniteError
from defect_core.generators.base import Example, Image, Mask
from defect_core.generators.canvas import CanvasKind, choose_window, crop_image, crop_mask
from defect_core.generators.canvas_config import AugmentationConfig, CanvasConfig

# Each view multiplies `context` by a random factor in this range (not from a paper).
CONTEXT_JITTER = (0.8, 1.4)
# On a texture with a direction, the rotation is reduced to this fraction (not from a paper).
_DIRECTED_ROTATION = 0.3
_ENCODING_BATCH_SIZE = 16


class View(NamedTuple):
    """One augmented canvas of an example.

    Attributes:
        image: uint8 [R, R, 3].
        mask: bool [R, R]; all False for a normal image.
        defect: defect type of the example.
    """

    image: Image
    mask: Mask
    defect: str


@dataclass(frozen=True)
class LatentBank:
    """Encoded views, on the CPU.

    Attributes:
        latents: [N, C, h, h].
        masks: float [N, 1, h, h] in {0, 1}; max-pooled, so that no defect is lost.
        defects: int64 [N], indices into the list of defect types; -1 for a defect type outside the list.
    """

    latents: Tensor
    masks: Tensor
    defects: Tensor


class ViewBatch(NamedTuple):
    """A random batch of views.

    Attributes:
        latents: [B, C, h, h] on the CPU.
        masks: bool [B, 1, R, R].
        defects: B defect types.
    """

    latents: Tensor
    masks: Tensor
    defects: list[str]


class ViewSource:
    """Random batches of augmented views of examples.

    With `variants` views per example, all are encoded once and kept. Without, every batch consists of new views, as in
    the papers: each is augmented and encoded when it is needed, and nothing is kept.

    Args:
        backbone: gives the VAE.
        examples: real examples.
        config: settings of the views.
        rng: source of the kept views.
        variants: views per example in place of `config.variants`.
        canvases: kinds of canvas in place of `config.canvas`. Each example has `variants` views of each kind; new views
            have a random kind.
        render: what is encoded instead of a view's image.

    Attributes:
        latents: encoded views that are kept, [N, C, h, h]; None without.
        defects: defect types of the kept views, or of the examples.
    """

    def __init__(
        self,
        backbone: Backbone,
        examples: Sequence[Example],
        config: CanvasConfig,
        rng: np.random.Generator,
        variants: int | None = None,
        canvases: Sequence[CanvasKind] = (),
        render: Callable[[View], Image] | None = None,
    ) -> None:
        self._backbone, self._examples, self._render = backbone, list(examples), render or (lambda view: view.image)
        self._config, self._canvases = config, tuple(canvases) or (config.canvas,)
        self.latents: Tensor | None = None
        self.defects = [example.defect for example in self._examples]
        count = variants or config.variants
        if count is not None:
            self._views = [
                view for canvas in self._canvases for view in self._augment(self._examples, count, canvas, rng)
            ]
            self.defects = [view.defect for view in self._views]
            self.latents = encode_images(backbone, [self._render(view) for view in self._views])

    def batch(self, size: int, generator: torch.Generator) -> ViewBatch:
        """Return a random batch of `size` views."""
        if self.latents is not None:
            rows = torch.randint(len(self.latents), (size,), generator=generator)
            return self._as_batch(self.latents[rows], [self._views[int(row)] for row in rows])
        rows = torch.randint(len(self._examples), (size,), generator=generator)
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        chosen = [self._examples[int(row)] for row in rows]
        canvas = self._canvases[int(rng.integers(len(self._canvases)))]
        views = self._augment(chosen, 1, canvas, rng)
        return self._as_batch(encode_images(self._backbone, [self._render(view) for view in views]), views)

    def _augment(
        self, examples: Sequence[Example], count: int, canvas: CanvasKind, rng: np.random.Generator
    ) -> list[View]:
        config = self._config
        size = config.context, config.min_side, self._backbone.resolution
        return augment_examples(examples, count, canvas, *size, rng, config.augmentation)

    @staticmethod
    def _as_batch(latents: Tensor, views: Sequence[View]) -> ViewBatch:
        masks = torch.from_numpy(np.stack([view.mask for view in views]))[:, None]
        return ViewBatch(latents, masks, [view.defect for view in views])


def augment_examples(
    examples: Sequence[Example],
    variants: int,
    canvas: CanvasKind,
    context: float,
    min_side: int,
    resolution: int,
    rng: np.random.Generator,
    augmentation: AugmentationConfig | None = None,
) -> list[View]:
    """Return `variants` augmented views of every example; a defect is never lost.

    A normal image has no mask. Its local window is chosen around a square of `min_side` pixels at a random place.

    Args:
        examples: real examples.
        variants: views per example.
        canvas: `whole` or `local`.
        context: see `choose_window`; multiplied by a random factor.
        min_side: see `choose_window`.
        resolution: R, side of the views in pixels.
        rng: the only source of randomness.
        augmentation: random changes; None: those of `AugmentationConfig`.
    """
    views = []
    for example in examples:
        options = augment_options(augmentation or AugmentationConfig(), example.image)
        for _ in range(variants):
            view_context = max(1.0, context * rng.uniform(*CONTEXT_JITTER))
            target = example.mask if example.mask is not None else _random_square(example.image, min_side, rng)
            window = choose_window(target, canvas, view_context, min_side, rng)
            image = crop_image(example.image, window, resolution)
            mask = np.zeros((resolution, resolution), bool)
            if example.mask is not None:
                mask = crop_mask(example.mask, window, resolution)
            views.append(View(*augment_pair(image, mask, rng, options), example.defect))
    return views


def augment_options(config: AugmentationConfig, image: Image) -> AugmentOptions:
    """Return the augmentations for views of an image.

    Where the settings leave it open, a brushed or ground texture is not rotated across its direction, because no real
    image of the product shows that.
    """
    given = config.model_dump(exclude_none=True)
    if (config.rotate90 is None or config.rotation is None) and has_texture_direction(image):
        directed = {"rotate90": False, "rotation": _DIRECTED_ROTATION * AugmentOptions().rotation}
        return AugmentOptions(**{**directed, **given})
    return AugmentOptions(**given)


def encode_views(backbone: Backbone, views: Sequence[View], defects: Sequence[str]) -> LatentBank:
    """Return the latents of views, which are encoded once because the VAE is frozen.

    Args:
        backbone: gives the VAE.
        views: N views.
        defects: defect types, to which the indices of the bank refer.
    """
    latents = encode_images(backbone, [view.image for view in views])
    indices = [defects.index(view.defect) if view.defect in defects else -1 for view in views]
    return LatentBank(latents, latent_masks(backbone, [view.mask for view in views]), torch.tensor(indices))


def encode_images(backbone: Backbone, images: Sequence[Image]) -> Tensor:
    """Return the latents of images uint8 [R, R, 3] on the CPU: [N, C, h, h]."""
    size = _ENCODING_BATCH_SIZE
    with torch.no_grad():
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        return torch.cat([backbone.encode(to_tensor(batch)).cpu() for batch in batches])


def latent_masks(backbone: Backbone, masks: Sequence[Mask]) -> Tensor:
    """Return masks bool [H, W] of any size at the size of the latents: float [B, 1, h, h] in {0, 1}, max-pooled."""
    return max_pool_masks(masks, backbone.latent_size)


def max_pool_masks(masks: Sequence[Mask], side: int) -> Tensor:
    """Return masks bool [H, W] of any size as float [B, 1, side, side] in {0, 1}; one pixel is enough to set a cell."""
    small = [downsample_mask(mask, side, "max") for mask in masks]
    return torch.from_numpy(np.stack(small)).float()[:, None]


def to_tensor(images: Sequence[Image]) -> Tensor:
    """Return images uint8 [R, R, 3] as float [B, 3, R, R] in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images: Tensor) -> np.ndarray:
    """Return images float [B, 3, R, R] in [-1, 1] as float [B, R, R, 3] in 0 to 255, not rounded.

    Raises:
        NonFiniteError: a pixel is not finite.
    """
    pixels = ((images.float() + 1) * 127.5).permute(0, 2, 3, 1).cpu().numpy()
    if not np.isfinite(pixels).all():
        raise NonFiniteError(
            "generated image: a pixel is not finite; train the generator again with a lower learning rate, or set "
            "compute.dtype to fp32"
        )
    return pixels


def to_denoiser(backbone: Backbone, tensor: Tensor) -> Tensor:
    """Return the tensor on the denoiser's device; a floating-point tensor also gets its dtype."""
    parameter = next(backbone.denoiser.parameters())
    return tensor.to(parameter.device, parameter.dtype if tensor.is_floating_point() else tensor.dtype)


def prompt_words(name: str) -> str:
    """Return the name of a product or defect type in words, separated by spaces."""
    return name.replace("_", " ").replace("-", " ")


def _random_square(image: Image, side: int, rng: np.random.Generator) -> Mask:
    """Return a mask of a square at a random place, in place of the mask of a normal image."""
    height, width = image.shape[:2]
    square_height, square_width = min(side, height), min(side, width)
    top, left = int(rng.integers(height - square_height + 1)), int(rng.integers(width - square_width + 1))
    square = np.zeros((height, width), bool)
    square[top : top + square_height, left : left + square_width] = True
    return square
