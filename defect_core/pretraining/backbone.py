"""Train the embedded backbone: `python -m defect_core.pretraining.backbone --work DIR --export`.

The stages are the tokenizer, the corpus of rendered images, the autoencoder, and the joint training of denoiser and
text encoder. The work folder keeps the result of each, and a second run does not repeat it. The training resumes from
its last checkpoint. A GPU is used if one is available.
"""

import argparse
import itertools
import json
import logging
import shutil
import time
from concurrent.futures import Future
from pathlib import Path

import torch
from torch import Tensor, nn

from defect_core.backbones.load import EMBEDDED_FOLDER
from defect_core.backbones.save import save_network
from defect_core.data.files import write_json
from defect_core.pretraining.architecture import (
    LATENT_CHANNELS,
    PATCH_SIZE,
    RESOLUTION,
    TEXT_LENGTH,
    alphas_cumprod,
    build_denoiser,
    build_text_encoder,
    save_scheduler,
)
from defect_core.pretraining.corpus_store import SCENES, SEED, Corpus, prepare_corpus
from defect_core.pretraining.identity_init import initialise_as_identity
from defect_core.pretraining.learner import CHECKPOINT, Learner, rate_factor
from defect_core.pretraining.package import rewrite_folder
from defect_core.pretraining.tokenizer import END_TOKEN, START_TOKEN
from defect_core.progress import track

logger = logging.getLogger(__name__)

STEPS = 21_397
BATCH_SIZE = 512
WARM_UP_STEPS, DECAY_FRACTION = 500, 0.35
EMPTY_CAPTION_PROBABILITY = 0.1
HOLE_FRACTION, FOCUS_FRACTION = 0.3, 0.3  # of the images with a defect
NORMAL_HOLE_FRACTION = 0.15  # of the normal images
FOCUS_BASE_WEIGHT, MIN_MASK_FRACTION = 0.3, 0.05  # loss weight outside the mask; bound of the weight inside
CHECKPOINT_EVERY_S = 90.0
LOG_EVERY = 50
TIMED_STEPS = (150, 250)  # the interval whose duration gives the number of steps for `--minutes`
SEED_FACTOR = 1_000_003  # a large prime: runs with neighbouring seeds share no step seed


def main(arguments: list[str] | None = None) -> None:
    """Run the stages that are not complete yet; see `--help`."""
    parser = argparse.ArgumentParser(description="Train the embedded backbone on a corpus of rendered images.")
    parser.add_argument("--work", type=Path, required=True, help="folder for intermediate files and checkpoints")
    parser.add_argument("--steps", type=int, default=STEPS, help="last training step (0: no training)")
    parser.add_argument("--minutes", type=float, help="train for this time instead of --steps")
    parser.add_argument("--scenes", type=int, default=SCENES, help="number of scenes in the corpus")
    parser.add_argument("--no-cuda-graph", action="store_true", help="on a GPU: launch the kernels one by one")
    parser.add_argument("--export", action="store_true", help="write the averaged weights into the package")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with prepare_corpus(options.work, options.scenes) as pending:
        if options.steps:
            use_cuda_graph = not options.no_cuda_graph
            train(options.work, options.scenes, options.steps, options.minutes, pending, use_cuda_graph)
        else:
            for job in pending.values():
                job.result()
    if options.export:
        export(options.work, EMBEDDED_FOLDER)


def train(
    work: Path,
    scenes: int,
    steps: int,
    minutes: float | None = None,
    pending: dict[Path, Future[None]] | None = None,
    use_cuda_graph: bool = True,
) -> None:
    """Train denoiser and text encoder, from the last checkpoint of the work folder if there is one.

    The loss is the squared error of the predicted noise (Ho et al. 2020, eq. 14). A weight of 1 / alpha_bar turns it
    into the error of the velocity (Salimans and Ho 2022, section 4). There are three kinds of training sample:

    - whole images;
    - images with a defect whose loss is weighted towards the mask;
    - holes: the noisy latents are zero inside the mask, the loss is taken outside it, and the caption is the normal
      one. Disentangled DDIM inversion evaluates the network on such latents.

    Every random number is a function of the step, so a resumed run equals an uninterrupted one.

    Args:
        work: the work folder, prepared by `prepare_corpus`.
        scenes: number of scenes in the corpus.
        steps: the last step.
        minutes: train for this time instead; the duration of the first steps gives the number of steps.
        pending: shards of the corpus that are still being rendered, by file.
        use_cuda_graph: whether to replay the step as a CUDA graph on a GPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    timer = _StepTimer(minutes, device) if minutes else None
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    corpus = Corpus(work, scenes, device, pending)
    torch.manual_seed(SEED)
    learner = Learner(_build_model(work), device, use_cuda_graph)
    start = learner.resume(work)
    alpha_bars = alphas_cumprod().to(device)
    empty_caption = _empty_caption(work).to(device)
    last_save, losses = time.monotonic(), []
    for step in track(itertools.count(start) if timer else range(start, steps), "pretraining"):
        if timer:
            steps = timer.last_step(step, start) or steps
        corpus.load_shards(step)
        batch = _make_batch(corpus, empty_caption, alpha_bars, step)
        losses.append(learner.step(batch, step, rate_factor(step, steps, WARM_UP_STEPS, DECAY_FRACTION)))
        if (step + 1) % LOG_EVERY == 0:
            logger.info("step %d: loss %.4f", step + 1, torch.stack(losses).mean())
            losses = []
        is_last = step + 1 >= steps and (timer is None or timer.is_measured)
        if is_last or time.monotonic() - last_save > CHECKPOINT_EVERY_S:
            learner.save(work, step + 1)
            last_save = time.monotonic()
        if is_last:
            break


def export(work: Path, folder: Path) -> None:
    """Replace a backbone folder by the averaged weights of the last checkpoint in a work folder, in one rename."""
    from safetensors.torch import load_file

    checkpoint = load_file(work / CHECKPOINT)
    model = _build_model(work)
    with rewrite_folder(folder) as new:
        for part, subfolder in (("denoiser", "unet"), ("text_encoder", "text_encoder")):
            prefix = f"average.{part}."
            state = {key.removeprefix(prefix): value for key, value in checkpoint.items() if key.startswith(prefix)}
            save_network(model[part], new / subfolder, state)
        for part in ("vae", "tokenizer"):
            shutil.copytree(work / part, new / part)
        save_scheduler(new)
        write_json(new / "defectory.json", {"patch_size": PATCH_SIZE, "resolution": RESOLUTION})


class _StepTimer:
    """Computes the number of steps that fit into a time, from the duration of the steps TIMED_STEPS.

    Args:
        minutes: time of the whole run, which starts now.
        device: the device of the training.
    """

    def __init__(self, minutes: float, device: torch.device) -> None:
        self._minutes, self._device, self._start = minutes, device, time.monotonic()
        self._times: list[float] = []

    @property
    def is_measured(self) -> bool:
        return len(self._times) == len(TIMED_STEPS)

    def last_step(self, step: int, first_step: int) -> int | None:
        """Return the number of steps when the measurement ends with this step, otherwise None."""
        if step - first_step not in TIMED_STEPS:
            return None
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self._times.append(time.monotonic())
        if not self.is_measured:
            return None
        seconds = (self._times[1] - self._times[0]) / (TIMED_STEPS[1] - TIMED_STEPS[0])
        steps = step + 1 + int((60 * self._minutes - (self._times[1] - self._start)) / seconds)
        logger.info("%.1f ms per step: %d steps fit into %g minutes", 1000 * seconds, steps, self._minutes)
        return steps


def _vocabulary(work: Path) -> dict[str, int]:
    return json.loads((work / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))


def _build_model(work: Path) -> nn.ModuleDict:
    text_encoder = build_text_encoder(_vocabulary(work))
    denoiser = build_denoiser(LATENT_CHANNELS)
    initialise_as_identity(denoiser)
    return nn.ModuleDict({"denoiser": denoiser, "text_encoder": text_encoder})


def _empty_caption(work: Path) -> Tensor:
    vocabulary = _vocabulary(work)
    return torch.tensor([vocabulary[START_TOKEN], *[vocabulary[END_TOKEN]] * (TEXT_LENGTH - 1)])


def _make_batch(corpus: Corpus, empty_caption: Tensor, alpha_bars: Tensor, step: int) -> dict[str, Tensor]:
    """Return the batch of a step, as `Learner.step` expects it; `weight` is the loss weight of each latent value."""
    device = empty_caption.device
    generator = torch.Generator(device).manual_seed(SEED * SEED_FACTOR + step)
    options = {"generator": generator, "device": device}
    rows = torch.randint(len(corpus), (BATCH_SIZE,), **options)
    timesteps = torch.randint(len(alpha_bars), (BATCH_SIZE,), **options)
    latents, mask = corpus.latents(rows)
    noise = torch.randn(latents.shape, **options)
    kind, caption_choice = torch.rand(2, BATCH_SIZE, **options)
    has_defect = mask.flatten(1).any(1)
    is_hole = torch.where(has_defect, kind < HOLE_FRACTION, kind < NORMAL_HOLE_FRACTION)
    is_focused = has_defect & (kind >= HOLE_FRACTION) & (kind < HOLE_FRACTION + FOCUS_FRACTION)
    # A normal image has no mask, so its hole is the mask of the previous image of the batch.
    hole = torch.where(has_defect[:, None, None, None], mask, mask.roll(1, 0)) * is_hole[:, None, None, None]
    alpha_bar = alpha_bars[timesteps][:, None, None, None]
    noisy = (alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise) * (1 - hole)
    mask_fraction = mask.mean((1, 2, 3), keepdim=True).clamp(min=MIN_MASK_FRACTION)
    focus_weight = FOCUS_BASE_WEIGHT + (1 - FOCUS_BASE_WEIGHT) * mask / mask_fraction
    weight = torch.where(is_focused[:, None, None, None], focus_weight, 1 - hole)
    # The unweighted noise error would not train high noise levels, which decide the layout of an image.
    weight = weight / alpha_bar
    tokens = torch.where(is_hole[:, None], corpus.normal_caption[rows], corpus.caption[rows]).long()
    tokens = torch.where((caption_choice < EMPTY_CAPTION_PROBABILITY)[:, None], empty_caption, tokens)
    return {"noisy": noisy, "noise": noise, "timesteps": timesteps, "tokens": tokens, "weight": weight}


if __name__ == "__main__":
    main()
