"""Training data: encoded views of the examples in files, and the text embeddings of all conditions."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from defect_core.backbones.load import Backbone
from defect_core.data.records import GOOD
from defect_core.generators.base import Example
from defect_core.generators.defectdiffu.config import DefectDiffuConfig
from defect_core.generators.defectdiffu.text import NULL, ConditionNames, Conditions, TextEncoder, encode_conditions
from defect_core.generators.views import View, augment_examples, encode_images, max_pool_masks

ENCODING_BATCH_SIZE = 16


class ViewBank(NamedTuple):
    """Encoded views on the CPU.

    Attributes:
        latents: latents of the images, [N, C, h, w].
        masks: {0, 1}, float [N, 1, h, w], max-pooled so that no defect is lost.
        mask_latents: latents of the mask images, [N, C, h, w].
        names: product and defect name of each view.
    """

    latents: Tensor
    masks: Tensor
    mask_latents: Tensor
    names: list[ConditionNames]

    def choose(self, count: int, defect_fraction: float, generator: torch.Generator) -> Tensor:
        """Return the rows of a batch, int64 [count]; products and defects are chosen uniformly.

        Args:
            count: number of rows.
            defect_fraction: probability of a defect view.
            generator: source of randomness; 3 · count numbers are used.
        """
        rows_by_name: dict[ConditionNames, list[int]] = {}
        for row, name in enumerate(self.names):
            rows_by_name.setdefault(name, []).append(row)
        normal, defective = (
            [rows for name, rows in rows_by_name.items() if (name[1] == GOOD) == is_normal]
            for is_normal in (True, False)
        )
        chosen = []
        for kind, group, row in torch.rand((count, 3), generator=generator, dtype=torch.float64).tolist():
            preferred, other = (defective, normal) if kind < defect_fraction else (normal, defective)
            groups = preferred or other
            rows = groups[int(group * len(groups))]
            chosen.append(rows[int(row * len(rows))])
        return torch.tensor(chosen)


class ConditionTable(NamedTuple):
    """Text embeddings of all products and defects.

    Attributes:
        rows: row of each pair of names.
        conditions: text embeddings, [N, W].
    """

    rows: dict[ConditionNames, int]
    conditions: Conditions

    def lookup(self, names: Sequence[ConditionNames]) -> Conditions:
        """Return the text embeddings of the names, [B, W]."""
        rows = [self.rows[name] for name in names]
        return Conditions(*(embeddings[rows] for embeddings in self.conditions))


def encode_bank(
    backbone: Backbone,
    config: DefectDiffuConfig,
    examples: Sequence[Example],
    resolution: int,
    latent_size: int,
    seed: int,
    folder: Path | None = None,
) -> ViewBank:
    """Return the encoded augmented views of the examples. Only one batch of images is in memory at a time.

    Args:
        backbone: gives the VAE.
        config: settings of the views.
        examples: defective and normal examples of all products.
        resolution: side of a view in pixels.
        latent_size: side of its latents.
        seed: the only source of randomness.
        folder: the encoded views are in files there, 8 bytes per latent value and view; None keeps them in memory.
    """
    rng = np.random.default_rng(seed)
    counts = [config.normal_variants if example.mask is None else config.encoded_variants for example in examples]
    total, channels = sum(counts), backbone.latent_channels
    names = [
        (example.product, GOOD if example.mask is None else example.defect)
        for example, count in zip(examples, counts, strict=True)
        for _ in range(count)
    ]

    def make_views() -> Iterator[View]:
        for example, count in zip(examples, counts, strict=True):
            yield from augment_examples(
                [example], count, config.canvas, config.context, config.min_side, resolution, rng
            )

    bank = ViewBank(
        _create_tensor(folder, "latents", (total, channels, latent_size, latent_size)),
        _create_tensor(folder, "masks", (total, 1, latent_size, latent_size)),
        _create_tensor(folder, "mask_latents", (total, channels, latent_size, latent_size)),
        names,
    )
    views = make_views()
    for start in range(0, total, ENCODING_BATCH_SIZE):
        batch = list(islice(views, ENCODING_BATCH_SIZE))
        rows = slice(start, start + len(batch))
        mask_images = [np.repeat(view.mask[..., None], 3, -1).astype(np.uint8) * 255 for view in batch]
        bank.latents[rows] = encode_images(backbone, [view.image for view in batch]).float()
        bank.masks[rows] = max_pool_masks([view.mask for view in batch], latent_size)
        bank.mask_latents[rows] = encode_images(backbone, mask_images).float()
    return bank


def _create_tensor(folder: Path | None, name: str, shape: tuple[int, int, int, int]) -> Tensor:
    """Return an uninitialised float32 tensor in memory, or in a file that the system reads as needed.

    It has the memory layout of the VAE's outputs (channels last), which decides the rounding of the first layer.
    """
    if folder is None:
        return torch.empty(shape, memory_format=torch.channels_last)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.bin"
    path.unlink(missing_ok=True)
    flat = torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=torch.float32)
    count, channels, height, width = shape
    return flat.view(count, height, width, channels).permute(0, 3, 1, 2)


def encode_condition_table(encoder: TextEncoder, products: Sequence[str], defects: Sequence[str]) -> ConditionTable:
    """Return the text embeddings of all conditions that training needs, with null products and normal images."""
    names = [(product, defect) for product in (NULL, *products) for defect in (GOOD, *defects)]
    return ConditionTable({name: row for row, name in enumerate(names)}, encode_conditions(encoder, names))
