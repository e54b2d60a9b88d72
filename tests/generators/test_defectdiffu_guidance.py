"""Double-free guidance and ancestral sampling of DefectDiffu on a tiny transformer."""

import math

import pytest
import torch
from tiny_dit import SIDE, TEXT_WIDTH, random_latents, random_tensor, square_masks, tiny_model

from defect_core.generators.defectdiffu.ancestral import LearnedVarianceSchedule
from defect_core.generators.defectdiffu.guidance import DoubleFreeGuidance, branch_conditions, sample_latents
from defect_core.generators.defectdiffu.model import DefectDiT
from defect_core.generators.defectdiffu.text import HashedTextEncoder, encode_conditions

ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
ENCODER = HashedTextEncoder(TEXT_WIDTH)
SCHEDULE = LearnedVarianceSchedule.from_alphas_cumprod(ALPHAS)
TIMESTEP = torch.tensor(300)


@pytest.fixture(scope="module")
def model() -> DefectDiT:
    return tiny_model()


class RecordingModel:
    """Calls a model and records its arguments."""

    def __init__(self, model):
        self.model = model

    def __call__(self, latents, timesteps, conditions, region=None):
        self.conditions, self.region = conditions, region
        return self.model(latents, timesteps, conditions, region)


class PerfectModel:
    """Predicts the exact noise between its input and one clean image; the mask is the number of the step."""

    def __init__(self, clean, schedule):
        self.model, self.clean, self.schedule, self.steps = tiny_model(), clean, schedule, []

    def __call__(self, latents, timesteps, conditions, region=None):
        step = int((self.schedule.timesteps == timesteps[0]).nonzero())
        self.steps.append(step)
        level = self.schedule.alphas_cumprod[step].float()
        clean = self.clean.repeat(len(latents) // len(self.clean), 1, 1, 1)
        noise = (latents - level.sqrt() * clean) / (1 - level).sqrt()
        output = self.model(latents, timesteps, conditions)
        return output._replace(noise=noise, variance=0 * noise - 1, mask=torch.full_like(noise, float(step)))


def _guidance(names, product_scale, strength, region=None):
    conditions = encode_conditions(ENCODER, [name for name in names for _ in range(2)])
    return DoubleFreeGuidance(conditions, product_scale, torch.full((2,), strength), region)


@torch.no_grad()
def _guided_noise(model, names, product_scale, strength):
    return _guidance(names, product_scale, strength).predict(model, random_latents(), TIMESTEP).noise


@torch.no_grad()
def _plain_noise(model, name):
    return model(random_latents(), TIMESTEP.expand(2), encode_conditions(ENCODER, [name] * 2)).noise


@torch.no_grad()
def test_the_region_is_given_to_the_defect_branch_only(model):
    recording, region = RecordingModel(model), square_masks(2, 4)
    guidance = _guidance(branch_conditions("a", "b", "three_branch"), 1.0, 1.0, region)
    guidance.predict(recording, random_latents(), TIMESTEP)
    assert torch.equal(recording.region, torch.cat([torch.zeros(4, 1, SIDE, SIDE), region]))


@pytest.mark.parametrize(
    ("guidance", "product_scale", "strength", "name"),
    [
        ("three_branch", 0.0, 0.0, ("", "good")),
        ("three_branch", 1.0, 0.0, ("screw", "good")),
        ("three_branch", 0.0, 1.0, ("", "scratch")),
        ("two_branch", 0.7, 0.0, ("screw", "good")),
        ("two_branch", 0.7, 1.0, ("screw", "scratch")),
    ],
)
def test_scales_of_zero_and_one_give_the_plain_predictions(model, guidance, product_scale, strength, name):
    names = branch_conditions("screw", "scratch", guidance)
    noise = _guided_noise(model, names, product_scale, strength)
    assert torch.allclose(noise, _plain_noise(model, name), atol=1e-5)


def test_the_prediction_is_affine_in_both_scales(model):
    names = branch_conditions("screw", "scratch", "three_branch")
    corners = {(p, d): _guided_noise(model, names, p, d) for p in (0.0, 2.0) for d in (0.0, 3.0)}
    assert torch.allclose(_guided_noise(model, names, 1.0, 1.5), sum(corners.values()) / 4, atol=1e-4)
    assert not torch.allclose(corners[0.0, 0.0], corners[0.0, 3.0], atol=1e-3)


def test_the_strength_has_no_effect_on_the_normal_condition(model):
    names = branch_conditions("screw", "good", "three_branch")
    assert torch.allclose(_guided_noise(model, names, 1.0, 0.0), _guided_noise(model, names, 1.0, 5.0), atol=1e-4)


def test_zero_shot_combines_the_target_product_and_the_source_defect(model):
    recording = RecordingModel(model)
    _guided_noise(recording, branch_conditions("flange", "snag", "three_branch"), 1.0, 1.0)
    product, defect = ENCODER(["a photo of flange", "a photo of snag"])
    assert torch.equal(recording.conditions.product[2], product)
    assert torch.equal(recording.conditions.defect[4], defect)
    assert (recording.conditions.product[[0, 1, 4, 5]] == 0).all()


def test_a_respaced_schedule_keeps_the_noise_levels_and_both_ends():
    respaced = SCHEDULE.respaced(50)
    assert respaced.steps == 50
    assert respaced.timesteps[[0, -1]].tolist() == [0, 999]
    assert torch.equal(respaced.alphas_cumprod, ALPHAS[respaced.timesteps])
    assert torch.allclose(torch.cumprod(1 - respaced.betas, 0), respaced.alphas_cumprod)
    assert torch.equal(SCHEDULE.respaced(1000).timesteps, torch.arange(1000))


def test_a_step_has_the_posterior_mean_and_the_learned_variance():
    schedule, step = SCHEDULE.respaced(50), 30
    clean, noise = random_latents().double(), random_latents(seed=9).double()
    level = schedule.alphas_cumprod[step]
    noised = level.sqrt() * clean + (1 - level).sqrt() * noise
    zeros, ones = torch.zeros_like(clean), torch.ones_like(clean)
    mean = schedule.previous_sample(noised, noise, zeros, step, zeros)
    assert torch.allclose(mean, schedule.posterior_mean(clean, noised, torch.tensor([step, step])))
    for variance, log_variances in zip((-1.0, 1.0), schedule.log_variance_bounds, strict=True):
        change = schedule.previous_sample(noised, noise, variance * ones, step, ones) - mean
        assert torch.allclose(change, (log_variances[step] / 2).exp() * ones)


def test_the_last_step_returns_the_predicted_clean_latents():
    schedule = SCHEDULE.respaced(50)
    noised, noise = random_latents().double(), random_latents(seed=9).double()
    ones, level = torch.ones_like(noised), schedule.alphas_cumprod[0]
    expected = (noised - (1 - level).sqrt() * noise) / level.sqrt()
    assert torch.allclose(schedule.previous_sample(noised, noise, ones, 0, ones), expected)


def test_the_posterior_is_the_product_of_two_gaussians():
    step = 400
    beta, prev = SCHEDULE.betas[step], SCHEDULE.alphas_cumprod_prev[step]
    # Bayes' rule for q(x_{t-1} | x_0) and q(x_t | x_{t-1}): the precisions add up.
    precision = 1 / (1 - prev) + (1 - beta) / beta
    clean, noised = torch.tensor([[1.3]], dtype=torch.float64), torch.tensor([[-0.4]], dtype=torch.float64)
    mean = (prev.sqrt() * clean / (1 - prev) + (1 - beta).sqrt() * noised / beta) / precision
    assert torch.allclose(SCHEDULE.posterior_mean(clean, noised, torch.tensor([step])), mean)
    assert math.exp(SCHEDULE.log_variance_bounds[0][step]) == pytest.approx(float(1 / precision))


@pytest.mark.parametrize(("start", "starts_from_image"), [(20, False), (12, True)])
def test_sampling_returns_the_clean_image_and_averages_the_last_masks(start, starts_from_image):
    schedule, clean = SCHEDULE.respaced(20), random_latents(seed=4)
    model = PerfectModel(clean, schedule)
    guidance = _guidance(branch_conditions("a", "b", "three_branch"), 1.0, 1.0)
    noises = iter(random_tensor(30, *clean.shape, seed=8))
    start_image = clean if starts_from_image else None
    sampled = sample_latents(model, schedule, guidance, lambda: next(noises), start, 5, start_image)
    assert model.steps == list(range(start - 1, -1, -1))
    assert torch.allclose(sampled.image, clean, atol=1e-3)
    assert torch.allclose(sampled.mask, torch.full_like(clean, 2.0))  # mean of steps 4, 3, 2, 1 and 0
