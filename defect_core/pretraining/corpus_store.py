"""The drawn corpus in a work folder: tokenizer, pictures in shards, autoencoder; and batches of latents from it.

Pictures are drawn on all cores while the network already learns from the first of them: which ones a step can meet is a
function of the step, and a step whose shards are not drawn yet waits for them.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from defect_core.backbones.architecture import LATENT_CHANNELS, PATCH_SIZE, RESOLUTION, TEXT_LENGTH, save_network
from defect_core.backbones.tokenizer import INDUSTRIAL_WORDS, save_tokenizer, train_vocabulary
from defect_core.pretraining.corpus import Scene, draw, view, vocabulary_texts
from defect_core.pretraining.linear_vae import fit_vae
from defect_core.progress import track

SEED = 20
SCENES = 120_000  # each gives two pictures: the whole scene and a local view
SCENE_SIZES = (144, 176, 224)  # drawn larger than seen, so that edges are smooth
SHARD = 1000  # scenes
FIRST, GROWTH = 16, 150  # shards to begin with; steps after which one more is met
VAE_IMAGES = 4000
DIHEDRAL = 8


class Corpus:
    """Drawn pictures on one device, as many as are met so far.

    Args:
        work: the folder.
        scenes: how many there will be; of the drawn ones the first so many count.
        device: where they go.
        pending: shards that are still being drawn.
    """

    def __init__(
        self, work: Path, scenes: int, device: torch.device, pending: "dict[Path, Future[None]] | None" = None
    ) -> None:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        self.shards, self.pending, self.read = _shards(work, scenes), pending or {}, 0
        count = {"device": device, "dtype": torch.int16}
        self.images = torch.empty((2 * scenes, RESOLUTION, RESOLUTION, 3), dtype=torch.uint8, device=device)
        self.mask = torch.empty((2 * scenes, *2 * [RESOLUTION // PATCH_SIZE]), dtype=torch.bool, device=device)
        self.caption, self.normal_caption = (torch.empty((2 * scenes, TEXT_LENGTH), **count) for _ in range(2))
        vae = AutoencoderKL.from_pretrained(work / "vae", use_safetensors=True).eval()
        self.project, self.offset = (part.to(device) for part in _encoder_of(vae))

    def __len__(self) -> int:
        return 2 * self.shards[self.read - 1].end if self.read else 0

    def grow(self, step: int | None = None) -> None:
        """Take in what a step meets (None: all), waiting for what is not drawn yet."""
        met = len(self.shards) if step is None else min(len(self.shards), FIRST + step // GROWTH)
        for shard in self.shards[self.read : met]:
            if shard.path in self.pending:
                self.pending[shard.path].result()
            rows = slice(2 * shard.start, 2 * shard.end)
            for key, value in load_file(shard.path).items():
                getattr(self, key)[rows] = value.to(self.images.device)
            self.read += 1

    def latents(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [B, C, 16, 16] and masks, float [B, 1, 16, 16], of some rows [B].

        The batch is cut in eight parts, each turned and mirrored in its own way: every picture is met in all poses.
        """
        images = self.images[rows].permute(0, 3, 1, 2)
        mask = self.mask[rows][:, None]
        images, mask = (_turned(part) for part in (images, mask))
        return self.encode(images), mask.float()

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, 128, 128] to normalised latents."""
        folded = F.pixel_unshuffle(images.float() / 127.5 - 1, PATCH_SIZE)
        return torch.einsum("oi,bihw->bohw", self.project, folded) + self.offset[:, None, None]


@contextmanager
def prepared(work: Path, scenes: int) -> "Iterator[dict[Path, Future[None]]]":
    """Make tokenizer, pictures and autoencoder in the work folder, as far as they are not there yet; on all cores.

    Yields, once the autoencoder is there, the shards of pictures that are still being drawn. What is not drawn when the
    context is left is left out.
    """
    if not (work / "tokenizer").is_dir():
        vocabulary, merges = train_vocabulary([*vocabulary_texts(), INDUSTRIAL_WORDS], merges=4000)
        save_tokenizer(work / "tokenizer", vocabulary, merges, TEXT_LENGTH)
    (work / "corpus").mkdir(parents=True, exist_ok=True)
    wanted = _shards(work, scenes)
    missing = [shard for shard in wanted if not shard.path.is_file()]
    # fresh processes: a fork of one in which torch has started threads can hang
    workers = max(1, min(len(missing), os.cpu_count() or 1))
    pool = ProcessPoolExecutor(
        workers,
        get_context("spawn"),
        initializer=_stand_back,
    )
    try:
        pending = {shard.path: pool.submit(_draw_shard, shard) for shard in missing}
        first = wanted[: max(1, VAE_IMAGES // 2 // SHARD)]
        if not (work / "vae").is_dir():
            for shard in track(first, "drawing for the autoencoder"):
                if shard.path in pending:
                    pending[shard.path].result()
            images = np.concatenate([load_file(shard.path)["images"].numpy() for shard in first])[:VAE_IMAGES]
            save_network(fit_vae(images, LATENT_CHANNELS), work / "vae.new")
            os.replace(work / "vae.new", work / "vae")
        yield pending
    finally:
        pool.shutdown(cancel_futures=True)


def draw_views(index: int) -> tuple[Scene, Scene]:
    """The whole picture and a local view of one scene of the corpus."""
    rng = np.random.default_rng([SEED, index])
    scene = draw(rng, int(rng.choice(SCENE_SIZES)))
    return view(scene, rng, local=False), view(scene, rng, local=True)


@dataclass(frozen=True)
class _Shard:
    folder: Path
    start: int
    end: int

    @property
    def path(self) -> Path:
        return self.folder / f"{self.start:07d}-{self.end:07d}.safetensors"


@torch.no_grad()
def _encoder_of(vae: Any) -> tuple[Tensor, Tensor]:
    """Matrix [C, 192] and offset [C] of the encoder, which is linear in a patch, with the latents' normalisation."""
    probes = torch.cat([torch.zeros(1, 3 * PATCH_SIZE**2), torch.eye(3 * PATCH_SIZE**2)])
    seen = vae.encode(probes[..., None, None]).latent_dist.mean[..., 0, 0]
    means, deviations = (torch.tensor(vae.config[key]) for key in ("latents_mean", "latents_std"))
    return ((seen[1:] - seen[0]) / deviations).T.contiguous(), (seen[0] - means) / deviations


def _turned(batch: Tensor) -> Tensor:
    """Each eighth of a batch [B, C, S, S] by one of the eight symmetries of a square."""
    parts = batch.tensor_split(DIHEDRAL)
    turned = [part.rot90(number % 4, (2, 3)) for number, part in enumerate(parts)]
    return torch.cat([part.flip(3) if number >= 4 else part for number, part in enumerate(turned)])


def _shards(work: Path, scenes: int) -> list[_Shard]:
    ends = [min(start + SHARD, scenes) for start in range(0, scenes, SHARD)]
    return [_Shard(work / "corpus", SHARD * number, end) for number, end in enumerate(ends)]


def _stand_back() -> None:
    """One thread a process, and the training first."""
    torch.set_num_threads(1)
    os.nice(10)


def _draw_shard(shard: _Shard) -> None:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(shard.folder.parent / "tokenizer")
    views = [seen for index in range(shard.start, shard.end) for seen in draw_views(index)]
    masks = torch.from_numpy(np.stack([seen.mask for seen in views])).float()
    columns = {
        "images": torch.from_numpy(np.stack([seen.image for seen in views])),
        "mask": F.max_pool2d(masks[:, None], PATCH_SIZE)[:, 0].bool(),
        "caption": _tokens(tokenizer, (seen.caption for seen in views)),
        "normal_caption": _tokens(tokenizer, (seen.normal_caption for seen in views)),
    }
    fresh = shard.path.with_suffix(".new")
    save_file(columns, fresh)
    os.replace(fresh, shard.path)


def _tokens(tokenizer: Any, texts: Iterable[str]) -> Tensor:
    padded = {"padding": "max_length", "max_length": TEXT_LENGTH, "truncation": True, "return_tensors": "pt"}
    return tokenizer(list(texts), **padded).input_ids.short()
