"""Architecture of DefectDiffu on a tiny transformer."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from tiny_dit import (
    CHANNELS,
    SIDE,
    TEXT_WIDTH,
    TOKENS,
    plain_dit,
    random_conditions,
    random_latents,
    square_masks,
    tiny_model,
)

from defect_core.errors import InputError
from defect_core.generators.defectdiffu.model import DefectDiT
from defect_core.generators.defectdiffu.text import Conditions
from defect_core.training.precision import training_autocast

TIMESTEPS = torch.tensor([3, 700])


@pytest.fixture(scope="module")
def model() -> DefectDiT:
    return tiny_model()


@torch.no_grad()
def test_equal_conditions_without_cross_attention_give_the_plain_dit():
    plain, labels = plain_dit(), torch.tensor([1, 4])
    expected = plain(random_latents(), TIMESTEPS, labels).sample
    embedding = plain.transformer_blocks[0].norm1.emb.class_embedder(labels)
    output = tiny_model(zero_cross_attention=True).forward_embedded(random_latents(), TIMESTEPS, [embedding] * 3)
    assert torch.allclose(torch.cat([output.noise, output.variance], 1), expected, atol=1e-5)
    with_attention = tiny_model().forward_embedded(random_latents(), TIMESTEPS, [embedding] * 3)
    assert not torch.allclose(with_attention.noise, output.noise, atol=1e-3)


@torch.no_grad()
def test_attention_maps_sum_to_one_over_the_tokens(model):
    maps = model(random_latents(), TIMESTEPS, random_conditions()).attention_maps
    assert maps.shape == (2, 2, 4, TOKENS)
    assert torch.allclose(maps.sum(-1), torch.ones(2, 2, 4), atol=1e-5)
    assert torch.allclose(maps.sum(1).mean(1).sum(-1), torch.full((2,), 2.0), atol=1e-5)


@torch.no_grad()
def test_each_part_is_modulated_by_its_own_condition_only(model):
    def modulations(conditions):
        inputs = []
        layers = [block.norm1.linear for block in model.dit.transformer_blocks] + [model.dit.proj_out_1]
        hooks = [layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in layers]
        model(random_latents(), TIMESTEPS, conditions)
        for hook in hooks:
            hook.remove()
        return inputs

    before = modulations(random_conditions())
    for part, blocks in enumerate([{0, 1}, {2, 3}, {4, 5, 6}]):
        changed = list(random_conditions())
        changed[part] = changed[part] + 1
        after = modulations(Conditions(*changed))
        assert {i for i in range(7) if not torch.equal(before[i], after[i])} == blocks


@torch.no_grad()
def test_the_cross_attention_depends_on_the_defect_condition_only(model):
    inputs = []
    hooks = [layer.key.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in model.cross]
    conditions = random_conditions()
    model(random_latents(), TIMESTEPS, conditions)
    model(
        random_latents(),
        TIMESTEPS,
        conditions._replace(product=conditions.product + 1, fusion=conditions.fusion - 1),
    )
    for hook in hooks:
        hook.remove()
    assert torch.equal(inputs[0], inputs[2])
    assert torch.equal(inputs[1], inputs[3])


@pytest.mark.parametrize("side", [8, 16])
@torch.no_grad()
def test_the_mask_features_have_the_shape_of_the_latents(side):
    output = tiny_model(side)(random_latents(side=side), TIMESTEPS, random_conditions())
    assert output.mask.shape == output.noise.shape == output.variance.shape == (2, CHANNELS, side, side)


@torch.no_grad()
def test_unpatchify_inverts_the_patch_order(model):
    latents = torch.arange(2 * CHANNELS * SIDE * SIDE, dtype=torch.float32).reshape(2, CHANNELS, SIDE, SIDE)
    patches = latents.unfold(2, 2, 2).unfold(3, 2, 2)  # [B, C, rows, columns, 2, 2]
    tokens = patches.permute(0, 2, 3, 4, 5, 1).reshape(2, TOKENS, -1)
    assert torch.equal(model._unpatchify(tokens, latents.shape, CHANNELS), latents)


@pytest.mark.parametrize(
    "context", [nullcontext, partial(training_autocast, torch.device("cpu"))], ids=["float32", "training_autocast"]
)
def test_gradient_checkpointing_does_not_change_gradients(model, context):
    gradients = []
    for is_enabled in (False, True):
        model.gradient_checkpointing = is_enabled
        model.zero_grad()
        with context():
            mask = model(random_latents(), TIMESTEPS, random_conditions()).mask
        mask.float().square().mean().backward()
        gradients.append(model.cross[0].query.weight.grad.clone())
    model.gradient_checkpointing = False
    model.zero_grad()
    assert gradients[0].abs().max() > 0
    assert torch.allclose(*gradients, atol=1e-7)


@pytest.mark.parametrize("split", [(3, 3, 1), (0, 3, 3)])
def test_a_split_that_does_not_match_the_depth_is_refused(split):
    with pytest.raises(InputError, match="three numbers that add up to 6"):
        DefectDiT(plain_dit(), TEXT_WIDTH, split)


def test_a_configured_split_is_used():
    model = DefectDiT(plain_dit(), TEXT_WIDTH, (1, 3, 2))
    assert len(model.cross) == 3
    assert model(random_latents(), TIMESTEPS, random_conditions()).attention_maps.shape[1] == 3


@torch.no_grad()
def test_a_region_increases_the_attention_inside_it(model):
    region = square_masks(2, 4)
    plain = model(random_latents(), TIMESTEPS, random_conditions())
    with_region = model(random_latents(), TIMESTEPS, random_conditions(), region)
    inside = torch.nn.functional.max_pool2d(region, 2).flatten(1)[:, None, None]
    assert torch.allclose(with_region.attention_maps.sum(-1), torch.ones(2, 2, 4), atol=1e-5)
    assert ((with_region.attention_maps * inside).sum(-1) > (plain.attention_maps * inside).sum(-1)).all()
    assert not torch.allclose(with_region.noise, plain.noise, atol=1e-4)


@torch.no_grad()
def test_an_empty_region_does_not_change_the_output(model):
    plain = model(random_latents(), TIMESTEPS, random_conditions())
    empty = model(random_latents(), TIMESTEPS, random_conditions(), square_masks(0, 0))
    assert all(torch.equal(a, b) for a, b in zip(empty, plain, strict=True))
