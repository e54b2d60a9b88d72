"""Train the embedded transformer: `python -m defect_core.pretraining.transformer --work DIR --export`.

The transformer is trained on the corpus of `defect_core.pretraining.backbone`, with the losses and the condition
dropout of DefectDiffu. This also trains the text layer, the cross-attention and the mask head of DefectDiffu. The
training resumes from its last checkpoint. A GPU is used if one is available.
"""

import argparse
import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from defect_core.data.records import GOOD
from defect_core.generators.defectdiffu.ancestral import LearnedVarianceSchedule
from defect_core.generators.defectdiffu.losses import LossWeights, TrainingBatch, training_loss
from defect_core.generators.defectdiffu.model import DefectDiT
from defect_core.generators.defectdiffu.text import HASHED_WIDTH, HashedTextEncoder, drop_conditions, encode_conditions
from defect_core.generators.defectdiffu.weights import EMBEDDED_DIT, save_transformer
from defect_core.pretraining.architecture import (
    LATENT_CHANNELS,
    PATCH_SIZE,
    RESOLUTION,
    SCHEDULER_CONFIG,
    TRAINING_STEPS,
    alphas_cumprod,
)
from defect_core.pretraining.corpus_store import Corpus, prepare_corpus
from defect_core.pretraining.learner import rate_factor
from defect_core.pretraining.package import rewrite_folder
from defect_core.progress import track
from defect_core.training.checkpoint import allocate_moments, load_checkpoint, optimizer_state, save_checkpoint

logger = logging.getLogger(__name__)

SEED, SEED_FACTOR = 21, 1_000_003
SCENES = 20_000
WIDTH, HEADS, DEPTH, TOKEN_PATCH = 192, 6, 12, 2
STEPS = 592
DECAY_STEPS = 700  # the learning rate of the embedded weights decays as if the training had this many steps
BATCH_SIZE = 128
LEARNING_RATE = 6e-4
WARM_UP_STEPS, DECAY_FRACTION = 60, 0.35
EMA_DECAY = 0.999
CONDITION_DROPOUT = 0.12
LOSS_WEIGHTS = LossWeights(cap=25.0)
CHECKPOINT_EVERY_S = 180.0
LOG_EVERY = 50
CHECKPOINT = "dit_checkpoint.safetensors"
_PROMPT_PREFIXES = ("a photo of ", "a close-up photo of ", "a close - up photo of ", "an image of ")
_INPUT_GAIN = 3.0  # scale of the patch embedding relative to the position embedding
_POSITION_VARIANCE = 0.5  # mean square of the sine-cosine position embedding


def main(arguments: list[str] | None = None) -> None:
    """Run the stages that are not complete yet; see `--help`."""
    parser = argparse.ArgumentParser(description="Train the embedded transformer on a corpus of rendered images.")
    parser.add_argument("--work", type=Path, required=True, help="work folder of the backbone's pretraining")
    parser.add_argument("--steps", type=int, default=STEPS, help="last training step (0: no training)")
    parser.add_argument("--scenes", type=int, default=SCENES, help="number of scenes in the corpus")
    parser.add_argument("--export", action="store_true", help="write the averaged weights into the package")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with prepare_corpus(options.work, options.scenes) as pending:
        if options.steps:
            train(options.work, options.scenes, options.steps, pending)
    if options.export:
        export(options.work, EMBEDDED_DIT)


def train(work: Path, scenes: int, steps: int, pending: dict[Path, Future[None]] | None = None) -> None:
    """Train the transformer, from the last checkpoint of the work folder if there is one.

    Every random number is a function of the step, so a resumed run equals an uninterrupted one.

    Args:
        work: the work folder, prepared by `prepare_corpus`.
        scenes: number of scenes in the corpus.
        steps: the last step.
        pending: shards of the corpus that are still being rendered, by file.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus = Corpus(work, scenes, device, pending)
    corpus.load_shards()
    names, black_and_white = read_condition_names(work, corpus), encode_black_and_white(corpus)
    schedule = LearnedVarianceSchedule.from_alphas_cumprod(alphas_cumprod())
    model = build_transformer().to(device).train()
    state = _TrainingState.start(model)
    start = state.resume(work)
    last_save, losses = time.monotonic(), []
    for step in track(range(start, steps), "pretraining the transformer", total=steps - start):
        factor = rate_factor(step, DECAY_STEPS if steps == STEPS else steps, WARM_UP_STEPS, DECAY_FRACTION)
        for group in state.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * factor
        loss = training_loss(model, schedule, _make_batch(corpus, names, black_and_white, step), LOSS_WEIGHTS)
        state.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        state.optimizer.step()
        state.update_ema(step)
        losses.append(loss.detach())
        if (step + 1) % LOG_EVERY == 0:
            logger.info("step %d: loss %.4f", step + 1, torch.stack(losses).mean())
            losses = []
        if step + 1 == steps or time.monotonic() - last_save > CHECKPOINT_EVERY_S:
            state.save(work, step + 1)
            last_save = time.monotonic()


def export(work: Path, folder: Path) -> None:
    """Replace a transformer folder by the averaged weights of the last checkpoint in a work folder, in one rename."""
    tensors = load_file(work / CHECKPOINT)
    ema = {key.removeprefix("average."): value for key, value in tensors.items() if key.startswith("average.")}
    with rewrite_folder(folder) as new:
        save_transformer(new, build_transformer(), ema, SCHEDULER_CONFIG)


def build_transformer() -> DefectDiT:
    """Return the embedded architecture with its initial weights, which are the same at every call.

    Patches are embedded and projected back along the same orthogonal directions, so the initial transformer is close to
    the identity. This is the correct prediction at high noise levels; a zero initialisation would have to learn it.
    """
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        dit: Any = DiTTransformer2DModel(
            num_attention_heads=HEADS,
            attention_head_dim=WIDTH // HEADS,
            in_channels=LATENT_CHANNELS,
            out_channels=2 * LATENT_CHANNELS,
            num_layers=DEPTH,
            sample_size=RESOLUTION // PATCH_SIZE,
            patch_size=TOKEN_PATCH,
            num_embeds_ada_norm=1,
        )
        for block in dit.transformer_blocks:  # adaLN-zero (Peebles and Xie 2023): every block starts as the identity
            nn.init.zeros_(block.norm1.linear.weight)
            nn.init.zeros_(block.norm1.linear.bias)
        model = DefectDiT(dit, HASHED_WIDTH)
        patch_values = TOKEN_PATCH**2 * LATENT_CHANNELS
        directions = nn.init.orthogonal_(torch.empty(WIDTH, patch_values))
        with torch.no_grad():
            kernel = directions.reshape(WIDTH, TOKEN_PATCH, TOKEN_PATCH, LATENT_CHANNELS).permute(0, 3, 1, 2)
            dit.pos_embed.proj.weight.copy_(_INPUT_GAIN * kernel)
            dit.pos_embed.proj.bias.zero_()
            token_std = (_INPUT_GAIN**2 * patch_values / WIDTH + _POSITION_VARIANCE) ** 0.5
            output = torch.zeros(TOKEN_PATCH, TOKEN_PATCH, 2 * LATENT_CHANNELS, WIDTH)  # noise, then variance
            output[:, :, :LATENT_CHANNELS] = directions.T.reshape(TOKEN_PATCH, TOKEN_PATCH, LATENT_CHANNELS, WIDTH)
            dit.proj_out_2.weight.copy_(output.reshape(-1, WIDTH) * token_std / _INPUT_GAIN)
            for parameter in (dit.proj_out_1.weight, dit.proj_out_1.bias, dit.proj_out_2.bias):
                parameter.zero_()
    return model


def read_condition_names(work: Path, corpus: Corpus) -> list[tuple[str, str]]:
    """Return product and defect ("good" for a normal image) of every image, from the tokens of its captions.

    The tokenizer is read from the work folder. All shards of the corpus must be loaded.
    """
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    tokens = torch.cat([corpus.normal_caption, corpus.caption], 1).cpu()
    unique, index_of_unique = torch.unique(tokens, dim=0, return_inverse=True)
    captions = [
        [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows] for rows in unique.long().chunk(2, dim=1)
    ]
    names = [split_caption(*pair) for pair in zip(*captions, strict=True)]
    return [names[index] for index in index_of_unique.tolist()]


def encode_black_and_white(corpus: Corpus) -> Tensor:
    """Return the latents [2, C, 16, 16] of a black and a white image, of which mask latents are composed."""
    levels = torch.tensor([0, 255], dtype=torch.uint8, device=corpus.images.device)
    return corpus.encode(levels[:, None, None, None].expand(-1, 3, RESOLUTION, RESOLUTION))


def split_caption(normal_caption: str, caption: str) -> tuple[str, str]:
    """Return product and defect from the two captions of an image.

    >>> split_caption("a photo of a gear", "a photo of a deep scratch on a gear")
    ('gear', 'deep scratch')
    >>> split_caption("a gear", "a gear")
    ('gear', 'good')
    """
    product, phrase = _strip_prompt(normal_caption), _strip_prompt(caption)
    if product == phrase:
        return _strip_article(product), GOOD
    for preposition in (" on ", " in "):
        if phrase.endswith(preposition + product):
            return _strip_article(product), _strip_article(phrase.removesuffix(preposition + product))
    return _strip_article(product), _strip_article(phrase.removeprefix(product + " with "))


def _strip_prompt(caption: str) -> str:
    for prefix in _PROMPT_PREFIXES:
        caption = caption.removeprefix(prefix)
    return caption


def _strip_article(text: str) -> str:
    return text.removeprefix("a ").removeprefix("an ")


def _make_batch(corpus: Corpus, names: list[tuple[str, str]], black_and_white: Tensor, step: int) -> TrainingBatch:
    """Return the training batch of a step; `names` are product and defect of every image of the corpus."""
    device = corpus.images.device
    generator = torch.Generator().manual_seed(SEED * SEED_FACTOR + step)
    rows = torch.randint(len(corpus), (BATCH_SIZE,), generator=generator)
    timesteps = torch.randint(TRAINING_STEPS, (BATCH_SIZE,), generator=generator)
    batch_names = [names[index] for index in rows.tolist()]
    batch_names = drop_conditions(batch_names, CONDITION_DROPOUT, CONDITION_DROPOUT, generator)
    latents, masks = corpus.latents(rows.to(device))
    noise = torch.randn(latents.shape, generator=torch.Generator(device).manual_seed(step), device=device)
    black, white = black_and_white
    conditions = encode_conditions(HashedTextEncoder(), batch_names).to(latents)
    return TrainingBatch(latents, masks, black + (white - black) * masks, conditions, timesteps.to(device), noise)


@dataclass
class _TrainingState:
    """Model, exponential moving average of its weights by name, and optimizer."""

    model: nn.Module
    ema: dict[str, Tensor]
    optimizer: torch.optim.AdamW

    @classmethod
    def start(cls, model: nn.Module) -> "_TrainingState":
        ema = {name: value.detach().clone() for name, value in model.named_parameters()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
        allocate_moments(optimizer)
        return cls(model, ema, optimizer)

    @torch.no_grad()
    def update_ema(self, step: int) -> None:
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        for name, value in self.model.named_parameters():
            self.ema[name].lerp_(value, 1 - decay)

    def save(self, work: Path, step: int) -> None:
        save_checkpoint(work / CHECKPOINT, self._checkpoint_tensors(), step=step)

    def resume(self, work: Path) -> int:
        """Load the checkpoint of a work folder, if there is one, and return the number of the next step."""
        stored = load_checkpoint(work / CHECKPOINT, self._checkpoint_tensors())
        return stored["step"] if stored else 0

    def _checkpoint_tensors(self) -> dict[str, Tensor]:
        parameters = dict(self.model.named_parameters())
        return {
            **{f"model.{name}": parameter for name, parameter in parameters.items()},
            **{f"average.{name}": value for name, value in self.ema.items()},
            **optimizer_state(parameters.items(), self.optimizer),
        }


if __name__ == "__main__":
    main()
