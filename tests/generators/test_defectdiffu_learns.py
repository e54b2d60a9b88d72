"""DefectDiffu on a toy catalogue: losses, condition dropout and guidance work together."""

import pytest
import torch
from tiny_dit import CHANNELS, SIDE, TEXT_WIDTH, random_latents

from defect_core.generators.defectdiffu.ancestral import LearnedVarianceSchedule
from defect_core.generators.defectdiffu.guidance import DoubleFreeGuidance, branch_conditions, sample_latents
from defect_core.generators.defectdiffu.losses import LossWeights, TrainingBatch, training_loss
from defect_core.generators.defectdiffu.model import DefectDiT
from defect_core.generators.defectdiffu.text import HashedTextEncoder, drop_conditions, encode_conditions

STEPS, BATCH_SIZE, LEARNING_RATE = 110, 10, 3e-3
ENCODER = HashedTextEncoder(TEXT_WIDTH)
SCHEDULE = LearnedVarianceSchedule.from_alphas_cumprod(
    torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
)
NORMAL = {"plate": 0.5 * random_latents(1, seed=1), "disc": 0.5 * random_latents(1, seed=2)}


def _make_batch(generator):
    """Return a batch in which 60 % of the plates have a bright square and the discs never have one."""
    names, latents, masks = [], [], []
    for index in range(BATCH_SIZE):
        product = ("plate", "disc")[index % 2]
        has_spot = product == "plate" and float(torch.rand(1, generator=generator)) < 0.6
        mask = torch.zeros(1, SIDE, SIDE)
        if has_spot:
            row, column = (2 * torch.randint(0, 3, (2,), generator=generator)).tolist()
            mask[:, row : row + 4, column : column + 4] = 1
        image = NORMAL[product][0] + 0.05 * torch.randn(CHANNELS, SIDE, SIDE, generator=generator)
        image[0] += 2 * mask[0]
        names.append((product, "spot" if has_spot else "good"))
        latents.append(image)
        masks.append(mask)
    latents, masks = torch.stack(latents), torch.stack(masks)
    conditions = encode_conditions(ENCODER, drop_conditions(names, 0.2, 0.2, generator))
    timesteps = torch.randint(1000, (BATCH_SIZE,), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    mask_latents = (2 * masks - 1).expand(-1, CHANNELS, -1, -1)
    return TrainingBatch(latents, masks, mask_latents, conditions, timesteps, noise)


@pytest.fixture(scope="module")
def trained():
    """A trained tiny model and its losses."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 6, "sample_size": SIDE}
        dit = DiTTransformer2DModel(in_channels=CHANNELS, out_channels=2 * CHANNELS, num_embeds_ada_norm=1, **sizes)
        model = DefectDiT(dit, TEXT_WIDTH).train()
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE), []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 15, max(0.05, (STEPS - step) / (0.5 * STEPS)))
        batch = _make_batch(torch.Generator().manual_seed(step))
        loss = training_loss(model, SCHEDULE, batch, LossWeights(cap=5.0))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return model.eval(), losses


def _measure_sample(model, product, strength, count=12):
    """Return mean absolute change, mean brightening and mask fraction of samples with one strength."""
    generator = torch.Generator().manual_seed(9)
    names = [name for name in branch_conditions(product, "spot", "three_branch") for _ in range(count)]
    guidance = DoubleFreeGuidance(encode_conditions(ENCODER, names), 1.0, torch.full((count,), strength))
    normal = NORMAL[product].expand(count, -1, -1, -1)
    sampled = sample_latents(
        model, SCHEDULE.respaced(10), guidance, lambda: torch.randn(normal.shape, generator=generator), 7, 2, normal
    )
    change = sampled.image - normal
    return float(change.abs().mean()), float(change[:, 0].mean()), float((sampled.mask.mean(1) > 0).float().mean())


def test_the_loss_decreases_by_more_than_half(trained):
    _, losses = trained
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


@pytest.mark.parametrize("product", ["plate", "disc"])
def test_strength_controls_the_defect_on_seen_and_unseen_products(trained, product):
    measured = [_measure_sample(trained[0], product, strength) for strength in (0.0, 1.0, 2.0, 3.0, 4.0)]
    changes, brightness, areas = (list(values) for values in zip(*measured, strict=True))
    assert changes == sorted(changes)
    assert brightness == sorted(brightness)
    assert brightness[-1] > brightness[0] + 0.2
    assert areas[:3] == sorted(areas[:3])
    assert areas[2] > areas[0]
