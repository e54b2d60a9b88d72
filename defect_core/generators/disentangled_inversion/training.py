"""Fine-tuning of the U-Net: the loss of a step, and one U-Net for a product or one for each of its defects."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from defect_core.backbones.load import Backbone
from defect_core.diffusion.attention import AttentionControl
from defect_core.diffusion.checkpointing import enable_gradient_checkpointing
from defect_core.diffusion.schedule import add_noise
from defect_core.generators.disentangled_inversion.config import DisentangledInversionConfig
from defect_core.generators.disentangled_inversion.denoiser import PromptEmbeddings
from defect_core.generators.disentangled_inversion.inversion import disentanglement_loss
from defect_core.generators.trained import freeze_in_half_precision
from defect_core.generators.views import LatentBank, to_denoiser
from defect_core.training.checkpoint import load_checkpoint, save_checkpoint
from defect_core.training.loop import Loss, TrainingConfig, train
from defect_core.training.precision import training_autocast


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

    def loss(_step: int, generator: torch.Generator) -> Iterator[Tensor]:
        rows = torch.randint(len(bank.latents), (config.batch_size,), generator=generator)
        noise = torch.randn(rows.shape + bank.latents.shape[1:], generator=generator)
        timesteps = torch.randint(len(backbone.alphas_cumprod), rows.shape, generator=generator)
        latents, mask = to_denoiser(backbone, bank.latents[rows]), to_denoiser(backbone, bank.masks[rows])
        noise = to_denoiser(backbone, noise)
        noised = add_noise(latents, noise, backbone.alphas_cumprod[timesteps])
        defect_prompts = prompts.defect[bank.defects[rows].to(prompts.defect.device)]
        for part in torch.arange(len(rows)).chunk(backbone.compute.accumulate):
            span = slice(int(part[0]), int(part[-1]) + 1)
            branches = predict_branches(
                backbone,
                control,
                prompts,
                defect_prompts[span],
                noised[span],
                to_denoiser(backbone, timesteps[span]),
                mask[span],
            )
            yield disentanglement_loss(noise[span], *branches, mask[span], config.balance, mask)

    return loss


def predict_branches(
    backbone: Backbone,
    control: AttentionControl,
    prompts: PromptEmbeddings,
    defect_prompts: Tensor,
    noised: Tensor,
    timesteps: Tensor,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return ε_θ(z_t, t, C_1) and ε_θ(z_t^m, t, C_2), [B, C, h, w] each, predicted in one call of the U-Net.

    That is possible because z_t^m = (1 − m)⊙z_t (eq. 6 and 7).

    Args:
        backbone: the backbone.
        control: control of the U-Net's cross-attention.
        prompts: text embeddings; C_bg and C_m are used.
        defect_prompts: C_def of each sample, [B, T, D].
        noised: z_t, [B, C, h, w].
        timesteps: int64 [B].
        mask: m, [B, 1, h, w].
    """
    inside = torch.cat([defect_prompts, prompts.hole.expand(len(noised), -1, -1)])
    with ExitStack() as stack:
        stack.enter_context(control.regions(prompts.background, torch.cat([mask, mask])))
        if backbone.device.type != "cpu" or backbone.compute.dtype != "auto":  # on a CPU, the embedded runs use float32
            stack.enter_context(training_autocast(backbone.device, backbone.latent_size, compute=backbone.compute))
        output = backbone.denoiser(torch.cat([noised, (1 - mask) * noised]), timesteps.repeat(2), inside)
    defect_noise, background_noise = output.sample.to(noised.dtype).chunk(2)
    return defect_noise, background_noise


def fit_product(
    backbone: Backbone, loss: Loss, config: DisentangledInversionConfig, seed: int, work_dir: Path, label: str
) -> list[float]:
    """Fine-tune the U-Net with a loss, freeze it, and return the loss of every step; see `train`."""
    backbone.denoiser.requires_grad_(True)
    if backbone.compute.gradient_checkpointing:
        enable_gradient_checkpointing(backbone.denoiser)
    training = TrainingConfig(
        config.steps,
        config.learning_rate,
        config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        schedule=config.schedule,
        moments=config.moments,
    )
    losses = train(
        backbone.denoiser, loss, training, seed=seed, work_dir=work_dir, label=label, compute=backbone.compute
    )
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
