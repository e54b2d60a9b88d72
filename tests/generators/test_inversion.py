"""Disentangled DDIM inversion: the identities of the paper hold for any network."""

import numpy as np
import pytest
import torch

from defect_core.backbones.load import load_backbone
from defect_core.diffusion.schedule import make_trajectory
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.composite import composite, paste
from defect_core.generators.disentangled_inversion.config import DisentangledInversionConfig
from defect_core.generators.disentangled_inversion.generator import DisentangledInversion
from defect_core.generators.disentangled_inversion.inversion import (
    disentanglement_loss,
    invert_background,
    sample_defect,
)

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)


class ToyDenoiser:
    """A deterministic denoiser whose every output depends on the whole input, the timestep and the prompt."""

    def __init__(self, prompt: int) -> None:
        generator = torch.Generator().manual_seed(prompt)
        self.weights = torch.randn((4, 4), generator=generator, dtype=torch.float64) / 3

    def __call__(self, latents, timestep):
        mixed = torch.einsum("ij,bjhw->bihw", self.weights, latents)
        return torch.tanh(mixed + latents.mean((2, 3), keepdim=True) + 0.01 * timestep + 0.3 * latents.roll(1, 2))


@pytest.fixture
def latents():
    return torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def mask():
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    mask[..., 4:9, 5:12] = 1
    return mask


@pytest.fixture
def trajectory():
    return make_trajectory(ALPHAS, 25)


def _noise(seed):
    return torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _invert_and_sample(latents, mask, trajectory):
    """Return a sample that reuses the noise of the inversion."""
    inversion = invert_background(latents, mask, ToyDenoiser(1), trajectory)
    return sample_defect(inversion, mask, _noise(1), ToyDenoiser(2), None, trajectory)


def test_both_forms_of_the_loss_are_equal():
    generator = torch.Generator().manual_seed(3)
    noise, inside, outside = torch.randn((3, 2, 4, 8, 8), generator=generator, dtype=torch.float64)
    mask = (torch.rand((2, 1, 8, 8), generator=generator) > 0.6).double()
    second_form = ((noise - mask * inside - (1 - mask) * outside) ** 2).mean()
    assert torch.allclose(disentanglement_loss(noise, inside, outside, mask, "area"), second_form, atol=1e-12)


@pytest.mark.parametrize("balance", ["area", "equal"])
def test_each_term_of_the_loss_depends_on_its_region_only(balance):
    noise, mask = torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., :2, :2] = 1
    wrong = torch.full_like(noise, 7.0)
    assert disentanglement_loss(noise, (1 - mask) * wrong, mask * wrong, mask, balance) == 0
    assert disentanglement_loss(noise, mask * wrong, noise, mask, balance) > 0
    assert disentanglement_loss(noise, noise, (1 - mask) * wrong, mask, balance) > 0


@pytest.mark.parametrize("side", [2, 8])
def test_equal_balance_does_not_depend_on_the_mask_area(side):
    noise, mask = torch.zeros(1, 4, 16, 16), torch.zeros(1, 1, 16, 16)
    mask[..., :side, :side] = 1
    loss = disentanglement_loss(noise, torch.ones_like(noise), noise, mask, "equal")
    assert float(loss) == pytest.approx(1.0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_empty_or_full_mask_gives_a_finite_loss(value):
    noise, mask = torch.ones(1, 4, 8, 8), torch.full((1, 1, 8, 8), value)
    assert torch.isfinite(disentanglement_loss(noise, 0 * noise, 0 * noise, mask, "equal"))


def test_the_inversion_is_zero_inside_the_mask(latents, mask, trajectory):
    inversion = invert_background(latents, mask, ToyDenoiser(1), trajectory)
    assert len(inversion.latents) == len(inversion.noises) + 1
    assert all((mask * tensor == 0).all() for tensor in (*inversion.latents, *inversion.noises))


@pytest.mark.parametrize("mode", ["paper", "cached"])
def test_the_background_does_not_depend_on_seed_and_defect_prompt(latents, mask, trajectory, mode):
    denoiser = ToyDenoiser(1)
    inversion = invert_background(latents, mask, denoiser, trajectory)
    background = denoiser if mode == "paper" else None
    first = sample_defect(inversion, mask, _noise(1), ToyDenoiser(2), background, trajectory)
    second = sample_defect(inversion, mask, _noise(9), ToyDenoiser(3), background, trajectory)
    assert ((1 - mask) * (first - second)).abs().max() < 1e-12
    assert (mask * (first - second)).abs().max() > 1e-2


def test_cached_mode_reconstructs_the_background_exactly(latents, mask, trajectory):
    sampled = _invert_and_sample(latents, mask, trajectory)
    assert ((1 - mask) * (sampled - latents)).abs().max() < 1e-10


def test_paper_mode_reconstructs_better_with_more_steps(latents, mask):
    errors = []
    for steps in (10, 100):
        trajectory = make_trajectory(ALPHAS, steps)
        inversion = invert_background(latents, mask, ToyDenoiser(1), trajectory)
        sampled = sample_defect(inversion, mask, _noise(1), ToyDenoiser(2), ToyDenoiser(1), trajectory)
        errors.append(float(((1 - mask) * (sampled - latents)).abs().mean()))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("start", [1, 10, 25])
def test_an_example_is_reconstructed_when_its_noise_is_predicted(latents, mask, trajectory, start):
    example, noise = _noise(7), _noise(1)
    inversion = invert_background(latents, mask, ToyDenoiser(1), trajectory)
    sampled = sample_defect(inversion, mask, noise, lambda z, t: noise, None, trajectory, example, start)
    assert ((1 - mask) * (sampled - latents)).abs().max() < 1e-10
    assert (mask * (sampled - example)).abs().max() < 1e-10


@pytest.mark.parametrize("mode", ["paper", "cached"])
def test_the_inversion_is_needed_up_to_the_start_level_only(latents, mask, trajectory, mode):
    timesteps = []

    def denoiser(latents, timestep):
        timesteps.append(float(timestep))
        return ToyDenoiser(1)(latents, timestep)

    background = denoiser if mode == "paper" else None
    full, partial = (invert_background(latents, mask, denoiser, trajectory, last) for last in (None, 10))
    assert len(timesteps) == 25 + 10
    assert len(partial.latents) == 11
    samples = [
        sample_defect(inversion, mask, _noise(1), ToyDenoiser(2), background, trajectory, _noise(7), 10)
        for inversion in (full, partial)
    ]
    assert torch.equal(*samples)


def test_an_empty_mask_reconstructs_the_image(latents, mask, trajectory):
    sampled = _invert_and_sample(latents, torch.zeros_like(mask), trajectory)
    assert (sampled - latents).abs().max() < 1e-10


def test_a_full_mask_does_not_depend_on_the_image(latents, mask, trajectory):
    full = torch.ones_like(mask)
    first, second = (_invert_and_sample(z, full, trajectory) for z in (latents, latents.flip(-1)))
    assert torch.equal(first, second)


def test_the_true_noise_reconstructs_the_background_in_one_step(latents, mask):
    trajectory, true_noise = make_trajectory(ALPHAS, 1), _noise(4)
    inversion = invert_background(latents, mask, lambda z, t: true_noise, trajectory)
    sampled = sample_defect(inversion, mask, _noise(5), lambda z, t: true_noise, lambda z, t: true_noise, trajectory)
    assert ((1 - mask) * (sampled - latents)).abs().max() < 1e-12


def test_sampling_starts_from_the_inversion_plus_noise_inside_the_mask(latents, mask, trajectory):
    inversion = invert_background(latents, mask, ToyDenoiser(1), trajectory)
    inputs = []

    def denoiser(latents, timestep):
        inputs.append(latents.clone())
        return torch.zeros_like(latents)

    sample_defect(inversion, mask, _noise(6), denoiser, None, trajectory)
    assert torch.allclose(inputs[0] - inversion.latents[-1], mask * _noise(6))


def test_residual_keeps_the_details_of_an_example():
    """The VAE cannot reproduce a speckled patch; `residual` adds the change to the pixels of the example."""
    rng = np.random.default_rng(0)
    normal = np.full((64, 64, 3), 120, np.uint8)
    speckled = rng.choice(np.array([60, 180], np.uint8), (64, 64, 1)).repeat(3, -1)
    mask = np.zeros((64, 64), bool)
    mask[24:40, 20:44] = True
    source = Example("plate", "speck", speckled, mask, "0.png")
    request = SampleRequest("speck-0", "plate", "speck", 1, normal, mask, source=source, warped=speckled)
    pasted = composite(normal, paste(normal, speckled, mask, 0.0, 1.0), mask, 1.0).astype(float)

    def difference_to_pasted(**settings):
        config = DisentangledInversionConfig(start="example", refinement="none", min_side=64, **settings)
        generator = DisentangledInversion(load_backbone("embedded"), config, "plate", ["speck"])
        (pair,) = generator.sample([request])
        assert (pair.image[~mask] == normal[~mask]).all()
        return np.abs(pair.image - pasted)[mask].mean()

    short = difference_to_pasted(start_level=0.04)
    assert short < 8 < difference_to_pasted(start_level=0.04, residual=False)
    assert difference_to_pasted(start_level=1.0) > 2 * short
