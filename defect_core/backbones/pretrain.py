"""Make the embedded weights from nothing: `python -m defect_core.backbones.pretrain --work DIR --export`.

Stages, each kept in the work folder and not done twice: the tokenizer, the autoencoder, the corpus as latents, and the
joint training of denoiser and text encoder, which resumes from its last checkpoint.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from defect_core.backbones.architecture import (
    LATENT_CHANNELS,
    PATCH_SIZE,
    RESOLUTION,
    TEXT_LENGTH,
    alphas_cumprod,
    build_denoiser,
    build_text_encoder,
    replace_folder,
    save_network,
    save_schedule,
    write_json,
)
from defect_core.backbones.corpus import draw, view, vocabulary_texts
from defect_core.backbones.identity_start import start_from_identity
from defect_core.backbones.linear_vae import fit_vae, fold
from defect_core.backbones.load import EMBEDDED_FOLDER
from defect_core.backbones.tokenizer import END, INDUSTRIAL_WORDS, START, save_tokenizer, train_vocabulary
from defect_core.progress import track

SEED = 20
SCENES = 24000  # each gives two pictures: the whole scene and a local view
SCENE_SIZES = (128, 160, 208)
VAE_IMAGES = 4000
STEPS = 8000
BATCH = 16
LEARNING_RATE = 4e-4
WARM_UP, DECAY_SHARE = 150, 0.35
EMA_DECAY = 0.999
EMPTY_CAPTION = 0.1
HOLE_SHARE, FOCUS_SHARE, GOOD_HOLE_SHARE = 0.3, 0.3, 0.15
SAVE_EVERY_S = 180.0


def main(arguments: list[str] | None = None) -> None:
    """Run the stages that are not done yet; see `--help`."""
    parser = argparse.ArgumentParser(description="Pretrain the embedded backbone from nothing.")
    parser.add_argument("--work", type=Path, required=True, help="folder for intermediate files and checkpoints")
    parser.add_argument("--steps", type=int, default=STEPS, help="train up to this step (0: no training)")
    parser.add_argument("--scenes", type=int, default=SCENES, help="scenes in the corpus")
    parser.add_argument("--export", action="store_true", help="write the averaged weights into the package")
    options = parser.parse_args(arguments)
    prepare(options.work, options.scenes)
    if options.steps:
        train(options.work, options.steps)
    if options.export:
        export(options.work, EMBEDDED_FOLDER)


def prepare(work: Path, scenes: int) -> None:
    """Make tokenizer, autoencoder and corpus of latents in the work folder, unless they are there."""
    if (work / "corpus.safetensors").is_file():
        return
    from safetensors.torch import save_file
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    vocabulary, merges = train_vocabulary([*vocabulary_texts(), INDUSTRIAL_WORDS], merges=4000)
    save_tokenizer(work / "tokenizer", vocabulary, merges, TEXT_LENGTH)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    first = [_draw_views(index) for index in track(range(min(scenes, VAE_IMAGES // 2)), "drawing for the autoencoder")]
    vae = fit_vae(np.stack([seen.image for pair in first for seen in pair]), LATENT_CHANNELS)
    save_network(vae, work / "vae")
    columns: dict[str, list[Tensor]] = {"latents": [], "mask": [], "caption": [], "normal_caption": []}
    for index in track(range(scenes), "drawing the corpus"):
        views = _draw_views(index)
        with torch.inference_mode():
            mean = vae.encode(fold(np.stack([seen.image for seen in views]))).latent_dist.mean
        masks = torch.from_numpy(np.stack([seen.mask for seen in views]))[:, None].float()
        columns["latents"].append(_normalise(vae, mean).half())
        columns["mask"].append(F.max_pool2d(masks, PATCH_SIZE).bool())
        for key in ("caption", "normal_caption"):
            texts = [getattr(seen, key) for seen in views]
            tokens = tokenizer(
                texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
            )
            columns[key].append(tokens.input_ids.short())
    save_file({key: torch.cat(parts).contiguous() for key, parts in columns.items()}, work / "corpus.tmp")
    os.replace(work / "corpus.tmp", work / "corpus.safetensors")


def train(work: Path, steps: int) -> None:
    """Train denoiser and text encoder up to a step, from the last checkpoint if there is one.

    The squared error of the predicted noise (Ho et al. 2020, eq. 14), weighted by 1 / alpha_bar, which makes it that of
    the velocity (Salimans and Ho 2022, section 4), on three kinds of sample: whole pictures; defects with the weight
    drawn to the mask; and *holes*, whose noisy latents are zero inside the mask and whose loss is taken outside it,
    under the normal caption (what disentangled DDIM inversion asks of a network). Constant learning rate after
    warm-up, linear decay over the last third. Every draw is a function of the step, so a resumed run equals an
    unbroken one.
    """
    from safetensors.torch import load_file

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus = {key: value.to(device) for key, value in load_file(work / "corpus.safetensors").items()}
    torch.manual_seed(SEED)
    model = _build(work).to(device).train()
    average = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    start = _resume(work, model, average, optimizer)
    alpha_bar = alphas_cumprod().to(device)
    empty = _empty_caption(work).to(device)
    saved, losses = time.monotonic(), []
    for step in track(range(start, steps), "pretraining", total=steps - start):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _rate(step, steps)
        batch = _draw_batch(corpus, empty, alpha_bar, step)
        with _fast(device):
            states = model["text_encoder"](input_ids=batch["tokens"]).last_hidden_state
            noise = model["denoiser"](batch["noisy"], batch["times"], states).sample
        loss = (batch["weight"] * (noise.float() - batch["noise"]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value, 1 - decay)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {np.mean(losses[-50:]):.4f}", flush=True)
        if step + 1 == steps or time.monotonic() - saved > SAVE_EVERY_S:
            _save(work, model, average, optimizer, step + 1)
            saved = time.monotonic()


def export(work: Path, folder: Path) -> None:
    """Write the averaged weights of the last checkpoint as a backbone folder, in one rename."""
    from safetensors.torch import load_file

    average = load_file(work / "checkpoint.safetensors")
    model = _build(work)
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    for part, target in (("denoiser", "unet"), ("text_encoder", "text_encoder")):
        prefix = f"average.{part}."
        state = {key.removeprefix(prefix): value for key, value in average.items() if key.startswith(prefix)}
        save_network(model[part], new / target, state)
    for part in ("vae", "tokenizer"):
        shutil.copytree(work / part, new / part)
    save_schedule(new)
    write_json(new / "defectory.json", {"patch_size": PATCH_SIZE, "resolution": RESOLUTION})
    if (folder / "MODEL_CARD.md").is_file():
        shutil.copy(folder / "MODEL_CARD.md", new)
    replace_folder(new, folder)


def _draw_views(index: int) -> tuple[Any, Any]:
    """The whole picture and a local view of one scene of the corpus."""
    rng = np.random.default_rng([SEED, index])
    scene = draw(rng, int(rng.choice(SCENE_SIZES)))
    return view(scene, rng, local=False), view(scene, rng, local=True)


def _normalise(vae: Any, mean: Tensor) -> Tensor:
    shape = (1, -1, 1, 1)
    means, deviations = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    return (mean - means.reshape(shape)) / deviations.reshape(shape)


@contextmanager
def _fast(device: torch.device) -> Iterator[None]:
    """bfloat16 arithmetic under float32 weights: 1.7 times as fast on a CPU, if attention is written out.

    (The CPU's fused attention runs backwards slowly in bfloat16, and these pictures have 64 positions only.)
    """
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16))
        if device.type == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _build(work: Path) -> nn.ModuleDict:
    vocabulary = json.loads((work / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    text_encoder = build_text_encoder(vocabulary, START, END)
    denoiser = build_denoiser(LATENT_CHANNELS)
    start_from_identity(denoiser)
    return nn.ModuleDict({"denoiser": denoiser, "text_encoder": text_encoder})


def _empty_caption(work: Path) -> Tensor:
    vocabulary = json.loads((work / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    return torch.tensor([vocabulary[START], *[vocabulary[END]] * (TEXT_LENGTH - 1)])


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP, max(0.02, (steps - step) / (DECAY_SHARE * steps)))


def _draw_batch(corpus: dict[str, Tensor], empty: Tensor, alpha_bar: Tensor, step: int) -> dict[str, Tensor]:
    """One batch, a function of the step: noisy latents, tokens, times, noise, and the weight of every latent value."""
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
    device = empty.device
    chosen = torch.randint(len(corpus["latents"]), (BATCH,), generator=generator).to(device)
    times = torch.randint(len(alpha_bar), (BATCH,), generator=generator).to(device)
    clean = corpus["latents"][chosen].float()
    noise = torch.randn(clean.shape, generator=generator).to(device)
    lot, drop = torch.rand(2, BATCH, generator=generator).to(device)
    mask = corpus["mask"][chosen].float()
    defective = mask.flatten(1).any(1)
    hole = torch.where(defective, lot < HOLE_SHARE, lot < GOOD_HOLE_SHARE)
    focus = defective & (lot >= HOLE_SHARE) & (lot < HOLE_SHARE + FOCUS_SHARE)
    # a good picture borrows its hole from the next one of the batch
    hollow = torch.where(defective[:, None, None, None], mask, mask.roll(1, 0)) * hole[:, None, None, None]
    level = alpha_bar[times][:, None, None, None]
    noisy = (level.sqrt() * clean + (1 - level).sqrt() * noise) * (1 - hollow)
    share = mask.mean((1, 2, 3), keepdim=True).clamp(min=0.05)
    weight = torch.where(focus[:, None, None, None], 0.3 + 0.7 * mask / share, 1 - hollow)
    weight = (
        weight / level
    )  # velocity's error: the noise's alone would leave the noisy end, and so all layout, untaught
    tokens = torch.where(hole[:, None], corpus["normal_caption"][chosen], corpus["caption"][chosen]).long()
    tokens = torch.where((drop < EMPTY_CAPTION)[:, None], empty, tokens)
    return {"noisy": noisy, "noise": noise, "times": times, "tokens": tokens, "weight": weight}


def _save(
    work: Path, model: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer, step: int
) -> None:
    from safetensors.torch import save_file

    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.items()}
    for name, parameter in model.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(tensors, work / "checkpoint.tmp", metadata={"step": str(step)})
    os.replace(work / "checkpoint.tmp", work / "checkpoint.safetensors")
    write_json(work / "checkpoint.json", {"step": step})


def _resume(work: Path, model: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Put the last checkpoint in place, if there is one; the step to go on from."""
    from safetensors import safe_open

    path = work / "checkpoint.safetensors"
    if not path.is_file():
        return 0
    with safe_open(path, framework="pt", device=str(next(model.parameters()).device)) as stored:
        step = int(stored.metadata()["step"])
        model.load_state_dict({name: stored.get_tensor(f"model.{name}") for name in model.state_dict()})
        for name in average:
            average[name] = stored.get_tensor(f"average.{name}")
        for name, parameter in model.named_parameters():
            moments = {moment: stored.get_tensor(f"{moment}.{name}") for moment in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return step


if __name__ == "__main__":
    main()
