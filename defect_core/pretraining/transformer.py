"""Make the embedded transformer: `python -m defect_core.pretraining.transformer --work DIR --steps N --export`.

It learns from the same corpus of latents as the embedded U-Net (`defect_core.pretraining.backbone`, whose work folder it
reads), with the losses and the dropped words of DefectDiffu itself, so that text layer, cross-attention and mask head
start trained. A killed run goes on from its last checkpoint.
"""

import argparse
import os
import shutil
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from defect_core.backbones.architecture import (
    LATENT_CHANNELS,
    PATCH_SIZE,
    RESOLUTION,
    SCHEDULE,
    alphas_cumprod,
    replace_folder,
)
from defect_core.generators.defectdiffu.ancestral import Chain, chain_of
from defect_core.generators.defectdiffu.folder import EMBEDDED_DIT, save_transformer
from defect_core.generators.defectdiffu.model import DefectDiT
from defect_core.generators.defectdiffu.text import GOOD, HASHED_WIDTH, HashedWords, encode_pairs
from defect_core.generators.defectdiffu.training import Weights, drop_words, total_loss
from defect_core.pretraining.corpus_store import Corpus, prepared
from defect_core.progress import track

SEED = 21
SCENES = 20_000
WIDTH, HEADS, DEPTH, PATCH = 192, 6, 12, 2
STEPS, DECAYED = 592, 700  # the learning rate falls as if to step 700
BATCH = 128
LEARNING_RATE = 6e-4
WARM_UP, DECAY_SHARE = 60, 0.35
EMA_DECAY = 0.999
DROP = 0.12
WEIGHTS = Weights(cap=25.0)
SAVE_EVERY_S = 180.0
CHECKPOINT = "dit_checkpoint.safetensors"
_PHRASES = ("a photo of ", "a close-up photo of ", "a close - up photo of ", "an image of ")
_INPUT_GAIN = 3.0


def main(arguments: list[str] | None = None) -> None:
    """Run what is not done yet; see `--help`."""
    parser = argparse.ArgumentParser(description="Pretrain the embedded transformer from nothing.")
    parser.add_argument("--work", type=Path, required=True, help="work folder of the backbone's pretraining")
    parser.add_argument("--steps", type=int, default=STEPS, help="train up to this step (0: no training)")
    parser.add_argument("--scenes", type=int, default=SCENES, help="scenes in the corpus, where it is not there yet")
    parser.add_argument("--export", action="store_true", help="write the averaged weights into the package")
    options = parser.parse_args(arguments)
    with prepared(options.work, options.scenes) as pending:
        if options.steps:
            train(options.work, options.scenes, options.steps, pending)
    if options.export:
        export(options.work, EMBEDDED_DIT)


def train(work: Path, scenes: int, steps: int, pending: dict[Path, Future[None]] | None = None) -> None:
    """Train up to a step, from the last checkpoint if there is one; every draw is a function of the step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus = Corpus(work, scenes, device, pending)
    corpus.grow()
    told, ends = read_pairs(work, corpus), ends_of(corpus)
    chain, encoder = chain_of(alphas_cumprod()), HashedWords()
    model = build().to(device).train()
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    start = _resume(work, model, average, optimiser)
    saved, losses = time.monotonic(), []
    for step in track(range(start, steps), "pretraining the transformer", total=steps - start):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * _rate(step, DECAYED if steps == STEPS else steps)
        loss = _loss(model, chain, encoder, corpus, told, ends, step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in model.named_parameters():
                average[name].lerp_(value, 1 - decay)
        losses.append(loss.detach())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {torch.stack(losses).mean():.4f}", flush=True)
            losses = []
        if step + 1 == steps or time.monotonic() - saved > SAVE_EVERY_S:
            _save(work, model, average, optimiser, step + 1)
            saved = time.monotonic()


def export(work: Path, folder: Path) -> None:
    """Write the averaged weights of the last checkpoint as a transformer's folder, in one rename."""
    with safe_open(work / CHECKPOINT, "pt") as stored:
        state = {
            key.removeprefix("average."): stored.get_tensor(key)
            for key in stored.keys()  # noqa: SIM118 - no mapping
            if key.startswith("average.")
        }
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    save_transformer(new, build(), state, {"_class_name": "DDIMScheduler", **SCHEDULE})
    if (folder / "MODEL_CARD.md").is_file():
        shutil.copy(folder / "MODEL_CARD.md", new)
    replace_folder(new, folder)


def build() -> DefectDiT:
    """The embedded architecture with its first weights: the same at every call.

    Patches go in and out by the same orthogonal directions, so that the transformer starts near the identity, which is
    the right answer at the noisy end; from zero it would have to learn that first.
    """
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        dit = DiTTransformer2DModel(
            num_attention_heads=HEADS,
            attention_head_dim=WIDTH // HEADS,
            in_channels=LATENT_CHANNELS,
            out_channels=2 * LATENT_CHANNELS,
            num_layers=DEPTH,
            sample_size=RESOLUTION // PATCH_SIZE,
            patch_size=PATCH,
            num_embeds_ada_norm=1,
        )
        for block in dit.transformer_blocks:  # adaLN-zero: every block starts as the identity
            nn.init.zeros_(block.norm1.linear.weight)
            nn.init.zeros_(block.norm1.linear.bias)
        model = DefectDiT(dit, HASHED_WIDTH)
        patch = PATCH**2 * LATENT_CHANNELS
        directions = nn.init.orthogonal_(torch.empty(WIDTH, patch))
        with torch.no_grad():
            seen = directions.reshape(WIDTH, PATCH, PATCH, LATENT_CHANNELS).permute(0, 3, 1, 2)
            dit.pos_embed.proj.weight.copy_(_INPUT_GAIN * seen)
            dit.pos_embed.proj.bias.zero_()
            spread = (_INPUT_GAIN**2 * patch / WIDTH + 0.5) ** 0.5  # of a token: the patch's share and the position's
            drawn = torch.zeros(PATCH, PATCH, 2 * LATENT_CHANNELS, WIDTH)
            drawn[:, :, :LATENT_CHANNELS] = directions.T.reshape(PATCH, PATCH, LATENT_CHANNELS, WIDTH)
            dit.proj_out_2.weight.copy_(drawn.reshape(-1, WIDTH) * spread / _INPUT_GAIN)
            for layer in (dit.proj_out_1.weight, dit.proj_out_1.bias, dit.proj_out_2.bias):
                layer.zero_()
    return model


def read_pairs(work: Path, corpus: Corpus) -> list[tuple[str, str]]:
    """Thing and defect ("good" for none) of every picture, from its captions' tokens."""
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    captions = torch.cat([corpus.normal_caption, corpus.caption], 1).cpu()
    unique, which = torch.unique(captions, dim=0, return_inverse=True)
    normal, told = unique.long().chunk(2, dim=1)
    texts = [[tokenizer.decode(row, skip_special_tokens=True) for row in rows] for rows in (normal, told)]
    names = [read_words(*pair) for pair in zip(*texts, strict=True)]
    return [names[index] for index in which.tolist()]


def ends_of(corpus: Corpus) -> Tensor:
    """The latents [2, C, 16, 16] of a black and of a white picture: what a mask's latents are made of."""
    plain = torch.tensor([0, 255], dtype=torch.uint8, device=corpus.images.device)
    return corpus.encode(plain[:, None, None, None].expand(-1, 3, RESOLUTION, RESOLUTION))


def read_words(normal_caption: str, caption: str) -> tuple[str, str]:
    """Thing and defect from a picture's two captions.

    >>> read_words("a photo of a gear", "a photo of a deep scratch on a gear")
    ('gear', 'deep scratch')
    >>> read_words("a gear", "a gear")
    ('gear', 'good')
    """
    thing, told = _bare(normal_caption), _bare(caption)
    if thing == told:
        return _article_off(thing), GOOD
    for join in (" on ", " in "):
        if told.endswith(join + thing):
            return _article_off(thing), _article_off(told.removesuffix(join + thing))
    return _article_off(thing), _article_off(told.removeprefix(thing + " with "))


def _bare(caption: str) -> str:
    for phrase in _PHRASES:
        caption = caption.removeprefix(phrase)
    return caption


def _article_off(text: str) -> str:
    return text.removeprefix("a ").removeprefix("an ")


def _loss(
    model: DefectDiT,
    chain: Chain,
    encoder: HashedWords,
    corpus: Corpus,
    told: list[tuple[str, str]],
    ends: Tensor,
    step: int,
) -> Tensor:
    device = corpus.images.device
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
    chosen = torch.randint(len(corpus), (BATCH,), generator=generator)
    times = torch.randint(chain.steps, (BATCH,), generator=generator)
    pairs = drop_words([told[index] for index in chosen.tolist()], DROP, DROP, generator)
    latents, masks = corpus.latents(chosen.to(device))
    noise = torch.randn(latents.shape, generator=torch.Generator(device).manual_seed(step), device=device)
    black, white = ends
    conditions = encode_pairs(encoder, pairs).to(latents)
    return total_loss(
        model, chain, latents, masks, black + (white - black) * masks, conditions, times.to(device), noise, WEIGHTS
    )


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP, max(0.02, (steps - step) / (DECAY_SHARE * steps)))


def _save(work: Path, model: nn.Module, average: dict[str, Tensor], optimiser: Any, step: int) -> None:
    tensors = {f"average.{name}": value for name, value in average.items()}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimiser.state[parameter][moment]
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    fresh = (work / CHECKPOINT).with_suffix(".new")
    save_file(tensors, fresh, metadata={"step": str(step)})
    os.replace(fresh, work / CHECKPOINT)


def _resume(work: Path, model: nn.Module, average: dict[str, Tensor], optimiser: Any) -> int:
    """Put the last checkpoint in place, if there is one; the step to go on from."""
    path = work / CHECKPOINT
    if not path.is_file():
        return 0
    device = next(model.parameters()).device
    with safe_open(path, framework="pt", device=str(device)) as stored, torch.no_grad():
        step = int(stored.metadata()["step"])
        for name, parameter in model.named_parameters():
            parameter.copy_(stored.get_tensor(f"model.{name}"))
            average[name] = stored.get_tensor(f"average.{name}")
            moments = {moment: stored.get_tensor(f"{moment}.{name}") for moment in ("exp_avg", "exp_avg_sq")}
            optimiser.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return step


if __name__ == "__main__":
    main()
