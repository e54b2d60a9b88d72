"""DefectDiffu on a toy catalogue: what the losses, the dropped words and the guidance are for, all together."""

import pytest
import torch
from tiny_dit import CHANNELS, SIDE, TEXT_WIDTH, random

from defect_core.generators.defectdiffu.ancestral import chain_of
from defect_core.generators.defectdiffu.guidance import branches, draw
from defect_core.generators.defectdiffu.model import DefectDiT
from defect_core.generators.defectdiffu.text import HashedWords, encode_pairs
from defect_core.generators.defectdiffu.training import Weights, drop_words, total_loss

STEPS, BATCH = 110, 10
CHAIN = chain_of(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0))
PLAIN = {"plate": 0.5 * random(1, CHANNELS, SIDE, SIDE, seed=1), "disc": 0.5 * random(1, CHANNELS, SIDE, SIDE, seed=2)}


def _batch(generator):
    """Half `plate`, 60 % of them with a bright square of half the side; the rest `disc`, which never has one."""
    pairs, latents, masks = [], [], []
    for number in range(BATCH):
        product = ("plate", "disc")[number % 2]
        spotted = product == "plate" and float(torch.rand(1, generator=generator)) < 0.6
        mask = torch.zeros(1, SIDE, SIDE)
        if spotted:
            row, column = (2 * torch.randint(0, 3, (2,), generator=generator)).tolist()
            mask[:, row : row + 4, column : column + 4] = 1
        image = PLAIN[product][0] + 0.05 * torch.randn(CHANNELS, SIDE, SIDE, generator=generator)
        image[0] += 2 * mask[0]
        pairs.append((product, "spot" if spotted else "good"))
        latents.append(image)
        masks.append(mask)
    return torch.stack(latents), torch.stack(masks), pairs


@pytest.fixture(scope="module")
def learned():
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 6, "sample_size": SIDE}
        dit = DiTTransformer2DModel(in_channels=CHANNELS, out_channels=2 * CHANNELS, num_embeds_ada_norm=1, **sizes)
        model = DefectDiT(dit, TEXT_WIDTH).train()
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 15, max(0.05, (STEPS - step) / (0.5 * STEPS)))
        latents, masks, pairs = _batch(generator)
        conditions = encode_pairs(HashedWords(TEXT_WIDTH), drop_words(pairs, 0.2, 0.2, generator))
        times = torch.randint(1000, (BATCH,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        pictures = (2 * masks - 1).expand(-1, CHANNELS, -1, -1)
        loss = total_loss(model, CHAIN, latents, masks, pictures, conditions, times, noise, Weights(cap=5.0))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    return model.eval(), losses


def _draw(model, product, strength, count=12):
    """Mean change of the image, brightening, and share of the mask, for one strength."""
    generator = torch.Generator().manual_seed(9)
    words = [pair for pair in branches(product, "spot", "three_branch") for _ in range(count)]
    clean = PLAIN[product].expand(count, -1, -1, -1)
    noise = lambda: torch.randn(clean.shape, generator=generator)  # noqa: E731
    scales = torch.full((count,), strength)
    conditions = encode_pairs(HashedWords(TEXT_WIDTH), words)
    drawn = draw(model, CHAIN.respaced(10), clean, 7, noise, conditions, 1.0, scales, 2)
    change = drawn.image - clean
    return float(change.abs().mean()), float(change[:, 0].mean()), float((drawn.mask.mean(1) > 0).float().mean())


def test_the_loss_falls_by_more_than_half(learned):
    _, losses = learned
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


@pytest.mark.parametrize("product", ["plate", "disc"])
def test_strength_is_a_dial_also_on_a_product_that_never_had_the_defect(learned, product):
    changes, brightness, areas = zip(*(_draw(learned[0], product, s) for s in (0.0, 1.0, 2.0, 3.0, 4.0)), strict=True)
    assert list(changes) == sorted(changes) and list(brightness) == sorted(brightness)
    assert brightness[-1] > brightness[0] + 0.2
    assert list(areas[:3]) == sorted(areas[:3]) and areas[2] > areas[0]
