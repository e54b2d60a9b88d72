"""Losses, conditions and condition dropout of DefectDiffu on a tiny transformer."""

import math

import pytest
import torch
from tiny_dit import (
    SIDE,
    TOKENS,
    random_conditions,
    random_latents,
    random_tensor,
    square_masks,
    tiny_model,
)

from defect_core.generators.defectdiffu.ancestral import LearnedVarianceSchedule
from defect_core.generators.defectdiffu.losses import (
    LossWeights,
    TrainingBatch,
    adaptive_loss_ratio,
    attention_ratio,
    remove_logit_bias,
    training_loss,
    variational_bound,
)
from defect_core.generators.defectdiffu.model import DefectDiT, Prediction, region_logit_bias
from defect_core.generators.defectdiffu.text import HashedTextEncoder, drop_conditions, encode_conditions

ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
SCHEDULE = LearnedVarianceSchedule.from_alphas_cumprod(ALPHAS)
TIMESTEPS = torch.tensor([50, 700])
# The embedded weights were trained with these signs of the direction of "scratch".
SCRATCH_SIGNS = [False, True, False, False, True, True, False, False]


@pytest.fixture(scope="module")
def model() -> DefectDiT:
    return tiny_model()


def _random_maps(seed=0):
    return random_tensor(2, 2, 4, TOKENS, seed=seed).softmax(-1)


def _random_noise():
    return random_latents(seed=3)


def _add_noise(latents, noise):
    level = ALPHAS[TIMESTEPS].to(latents)[:, None, None, None]
    return level.sqrt() * latents + (1 - level).sqrt() * noise


def _loss(model, masks, weights, mask_latents=None):
    latents = random_latents()
    targets = latents if mask_latents is None else mask_latents
    batch = TrainingBatch(latents, masks, targets, random_conditions(), TIMESTEPS, _random_noise())
    return training_loss(model, SCHEDULE, batch, weights)


@pytest.mark.parametrize("seed", range(5))
def test_the_adaptive_loss_ratio_is_clamped_to_2_and_8(seed):
    maps, masks = _random_maps(seed), square_masks(2, 4)
    masks[0] = (random_tensor(1, SIDE, SIDE, seed=seed) > 1.5).float()
    raw, clamped = attention_ratio(maps, masks, 1e-3), adaptive_loss_ratio(maps, masks, 1e-3)
    assert ((clamped >= 2) & (clamped <= 8)).all()
    is_inside = (raw > 2) & (raw < 8)
    assert is_inside.any()
    assert torch.equal(clamped[is_inside], raw[is_inside])


def test_the_attention_ratio_divides_outside_by_inside():
    maps = torch.full((1, 2, 4, TOKENS), 1 / TOKENS)
    # A 4 x 4 square covers 4 of the 16 tokens: 12 / 4.
    assert float(attention_ratio(maps, square_masks(4), 0.0)) == pytest.approx(3.0)
    # One cell is enough to mark its token: 15 / 1.
    assert float(attention_ratio(maps, square_masks(1), 0.0)) == pytest.approx(15.0)


def test_the_attention_ratio_does_not_depend_on_the_scale_of_the_map():
    maps, masks = _random_maps(), square_masks(2, 4)
    assert torch.allclose(attention_ratio(100 * maps, masks, 1e-9), attention_ratio(maps, masks, 1e-9), rtol=1e-4)


def test_the_adaptive_loss_ratio_is_2_for_a_full_and_8_for_an_empty_mask():
    assert adaptive_loss_ratio(_random_maps(), square_masks(SIDE, 0), 1e-3).tolist() == [2, 8]


@torch.no_grad()
def test_the_defect_loss_is_zero_for_an_empty_mask(model):
    weights = LossWeights(mask=0, variance=0)
    empty, square = _loss(model, square_masks(0, 0), weights), _loss(model, square_masks(4, 4), weights)
    full = _loss(model, square_masks(SIDE, SIDE), weights)
    assert square > empty
    assert float(full) == pytest.approx(3 * float(empty), rel=1e-5)  # R is 2 for a full mask.


def test_detach_ratio_stops_the_gradient_to_the_attention():
    gradients = []
    for detach_ratio in (True, False):
        # With zero output layers, the attention maps affect the loss through the ratio only.
        model = tiny_model(zero_cross_attention=True)
        weights = LossWeights(mask=0, variance=0, detach_ratio=detach_ratio)
        _loss(model, square_masks(2, 3), weights).backward()
        gradients.append(float(model.cross[0].query.weight.grad.abs().max()))
    assert gradients[0] == 0
    assert gradients[1] > 0


@torch.no_grad()
def test_the_ratio_uses_the_attention_without_the_region():
    model, region = tiny_model(zero_cross_attention=True), square_masks(2, 4)
    plain = model(random_latents(), TIMESTEPS, random_conditions()).attention_maps
    biased = model(random_latents(), TIMESTEPS, random_conditions(), region).attention_maps
    assert torch.allclose(remove_logit_bias(biased, region_logit_bias(region, 2)), plain, atol=1e-5)
    assert not torch.allclose(biased, plain, atol=1e-2)


@torch.no_grad()
def test_the_mask_loss_is_zero_at_the_target(model):
    noised = _add_noise(random_latents(), _random_noise())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target = model(noised, TIMESTEPS, random_conditions()).mask.float()
    masks = square_masks(0, 0)
    without, at_target = (_loss(model, masks, LossWeights(mask=w, variance=0), target) for w in (0, 10))
    away = _loss(model, masks, LossWeights(mask=10, variance=0), target + 1)
    assert float(at_target - without) == pytest.approx(0, abs=1e-3)
    assert float(away - without) == pytest.approx(10, rel=1e-2)


def test_the_variational_bound_is_zero_at_the_true_posterior():
    latents, noise = random_latents().double(), _random_noise().double()
    true = Prediction(noise, torch.full_like(noise, -1.0), noise, noise)
    bound = variational_bound(SCHEDULE, latents, _add_noise(latents, noise), true, TIMESTEPS)
    assert bound.abs().max() < 1e-9


def test_the_variational_bound_trains_the_variance_only():
    latents, noise = random_latents().double(), _random_noise().double()
    noised = _add_noise(latents, noise)
    variance = torch.full_like(noise, 0.5).requires_grad_(True)
    noise.requires_grad_(True)
    bound = variational_bound(SCHEDULE, latents, noised, Prediction(noise, variance, noise, noise), TIMESTEPS).sum()
    bound.backward()
    assert bound > 0
    assert noise.grad is None
    assert variance.grad.abs().max() > 0


def test_the_variational_bound_is_the_kl_divergence_of_two_gaussians():
    latents, noise = random_latents().double(), _random_noise().double()
    noised = _add_noise(latents, noise)
    prediction = Prediction(0.5 * noise, torch.tanh(noised), noise, noise)
    log_variances = (
        SCHEDULE.log_variance_bounds[0][TIMESTEPS].view(-1, 1, 1, 1),
        SCHEDULE.log_variance(prediction.variance, TIMESTEPS),
    )
    stds = [(0.5 * log_variance).exp() for log_variance in log_variances]
    level = ALPHAS[TIMESTEPS][:, None, None, None]
    pred_latents = (noised - (1 - level).sqrt() * prediction.noise) / level.sqrt()
    posterior = torch.distributions.Normal(SCHEDULE.posterior_mean(latents, noised, TIMESTEPS), stds[0])
    step = torch.distributions.Normal(SCHEDULE.posterior_mean(pred_latents, noised, TIMESTEPS), stds[1])
    expected = torch.distributions.kl_divergence(posterior, step).flatten(1).mean(1) / math.log(2)
    assert torch.allclose(variational_bound(SCHEDULE, latents, noised, prediction, TIMESTEPS), expected, rtol=1e-6)


@torch.no_grad()
def test_the_weight_of_the_noise_loss_is_capped(model):
    weights = [LossWeights(mask=0, variance=0, cap=cap) for cap in (1.0, 1.01)]
    unweighted, capped = (_loss(model, square_masks(0, 0), one) for one in weights)
    # 1 / alpha_bar is near 1.01 at timestep 50 and above it at timestep 700.
    assert 1 < float(capped / unweighted) <= 1.01 + 1e-6


def test_conditions_are_dropped_with_the_given_probabilities():
    names = [("screw", "scratch"), ("screw", "good")] * 4000
    dropped = drop_conditions(names, 0.2, 0.2, torch.Generator().manual_seed(0))
    defective = dropped[::2]
    fractions = {name: defective.count(name) / len(defective) for name in set(defective)}
    assert sum(product == "" for product, _ in dropped) / len(dropped) == pytest.approx(0.2, abs=0.02)
    assert fractions["screw", "good"] + fractions["", "good"] == pytest.approx(0.2, abs=0.02)
    assert fractions["", "scratch"] == pytest.approx(0.2 * 0.8, abs=0.02)  # the branch (c_d, ∅) of eq. 4
    assert {product for product, _ in dropped} == {"", "screw"}


def test_condition_dropout_never_makes_a_normal_image_defective():
    dropped = drop_conditions([("screw", "good")] * 1000, 0.2, 0.2, torch.Generator().manual_seed(0))
    assert {defect for _, defect in dropped} == {"good"}


def test_hashed_text_has_one_direction_per_word():
    encoder = HashedTextEncoder()
    first, again, other, both = encoder(
        ["a photo of scratch", "a photo of a scratch", "a photo of dent", "a photo of scratch dent"]
    )
    assert torch.equal(first, again)
    assert abs(float(first @ other)) < 0.5
    assert float(first @ both) > 0.5
    assert float(other @ both) > 0.5
    assert float(both.norm()) == pytest.approx(1)
    assert torch.equal(encoder([""])[0], torch.zeros(encoder.width))


def test_the_direction_of_a_hashed_word_is_fixed():
    assert (HashedTextEncoder()(["scratch"])[0, :8] > 0).tolist() == SCRATCH_SIGNS


def test_the_fusion_prompt_contains_the_remaining_names_only():
    conditions = encode_conditions(HashedTextEncoder(), [("", "scratch"), ("screw", "good"), ("screw", "scratch")])
    assert torch.equal(conditions.fusion[0], conditions.defect[0])
    assert torch.equal(conditions.defect[0], conditions.defect[2])
    assert torch.equal(conditions.product[0], torch.zeros(HashedTextEncoder().width))
    assert not torch.equal(conditions.fusion[1], conditions.fusion[2])
