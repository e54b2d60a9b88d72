"""Fine-tuning of a backbone on the normal images of one product, with early stopping on held-out images.

The generators' denoiser learns local windows of the product under the prompt that generators use for the background.
It learns whole images under another prompt, so that the two do not mix. A second denoiser, for sampling normal images,
learns whole images only. VAE and text encoder stay frozen.

The loss is the squared error of the predicted noise weighted by 1 / alpha_cumprod, which is the error of the velocity
(Salimans and Ho 2022, section 4). Without the weight, the high noise levels, which decide the layout, would hardly be
learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from defect_core.adaptation.best_weights import BestWeights
from defect_core.adaptation.config import AdaptConfig
from defect_core.backbones.load import Backbone
from defect_core.diffusion.schedule import add_noise, noise_ratio
from defect_core.generators.base import Example
from defect_core.generators.canvas import CanvasKind
from defect_core.generators.canvas_config import AugmentationConfig
from defect_core.generators.trained import freeze_in_half_precision
from defect_core.generators.views import augment_examples, encode_views, prompt_words, to_denoiser
from defect_core.training.loop import TrainingConfig, train
from defect_core.training.precision import training_autocast

PROMPT = "a photo of a {product}"
WHOLE_PROMPT = "a photo of a whole {product}"
# The values below come from our own trials (docs/research/trials.md).
EMPTY_PROMPT_FRACTION = 0.1  # of the training views of the generators' denoiser
LOCAL_CONTEXT, LOCAL_MIN_SIDE = 2.5, 48  # window of a local view, see `choose_window`
LOG_NOISE_RATIO_MEAN, LOG_NOISE_RATIO_STD = 0.6, 1.0  # timesteps of whole images, see `sample_middle_timesteps`
WEIGHT_DECAY = 1e-2
MIN_VALIDATION_VIEWS, MAX_VALIDATION_VIEWS = 16, 64
VALIDATION_TIMESTEPS = 8
# The normal denoiser does not train the U-Net's encoder: what it would learn is not worth its training time.
ENCODER_PARAMETERS = "conv_in.", "down_blocks."

_LOCAL, _WHOLE, _EMPTY = range(3)  # rows of the encoded prompts
# An image that is rotated, shifted or relit in training would be generated so.
_NO_AUGMENTATION = AugmentationConfig(
    flips=False, rotate90=False, rotation=0, scale=0, shift=0, brightness=0, contrast=0, colour=0
)

CurvePoint = dict[str, float | None]


def adapt_denoiser(
    backbone: Backbone, examples: Sequence[Example], config: AdaptConfig, work_dir: Path, seed: int
) -> list[CurvePoint]:
    """Fine-tune the backbone's denoiser in place for the generators, and return the curve of the training.

    The denoiser ends with the weights of the lowest held-out loss, rounded to half precision. A killed run that is
    called again with the same folder continues.

    Args:
        backbone: its denoiser is changed.
        examples: normal training images of one product, at least two.
        config: settings.
        work_dir: folder of the checkpoint and the best weights.
        seed: decides views, order and noise.

    Returns:
        One dict per check: `step`, `loss` (mean over the training steps since the last check) and `held_out`.

    Raises:
        ValueError: fewer than two images.
    """
    settings = _Settings(
        config.steps, config.batch_size, config.learning_rate, config.local_fraction, EMPTY_PROMPT_FRACTION
    )
    return _fine_tune(backbone, examples, config, settings, work_dir, seed)


def train_normal_denoiser(
    backbone: Backbone, examples: Sequence[Example], config: AdaptConfig, work_dir: Path, seed: int
) -> list[CurvePoint]:
    """Fine-tune the backbone's denoiser in place to sample normal images, and return the curve of the training.

    It trains `config.normal_sampler_steps` steps on whole images, with Muon for the matrices and without the U-Net's
    encoder. Arguments, result and errors are those of `adapt_denoiser`.
    """
    settings = _Settings(
        config.normal_sampler_steps,
        config.normal_sampler_batch_size,
        config.normal_sampler_learning_rate,
        local_fraction=0.0,
        empty_prompt_fraction=0.0,
        is_for_normals=True,
    )
    return _fine_tune(backbone, examples, config, settings, work_dir, seed)


def sample_middle_timesteps(
    alphas_cumprod: Tensor, count: int, generator: torch.Generator, *, is_stratified: bool = False
) -> Tensor:
    """Return random timesteps from the middle of a schedule, where the layout of an image is decided: int64 [count].

    The logarithm of the noise ratio is normal, as in Karras et al. 2022, section 5.

    Args:
        alphas_cumprod: cumulative alphas of the training schedule, [N].
        count: number of timesteps.
        generator: source of randomness, on the CPU.
        is_stratified: whether one timestep comes from each of `count` equally likely intervals, rising, so that all
            batches have the same distribution.
    """
    if is_stratified:
        within = torch.rand(count, generator=generator, dtype=torch.float64)
        normal = torch.special.ndtri((torch.arange(count) + within) / count)
    else:
        normal = torch.randn(count, generator=generator, dtype=torch.float64)
    rising = noise_ratio(alphas_cumprod.double().cpu()).log()
    sampled = torch.searchsorted(rising, LOG_NOISE_RATIO_MEAN + LOG_NOISE_RATIO_STD * normal)
    return sampled.clamp(max=len(rising) - 1)


@dataclass(frozen=True)
class _Settings:
    """Settings in which the two denoisers differ."""

    steps: int
    batch_size: int
    learning_rate: float
    local_fraction: float
    empty_prompt_fraction: float
    is_for_normals: bool = False


def _fine_tune(
    backbone: Backbone,
    examples: Sequence[Example],
    config: AdaptConfig,
    settings: _Settings,
    work_dir: Path,
    seed: int,
) -> list[CurvePoint]:
    if len(examples) < 2:
        raise ValueError(f"adapt needs at least two normal images, got {len(examples)}")
    objective = _Objective(backbone, examples, config, settings, seed)
    denoiser = backbone.denoiser.requires_grad_(True)
    if settings.is_for_normals:
        for name, parameter in denoiser.named_parameters():
            parameter.requires_grad_(not name.startswith(ENCODER_PARAMETERS))
    # With Muon the learning rate is constant for the first half of the steps; the held-out loss stays high until then.
    patience_from = settings.steps // 2 if settings.is_for_normals else 0
    best = BestWeights(work_dir, denoiser, config.patience, patience_from, objective.validation_loss)

    def after_step(done: int) -> bool:
        is_check = done % config.check_every == 0 or done == settings.steps
        return is_check and best.check(done, objective.validation_loss())

    losses = train(
        denoiser,
        objective.loss,
        TrainingConfig(settings.steps, settings.learning_rate, WEIGHT_DECAY, use_muon=settings.is_for_normals),
        seed=seed,
        work_dir=work_dir,
        label=f"adapting the backbone to {examples[0].product}",
        after_step=after_step,
        compute=backbone.compute,
    )
    best.restore()
    freeze_in_half_precision(denoiser)
    return best.curve(losses)


class _Objective:
    """Training loss on random views of the training images, and the loss on views of held-out images."""

    def __init__(
        self, backbone: Backbone, examples: Sequence[Example], config: AdaptConfig, settings: _Settings, seed: int
    ) -> None:
        self.backbone, self.settings, self.seed = backbone, settings, seed
        count = max(1, round(config.validation_fraction * len(examples)))
        held_out = set(np.random.default_rng([seed, 0]).permutation(len(examples))[:count].tolist())
        training = [example for index, example in enumerate(examples) if index not in held_out]
        validation = [example for index, example in enumerate(examples) if index in held_out]
        views = min(MAX_VALIDATION_VIEWS, max(MIN_VALIDATION_VIEWS, round(config.views * config.validation_fraction)))
        fraction = settings.local_fraction
        self.training = _encode_latents(backbone, training, config.views, fraction, np.random.default_rng([seed, 1]))
        self.validation = _encode_latents(backbone, validation, views, fraction, np.random.default_rng([seed, 2]))
        product = prompt_words(examples[0].product)
        with torch.no_grad():
            self.texts = backbone.encode_text(
                [PROMPT.format(product=product), WHOLE_PROMPT.format(product=product), ""]
            )

    def loss(self, _step: int, generator: torch.Generator) -> Tensor:
        """Return the loss of one random batch."""
        settings, bars = self.settings, self.backbone.alphas_cumprod
        is_whole = torch.rand(settings.batch_size, generator=generator) >= settings.local_fraction
        latents = torch.stack([_choose(self.training[int(each)], generator) for each in is_whole])
        uniform = torch.randint(len(bars), is_whole.shape, generator=generator)
        middle = sample_middle_timesteps(bars, len(is_whole), generator, is_stratified=settings.is_for_normals)
        timesteps = torch.where(is_whole, middle, uniform)
        noise = torch.randn(latents.shape, generator=generator)
        is_empty = torch.rand(len(is_whole), generator=generator) < settings.empty_prompt_fraction
        return self._error(latents, timesteps, noise, torch.where(is_empty, _EMPTY, is_whole.long()))

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Return the held-out loss, with the same noise and evenly spaced timesteps at every check."""
        generator = torch.Generator().manual_seed(self.seed)
        last = len(self.backbone.alphas_cumprod) - 1
        timesteps = torch.linspace(0, last, 2 * VALIDATION_TIMESTEPS + 1)[1::2].long()
        total, local_fraction = 0.0, self.settings.local_fraction
        for prompt, fraction in ((_LOCAL, local_fraction), (_WHOLE, 1 - local_fraction)):
            latents = self.validation[prompt]
            for timestep in timesteps if fraction else ():
                noise = torch.randn(latents.shape, generator=generator)
                for rows in torch.arange(len(latents)).split(self.settings.batch_size):
                    prompts = torch.full(rows.shape, prompt)
                    error = self._error(latents[rows], timestep.expand(len(rows)), noise[rows], prompts)
                    total += fraction * float(error) * len(rows) / (len(latents) * len(timesteps))
        return total

    def _error(self, latents: Tensor, timesteps: Tensor, noise: Tensor, prompts: Tensor) -> Tensor:
        backbone = self.backbone
        levels = backbone.alphas_cumprod[timesteps]
        latents, noise = to_denoiser(backbone, latents), to_denoiser(backbone, noise)
        states = self.texts[prompts.to(self.texts.device)]
        noised, timesteps = add_noise(latents, noise, levels), to_denoiser(backbone, timesteps)
        with training_autocast(backbone.device, backbone.latent_size, self.settings.is_for_normals, backbone.compute):
            predicted = backbone.denoiser(noised, timesteps, states).sample
        weight = to_denoiser(backbone, 1 / levels)[:, None, None, None]
        return (weight * (predicted.float() - noise) ** 2).mean()


def _encode_latents(
    backbone: Backbone, examples: Sequence[Example], count: int, local_fraction: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return latents of local windows [N, C, h, h] and of whole images [M, C, h, h], without augmentation.

    Args:
        backbone: gives the VAE.
        examples: normal images; each occurs at most once as a whole.
        count: N + M, if there are enough images.
        local_fraction: fraction of the views that are local windows; at least one is, unless it is 0.
        rng: the only source of randomness.
    """
    local = max(1, round(count * local_fraction)) if local_fraction else 0
    windows = [examples[index] for index in rng.integers(len(examples), size=local)]
    wholes = [examples[index] for index in rng.permutation(len(examples))[: max(1, count - local)]]
    kinds: tuple[tuple[CanvasKind, list[Example]], ...] = (("local", windows), ("whole", wholes))
    size = LOCAL_CONTEXT, LOCAL_MIN_SIDE, backbone.resolution
    views = [augment_examples(chosen, 1, kind, *size, rng, _NO_AUGMENTATION) for kind, chosen in kinds]
    latents = encode_views(backbone, views[0] + views[1], ()).latents
    return latents[:local], latents[local:]


def _choose(latents: Tensor, generator: torch.Generator) -> Tensor:
    return latents[int(torch.randint(len(latents), (), generator=generator))]
