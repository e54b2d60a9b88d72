"""Training of SeaS: separation and sharing fine-tuning (Dai et al. 2025, sec. 3.2), then the RMP branch (sec. 3.3)."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from defect_core.backbones.load import Backbone
from defect_core.diffusion.attention import control_attention
from defect_core.diffusion.checkpointing import enable_gradient_checkpointing
from defect_core.diffusion.losses import map_mask_iou
from defect_core.diffusion.schedule import add_noise, pred_original_sample
from defect_core.generators.base import Example
from defect_core.generators.canvas import CanvasKind
from defect_core.generators.seas.alignment import select_aligned_sides
from defect_core.generators.seas.config import SeasConfig
from defect_core.generators.seas.losses import MixedBatch, separation_and_sharing_loss
from defect_core.generators.seas.mask_features import capture_unet_features, decode_image_features
from defect_core.generators.seas.prompt import UnbalancedAbnormalPrompt
from defect_core.generators.seas.refined_mask_prediction import RefinedMaskPrediction, refined_mask_prediction_loss
from defect_core.generators.trained import freeze_in_half_precision
from defect_core.generators.views import ViewSource, to_denoiser
from defect_core.training.loop import TrainingConfig, train

EVALUATION_VIEWS = 16  # largest number of defect views in `attention_iou`
EVALUATION_TIMESTEPS = (0.1, 0.3, 0.5)  # fractions of the schedule in `attention_iou`


class TrainingViews:
    """Views of defect examples and of at most `config.normals` normal examples, and mixed batches of them."""

    def __init__(
        self,
        backbone: Backbone,
        config: SeasConfig,
        defective: Sequence[Example],
        normal: Sequence[Example],
        seed: int,
    ) -> None:
        rng = np.random.default_rng(seed)
        chosen = [normal[i] for i in sorted(rng.permutation(len(normal))[: config.normals])]

        self.defective = ViewSource(backbone, defective, config, rng)
        repeats = None if config.variants is None else -(-len(self.defective.defects) // len(chosen))
        # `generate_normals` generates whole images, whatever the canvas of the defects.
        canvases: tuple[CanvasKind, ...] = ("whole",) if config.canvas == "whole" else ("local", "whole")
        self.normal = ViewSource(backbone, chosen, config, rng, repeats, canvases)

    def sample_batch(self, size: int, timesteps: int, generator: torch.Generator) -> MixedBatch:
        """Return a random batch of `size` defect views and as many normal views, with timesteps below `timesteps`."""
        defective, normal = self.defective.batch(size, generator), self.normal.batch(size, generator)
        latents = torch.cat([defective.latents, normal.latents])
        chosen = torch.randint(timesteps, (2 * size,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        return MixedBatch(latents, defective.masks.float(), defective.defects, noise, chosen)


@dataclasses.dataclass(frozen=True)
class SeasTrainer:
    """Trains the networks of one product in two stages.

    Attributes:
        backbone: its U-Net is trained in the first stage.
        config: settings.
        product: name of the product, shown with the progress.
        prompt: tokens, trained in the first stage.
        branch: RMP branch, trained in the second stage.
        views: training images.
        seed: decides all random choices.
    """

    backbone: Backbone
    config: SeasConfig
    product: str
    prompt: UnbalancedAbnormalPrompt
    branch: RefinedMaskPrediction
    views: TrainingViews
    seed: int

    def train_unet(self, work_dir: Path) -> tuple[list[float], list[float]]:
        """Train U-Net and tokens with checkpoints in `work_dir`, then freeze them.

        Returns:
            Loss of every step, and `attention_iou` before and after the training.
        """
        config, backbone = self.config, self.backbone
        steps, _ = config.steps_of(len(set(self.views.defective.defects)))
        sides = select_aligned_sides(backbone.latent_size, self._encoder_attention_sides())
        trained = nn.ModuleDict({"denoiser": backbone.denoiser, "tokens": self.prompt}).requires_grad_(True)
        control = control_attention(backbone.denoiser)

        def loss(_step: int, generator: torch.Generator) -> Iterator[Tensor]:
            batch = self.views.sample_batch(config.batch_size, len(backbone.alphas_cumprod), generator)
            for part in batch.split(backbone.compute.accumulate):
                terms = separation_and_sharing_loss(backbone, self.prompt, control, sides, part, config)
                yield terms.total * (len(part.defects) / len(batch.defects))

        if backbone.compute.gradient_checkpointing:
            enable_gradient_checkpointing(backbone.denoiser)
        iou_before = self.attention_iou(sides)
        token_settings = {"learning_rate": config.token_learning_rate, "weight_decay": 0.0}
        training = self._training_config(config.learning_rate, steps, overrides={"tokens": token_settings})
        label = f"fine-tuning seas on {self.product}"
        losses = train(
            trained, loss, training, seed=self.seed, work_dir=work_dir, label=label, compute=backbone.compute
        )
        freeze_in_half_precision(trained)
        return losses, [iou_before, self.attention_iou(sides)]

    def train_mask_branch(self, work_dir: Path) -> list[float]:
        """Train the RMP branch with checkpoints in `work_dir`, freeze it, and return the loss of every step."""
        config, backbone = self.config, self.backbone
        defects = sorted(set(self.views.defective.defects))
        with torch.no_grad():
            prompts = self.prompt.encode(backbone, [*((name,) for name in defects), ()]).states
        timesteps = max(1, round(config.mask_timestep_fraction * len(backbone.alphas_cumprod)))

        def loss(_step: int, generator: torch.Generator) -> Iterator[Tensor]:
            batch = self.views.sample_batch(config.batch_size, timesteps, generator)
            for part in batch.split(backbone.compute.accumulate):
                yield part_loss(part) * (len(part.defects) / len(batch.defects))

        def part_loss(batch: MixedBatch) -> Tensor:
            count = len(batch.defects)
            rows = [defects.index(name) for name in batch.defects]
            texts = prompts[rows + [len(defects)] * (len(batch.latents) - count)]
            alphas_cumprod = backbone.alphas_cumprod[batch.timesteps]
            with torch.no_grad(), capture_unet_features(backbone) as features:
                noised = add_noise(
                    to_denoiser(backbone, batch.latents), to_denoiser(backbone, batch.noise), alphas_cumprod
                )
                predicted = backbone.denoiser(noised, to_denoiser(backbone, batch.timesteps), texts).sample
                original = pred_original_sample(noised, predicted, alphas_cumprod)
                image_features = decode_image_features(backbone, original[:count])
            unet_features = features[0], features[1]
            return refined_mask_prediction_loss(
                self.branch, unet_features, image_features, batch.masks, config.focal_gamma
            )

        self.branch.requires_grad_(True)
        training = self._training_config(config.mask_learning_rate, config.steps_of(len(defects))[1])
        label = f"training the mask branch of seas on {self.product}"
        losses = train(
            self.branch, loss, training, seed=self.seed + 1, work_dir=work_dir, label=label, compute=backbone.compute
        )
        freeze_in_half_precision(self.branch)
        return losses

    def attention_iou(self, sides: Sequence[int]) -> float:
        """Return the mean IoU of masks and anomaly token attention at the largest of the sides, with fixed noise."""
        backbone, control, scores = self.backbone, control_attention(self.backbone.denoiser), []
        count, size = min(EVALUATION_VIEWS, len(self.views.defective.defects)), self.config.batch_size
        with torch.no_grad():
            for fraction in EVALUATION_TIMESTEPS:
                batch = self.views.sample_batch(count, 1, torch.Generator().manual_seed(self.seed))
                timestep = int(fraction * len(backbone.alphas_cumprod))
                batch = dataclasses.replace(batch, timesteps=torch.full_like(batch.timesteps, timestep))
                for start in range(0, count, size):
                    part = batch.select(start, start + size)
                    terms = separation_and_sharing_loss(backbone, self.prompt, control, sides, part, self.config)
                    side = max(terms.masks)
                    scores.append(map_mask_iou(terms.maps.anomaly[side], terms.masks[side]))
        return round(float(torch.cat(scores).mean()), 4)

    def _training_config(
        self, learning_rate: float, steps: int, overrides: Mapping[str, Mapping[str, float]] | None = None
    ) -> TrainingConfig:
        config = self.config
        return TrainingConfig(
            steps,
            learning_rate,
            config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            overrides=overrides or {},
            schedule=config.schedule,
            moments=config.moments,
        )

    def _encoder_attention_sides(self) -> list[int]:
        """Return the sides of the encoder's cross-attention layers, observed in one call of the U-Net."""
        backbone = self.backbone
        shape = (1, backbone.latent_channels, backbone.latent_size, backbone.latent_size)
        with torch.no_grad():
            text = backbone.encode_text([""])
            groups = torch.zeros(1, 1, text.shape[1], device=text.device)
            with control_attention(backbone.denoiser).capture(groups) as maps:
                backbone.denoiser(to_denoiser(backbone, torch.zeros(shape)), 0, text)
        return [part.shape[-1] for name, part in maps.layers if name.startswith("down_blocks")]
