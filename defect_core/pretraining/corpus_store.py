"""The corpus of rendered images in a work folder, and batches of latents from it.

Worker processes render the images on all cores while the training already uses the first shards. The shards that a step
may use are a function of the step. A step whose shards are not rendered yet waits for them.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from defect_core.backbones.save import save_network
from defect_core.data.files import atomic_path
from defect_core.pretraining.architecture import LATENT_CHANNELS, PATCH_SIZE, RESOLUTION, TEXT_LENGTH
from defect_core.pretraining.corpus.scene import Scene, crop_view, render_scene, vocabulary_texts
from defect_core.pretraining.linear_vae import fit_linear_vae
from defect_core.pretraining.tokenizer import INDUSTRIAL_WORDS, save_tokenizer, train_vocabulary
from defect_core.progress import track

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

SEED = 20
SCENES = 120_000  # each gives two images: the whole scene and a local view
SCENE_SIZES = (144, 176, 224)  # larger than the resolution, so that edges are anti-aliased
SCENES_PER_SHARD = 1000
INITIAL_SHARDS, STEPS_PER_SHARD = 16, 150  # shards in use at step 0; steps after which one more is used
VAE_IMAGES = 4000
MERGES = 4000
DIHEDRAL_SYMMETRIES = 8


class Corpus:
    """Rendered images on one device, loaded shard by shard.

    Args:
        work: the work folder, prepared by `prepare_corpus`.
        scenes: number of scenes; the first ones of the work folder.
        device: where the images are stored and encoded.
        pending: the shards that are still being rendered, by file.

    Attributes:
        images: uint8 [2 scenes, R, R, 3]; rows beyond `len(self)` are not loaded yet.
        mask: bool [2 scenes, R/8, R/8], the latent positions with a defect.
        caption: int16 [2 scenes, T], tokens of the caption.
        normal_caption: int16 [2 scenes, T], tokens of the caption without the defect.
    """

    def __init__(
        self, work: Path, scenes: int, device: torch.device, pending: "dict[Path, Future[None]] | None" = None
    ) -> None:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        self.shards, self.pending, self.loaded_shards = _shards(work, scenes), pending or {}, 0
        side, tokens = RESOLUTION // PATCH_SIZE, {"device": device, "dtype": torch.int16}
        self.images = torch.empty((2 * scenes, RESOLUTION, RESOLUTION, 3), dtype=torch.uint8, device=device)
        self.mask = torch.empty((2 * scenes, side, side), dtype=torch.bool, device=device)
        self.caption = torch.empty((2 * scenes, TEXT_LENGTH), **tokens)
        self.normal_caption = torch.empty((2 * scenes, TEXT_LENGTH), **tokens)
        vae = AutoencoderKL.from_pretrained(work / "vae", use_safetensors=True).eval()
        self._projection, self._offset = (part.to(device) for part in _linear_encoder(vae))

    def __len__(self) -> int:
        return 2 * self.shards[self.loaded_shards - 1].end if self.loaded_shards else 0

    def load_shards(self, step: int | None = None) -> None:
        """Load the shards that a training step uses, and wait for those that are not rendered yet.

        Args:
            step: number of the step; None loads all shards.
        """
        used = INITIAL_SHARDS + step // STEPS_PER_SHARD if step is not None else len(self.shards)
        for shard in self.shards[self.loaded_shards : used]:
            if shard.path in self.pending:
                self.pending[shard.path].result()
            rows = slice(2 * shard.start, 2 * shard.end)
            for key, value in load_file(shard.path).items():
                getattr(self, key)[rows] = value.to(self.images.device)
            self.loaded_shards += 1

    def latents(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised latents [B, C, 16, 16] and masks, float [B, 1, 16, 16], of the images `rows` [B].

        Each eighth of the batch is transformed by another of the eight symmetries of a square, so that the training
        sees every image in all poses.
        """
        images = self.images[rows].permute(0, 3, 1, 2)
        mask = self.mask[rows][:, None]
        images, mask = (_apply_symmetries(part) for part in (images, mask))
        return self.encode(images), mask.float()

    def encode(self, images: Tensor) -> Tensor:
        """Return the normalised latents [B, C, 16, 16] of uint8 images [B, 3, 128, 128]."""
        folded = F.pixel_unshuffle(images.float() / 127.5 - 1, PATCH_SIZE)
        return torch.einsum("oi,bihw->bohw", self._projection, folded) + self._offset[:, None, None]


@contextmanager
def prepare_corpus(work: Path, scenes: int) -> "Iterator[dict[Path, Future[None]]]":
    """Create what is missing of tokenizer, autoencoder and shards in a work folder; yield the shards in progress.

    The tokenizer and the autoencoder are complete when the block starts. The yielded dict maps the file of a shard to
    its rendering job. Jobs that have not started when the block ends are cancelled.
    """
    if not (work / "tokenizer").is_dir():
        vocabulary, merges = train_vocabulary([*vocabulary_texts(), INDUSTRIAL_WORDS], MERGES)
        save_tokenizer(work / "tokenizer", vocabulary, merges, TEXT_LENGTH)
    (work / "corpus").mkdir(parents=True, exist_ok=True)
    shards = _shards(work, scenes)
    missing = [shard for shard in shards if not shard.path.is_file()]
    workers = max(1, min(len(missing), os.cpu_count() or 1))
    # A process forked after torch has started its threads can hang, so workers are spawned.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_initialise_worker)
    try:
        pending = {shard.path: pool.submit(_render_shard, shard) for shard in missing}
        if not (work / "vae").is_dir():
            first = shards[: max(1, VAE_IMAGES // 2 // SCENES_PER_SHARD)]
            for shard in track(first, "rendering images for the autoencoder"):
                if shard.path in pending:
                    pending[shard.path].result()
            images = np.concatenate([load_file(shard.path)["images"].numpy() for shard in first])[:VAE_IMAGES]
            with atomic_path(work / "vae") as temporary:
                save_network(fit_linear_vae(images, LATENT_CHANNELS), temporary)
        yield pending
    finally:
        pool.shutdown(cancel_futures=True)


def render_views(index: int) -> tuple[Scene, Scene]:
    """Return the whole image and a local view of scene `index` of the corpus."""
    rng = np.random.default_rng([SEED, index])
    scene = render_scene(rng, int(rng.choice(SCENE_SIZES)))
    return crop_view(scene, rng, local=False), crop_view(scene, rng, local=True)


@dataclass(frozen=True)
class _Shard:
    """Scenes `start` to `end` (exclusive) of the corpus, stored in one file of `folder`."""

    folder: Path
    start: int
    end: int

    @property
    def path(self) -> Path:
        return self.folder / f"{self.start:07d}-{self.end:07d}.safetensors"


@torch.no_grad()
def _linear_encoder(vae: Any) -> tuple[Tensor, Tensor]:
    """Return the encoder as a matrix [C, 192] and an offset [C], including the normalisation of the latents.

    The encoder is an affine function of each patch. The zero patch and the unit patches determine it.
    """
    probes = torch.cat([torch.zeros(1, 3 * PATCH_SIZE**2), torch.eye(3 * PATCH_SIZE**2)])
    outputs = vae.encode(probes[..., None, None]).latent_dist.mean[..., 0, 0]
    means, deviations = (torch.tensor(vae.config[key]) for key in ("latents_mean", "latents_std"))
    return ((outputs[1:] - outputs[0]) / deviations).T.contiguous(), (outputs[0] - means) / deviations


def _apply_symmetries(batch: Tensor) -> Tensor:
    """Apply one of the eight symmetries of a square to each eighth of a batch [B, C, S, S]."""
    parts = batch.tensor_split(DIHEDRAL_SYMMETRIES)
    rotated = [part.rot90(index % 4, (2, 3)) for index, part in enumerate(parts)]
    return torch.cat([part.flip(3) if index >= 4 else part for index, part in enumerate(rotated)])


def _shards(work: Path, scenes: int) -> list[_Shard]:
    starts = range(0, scenes, SCENES_PER_SHARD)
    return [_Shard(work / "corpus", start, min(start + SCENES_PER_SHARD, scenes)) for start in starts]


def _initialise_worker() -> None:
    """Use one thread per process, and give the training process priority."""
    torch.set_num_threads(1)
    os.nice(10)


def _render_shard(shard: _Shard) -> None:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(shard.folder.parent / "tokenizer")
    views = [view for index in range(shard.start, shard.end) for view in render_views(index)]
    masks = torch.from_numpy(np.stack([view.mask for view in views])).float()
    columns = {
        "images": torch.from_numpy(np.stack([view.image for view in views])),
        "mask": F.max_pool2d(masks[:, None], PATCH_SIZE)[:, 0].bool(),
        "caption": _tokenize(tokenizer, (view.caption for view in views)),
        "normal_caption": _tokenize(tokenizer, (view.normal_caption for view in views)),
    }
    with atomic_path(shard.path) as temporary:
        save_file(columns, temporary)


def _tokenize(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str]) -> Tensor:
    tokens = tokenizer(list(texts), padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    return tokens.input_ids.short()
