"""Fine-tuning of the U-Net: the loss of a step, and one U-Net for a product or one for each of its defects."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from defect_core.backbones.load import Backbone
from defect_core.diffusion.attention import AttentionControl
from defect_core.diffusion.schedule import add_noise
from defect_core.generators.disentangled_inversion.config import DisentangledInversionConfig
from defect_core.generators.disentangled_inversion.denoiser import PromptEmbeddings
from defect_core.generators.disentangled_inversion.inversion import disentanglement_loss
from defect_core.generators.trained import freeze_in_half_precision
from defect_core.generators.views import LatentBank, to_denoiser
from defect_core.training.checkpoint import load_checkpoint, save_checkpoint
from defect_core.training.loop import Loss, TrainingConfig, train


def make_loss(
    backbone: Backbone,
    control: AttentionControl,
    config: DisentangledInversionConfig,
    prompts: PromptEmbeddings,
    bank: LatentBank,
) -> Loss:
    """Return the loss of one training step (eq. 5) as a function of the step and its generator.

    Args:
        backbone: the backbone whose U-Net is trained.
        control: control of the U-Net's cross-attention.
        config: the settings.
        prompts: text embeddings; `defect` has one row per defect type.
        bank: encoded views of the defects; its indices refer to the rows of `prompts.defect`.
    """
    denoiser = backbone.denoiser

    def loss(_step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(bank.latents), (config.batch_size,), generator=generator)
        noise = torch.randn(rows.shape + bank.latents.shape[1:], generator=generator)
        timesteps = torch.randint(len(backbone.alphas_cumprod), rows.shape, generator=generator)
        latents, mask = to_denoiser(backbone, bank.latents[rows]), to_denoiser(backbone, bank.masks[rows])
        noise = to_denoiser(backbone, noise)
        noised = add_noise(latents, noise, backbone.alphas_cumprod[timesteps])
        inside = torch.cat([prompts.defect[bank.defects[rows]], prompts.hole.expand(len(rows), -1, -1)])
        with control.regions(prompts.background, torch.cat([mask, mask])):
            # One call predicts both terms of eq. 5, because z_t^m = (1 − m)⊙z_t (eq. 6 and 7).
            output = denoiser(
                torch.cat([noised, (1 - mask) * noised]), to_denoiser(backbone, timesteps).repeat(2), inside
            )
        defect_noise, background_noise = output.sample.chunk(2)
        return disentanglement_loss(noise, defect_noise, background_noise, mask, config.balance)

    return loss


def fit_product(
    backbone: Backbone, loss: Loss, config: DisentangledInversionConfig, seed: int, work_dir: Path, label: str
) -> list[float]:
    """Fine-tune the U-Net with a loss, freeze it, and return the loss of every step; see `train`."""
    backbone.denoiser.requires_grad_(True)
    training = TrainingConfig(config.steps, config.learning_rate, config.weight_decay)
    losses = train(backbone.denoiser, loss, training, seed=seed, work_dir=work_dir, label=label)
    freeze_in_half_precision(backbone.denoiser)
    return losses


def fit_defect_unets(
    backbone: Backbone, losses: Mapping[str, Loss], config: DisentangledInversionConfig, seed: int, work_dir: Path
) -> tuple[dict[str, dict[str, Tensor]], list[float]]:
    """Fine-tune one U-Net per defect type, each from the weights of the backbone.

    A finished U-Net is kept in `work_dir`, so that a run that was killed does not train it again.

    Args:
        backbone: its U-Net has the weights of the last defect type afterwards.
        losses: defect type -> loss of a step.
        config: the settings; every U-Net is trained for `steps`.
        seed: of `train`, the same for every U-Net.
        work_dir: folder of the checkpoints.

    Returns:
        The weights of each U-Net in half precision on the CPU, and the losses of all steps, one U-Net after the other.
    """
    denoiser = backbone.denoiser
    initial = {name: tensor.detach().cpu().clone() for name, tensor in denoiser.state_dict().items()}
    unets: dict[str, dict[str, Tensor]] = {}
    values: list[float] = []
    for index, (defect, loss) in enumerate(losses.items()):
        folder = work_dir / f"unet_{index:02d}"
        finished = load_checkpoint(folder / "finished.safetensors", denoiser.state_dict())
        if finished is None:
            denoiser.load_state_dict(initial)
            fitted = fit_product(backbone, loss, config, seed, folder, f"fine-tuning a U-Net on {defect}")
            save_checkpoint(folder / "finished.safetensors", half_state(denoiser), losses=fitted)
        else:
            fitted = finished["losses"]
        unets[defect] = half_state(denoiser)
        values += fitted
    denoiser.requires_grad_(False)
    return unets, values


def half_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's weights in half precision on the CPU."""
    return {name: tensor.detach().cpu().half() for name, tensor in module.state_dict().items()}


def rows_of_defect(bank: LatentBank, defects: Sequence[str], defect: str) -> LatentBank:
    """Return the views of one defect type."""
    rows = bank.defects == defects.index(defect)
    return LatentBank(bank.latents[rows], bank.masks[rows], bank.defects[rows])
