"""Make the embedded weights from nothing: `python -m defect_core.pretraining.backbone --work DIR --export`.

Stages, each kept in the work folder and not done twice: the tokenizer, the corpus of drawn pictures, the autoencoder,
and the joint training of denoiser and text encoder, which resumes from its last checkpoint. An accelerator is used if
there is one.
"""

import argparse
import itertools
import json
import shutil
import time
from concurrent.futures import Future
from pathlib import Path

import torch
from torch import Tensor, nn

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
from defect_core.backbones.load import EMBEDDED_FOLDER
from defect_core.backbones.tokenizer import END, START
from defect_core.pretraining.corpus_store import SCENES, SEED, Corpus, prepared
from defect_core.pretraining.identity_start import start_from_identity
from defect_core.pretraining.learner import Learner
from defect_core.progress import track

STEPS = 21_397
BATCH = 512
WARM_UP, DECAY_SHARE = 500, 0.35
EMPTY_CAPTION = 0.1
HOLE_SHARE, FOCUS_SHARE, GOOD_HOLE_SHARE = 0.3, 0.3, 0.15
SAVE_EVERY_S = 90.0
SHOW_EVERY = 50
TIMED = (150, 250)  # the steps that are timed where the training is to fit into a time


def main(arguments: list[str] | None = None) -> None:
    """Run the stages that are not done yet; see `--help`."""
    parser = argparse.ArgumentParser(description="Pretrain the embedded backbone from nothing.")
    parser.add_argument("--work", type=Path, required=True, help="folder for intermediate files and checkpoints")
    parser.add_argument("--steps", type=int, default=STEPS, help="train up to this step (0: no training)")
    parser.add_argument("--minutes", type=float, help="instead of --steps: as many as fit into this time")
    parser.add_argument("--scenes", type=int, default=SCENES, help="scenes in the corpus")
    parser.add_argument("--no-record", action="store_true", help="on an accelerator: call each kernel in each step")
    parser.add_argument("--export", action="store_true", help="write the averaged weights into the package")
    options = parser.parse_args(arguments)
    with prepared(options.work, options.scenes) as pending:
        if options.steps:
            train(options.work, options.scenes, options.steps, options.minutes, pending, record=not options.no_record)
        for drawn in pending.values() if not options.steps else ():
            drawn.result()
    if options.export:
        export(options.work, EMBEDDED_FOLDER)


def train(
    work: Path,
    scenes: int,
    steps: int,
    minutes: float | None = None,
    pending: dict[Path, Future[None]] | None = None,
    record: bool = True,
) -> None:
    """Train denoiser and text encoder up to a step, from the last checkpoint if there is one.

    The squared error of the predicted noise (Ho et al. 2020, eq. 14), weighted by 1 / alpha_bar, which makes it that of
    the velocity (Salimans and Ho 2022, section 4), on three kinds of sample: whole pictures; defects with the weight
    drawn to the mask; and *holes*, whose noisy latents are zero inside the mask and whose loss is taken outside it,
    under the normal caption (what disentangled DDIM inversion asks of a network). Constant learning rate after
    warm-up, linear decay over the last third. Every draw is a function of the step, so a resumed run equals an unbroken
    one.

    Args:
        work: where `prepared` has been.
        scenes: in the corpus.
        steps: the last step.
        minutes: take as many steps as fit into this time instead, judged by the time that the first ones take.
        pending: shards of the corpus that are still being drawn.
        record: see `Learner`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began = time.monotonic()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    corpus = Corpus(work, scenes, device, pending)
    torch.manual_seed(SEED)
    learner = Learner(_build(work), device, record)
    start = learner.resume(work)
    alpha_bar = alphas_cumprod().to(device)
    empty = _empty_caption(work).to(device)
    saved, losses, at = time.monotonic(), [], {}
    walk = itertools.count(start) if minutes else range(start, steps)
    for step in track(walk, "pretraining"):
        if minutes and step - start in TIMED:
            at[step - start] = _now(device)
            if len(at) == len(TIMED):
                pace = (at[TIMED[1]] - at[TIMED[0]]) / (TIMED[1] - TIMED[0])
                steps = step + 1 + int((60 * minutes - (at[TIMED[1]] - began)) / pace)
                print(f"{1000 * pace:.1f} ms a step: {steps} steps fit into {minutes:g} minutes", flush=True)
        corpus.grow(step)
        batch = _draw_batch(corpus, empty, alpha_bar, step)
        losses.append(learner.step(batch, step, _rate(step, steps)))
        if (step + 1) % SHOW_EVERY == 0:
            print(f"step {step + 1}: loss {torch.stack(losses).mean():.4f}", flush=True)
            losses = []
        done = step + 1 >= steps and not (minutes and len(at) < len(TIMED))
        if done or time.monotonic() - saved > SAVE_EVERY_S:
            learner.save(work, step + 1)
            saved = time.monotonic()
        if done:
            break


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


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


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
    """Share of the learning rates: warm-up, then constant with a linear decay to the end."""
    return min(1.0, (step + 1) / WARM_UP, max(0.02, (steps - step) / (DECAY_SHARE * steps)))


def _draw_batch(corpus: Corpus, empty: Tensor, alpha_bar: Tensor, step: int) -> dict[str, Tensor]:
    """One batch, a function of the step: noisy latents, tokens, times, noise, and the weight of every latent value."""
    device = empty.device
    generator = torch.Generator(device).manual_seed(SEED * 1_000_003 + step)
    options = {"generator": generator, "device": device}
    chosen = torch.randint(len(corpus), (BATCH,), **options)
    times = torch.randint(len(alpha_bar), (BATCH,), **options)
    clean, mask = corpus.latents(chosen)
    noise = torch.randn(clean.shape, **options)
    lot, drop = torch.rand(2, BATCH, **options)
    defective = mask.flatten(1).any(1)
    hole = torch.where(defective, lot < HOLE_SHARE, lot < GOOD_HOLE_SHARE)
    focus = defective & (lot >= HOLE_SHARE) & (lot < HOLE_SHARE + FOCUS_SHARE)
    # a good picture borrows its hole from the next one of the batch
    hollow = torch.where(defective[:, None, None, None], mask, mask.roll(1, 0)) * hole[:, None, None, None]
    level = alpha_bar[times][:, None, None, None]
    noisy = (level.sqrt() * clean + (1 - level).sqrt() * noise) * (1 - hollow)
    share = mask.mean((1, 2, 3), keepdim=True).clamp(min=0.05)
    weight = torch.where(focus[:, None, None, None], 0.3 + 0.7 * mask / share, 1 - hollow)
    # velocity's error: the noise's alone would leave the noisy end, and so all layout, untaught
    weight = weight / level
    tokens = torch.where(hole[:, None], corpus.normal_caption[chosen], corpus.caption[chosen]).long()
    tokens = torch.where((drop < EMPTY_CAPTION)[:, None], empty, tokens)
    return {"noisy": noisy, "noise": noise, "times": times, "tokens": tokens, "weight": weight}


if __name__ == "__main__":
    main()
