"""Disentangled DDIM inversion: the identities of the paper, on any network (brief §6.6)."""

import numpy as np
import pytest
import torch

from defect_core.backbones import load_backbone
from defect_core.diffusion.schedule import make_trajectory
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.composite import composite, paste
from defect_core.generators.disentangled_inversion.config import Config
from defect_core.generators.disentangled_inversion.generator import DisentangledInversion
from defect_core.generators.disentangled_inversion.inversion import draw, invert, masked_loss, sample_noise

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)


class ToyNoise:
    """A deterministic, non-local noise model: every output depends on the whole input, the time and the text."""

    def __init__(self, text: int) -> None:
        generator = torch.Generator().manual_seed(text)
        self.weights = torch.randn((4, 4), generator=generator, dtype=torch.float64) / 3

    def __call__(self, latents, time):
        mixed = torch.einsum("ij,bjhw->bihw", self.weights, latents)
        return torch.tanh(mixed + latents.mean((2, 3), keepdim=True) + 0.01 * time + 0.3 * latents.roll(1, 2))


@pytest.fixture
def scene():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((1, 4, 16, 16), generator=generator, dtype=torch.float64)
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    mask[..., 4:9, 5:12] = 1
    return latents, mask, make_trajectory(ALPHAS, 25)


def _noise(seed):
    return torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_both_forms_of_the_loss_are_equal():
    generator = torch.Generator().manual_seed(3)
    noise, inside, outside = torch.randn((3, 2, 4, 8, 8), generator=generator, dtype=torch.float64)
    mask = (torch.rand((2, 1, 8, 8), generator=generator) > 0.6).double()
    joined = ((noise - mask * inside - (1 - mask) * outside) ** 2).mean()
    assert torch.allclose(masked_loss(noise, inside, outside, mask, "area"), joined, atol=1e-12)


def test_each_half_of_the_loss_sees_only_its_region():
    noise, mask = torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., :2, :2] = 1
    for balance in ("area", "equal"):
        junk = torch.full_like(noise, 7.0)
        assert masked_loss(noise, (1 - mask) * junk, mask * junk, mask, balance) == 0
        assert masked_loss(noise, mask * junk, noise, mask, balance) > 0
        assert masked_loss(noise, noise, (1 - mask) * junk, mask, balance) > 0


def test_equal_balance_does_not_depend_on_the_mask_area():
    noise = torch.zeros(1, 4, 16, 16)
    values = []
    for side in (2, 8):
        mask = torch.zeros(1, 1, 16, 16)
        mask[..., :side, :side] = 1
        values.append(float(masked_loss(noise, torch.ones_like(noise), noise, mask, "equal")))
    assert values == pytest.approx([1.0, 1.0])


def test_an_empty_or_full_mask_gives_a_finite_loss():
    noise = torch.ones(1, 4, 8, 8)
    for mask in (torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)):
        assert torch.isfinite(masked_loss(noise, 0 * noise, 0 * noise, mask, "equal"))


def test_inversion_keeps_the_hole_at_zero(scene):
    latents, mask, trajectory = scene
    inverted = invert(latents, mask, ToyNoise(1), trajectory)
    assert all((mask * latent == 0).all() for latent in inverted.path)
    assert len(inverted.path) == len(inverted.noises) + 1
    assert all((mask * noise == 0).all() for noise in inverted.noises)


@pytest.mark.parametrize("mode", ["paper", "cached"])
def test_background_is_the_same_for_every_seed_and_text_and_the_defect_differs(scene, mode):
    latents, mask, trajectory = scene
    background = ToyNoise(1)
    inverted = invert(latents, mask, background, trajectory)
    again = background if mode == "paper" else None
    first = draw(inverted, mask, _noise(1), ToyNoise(2), again, trajectory)
    second = draw(inverted, mask, _noise(9), ToyNoise(3), again, trajectory)
    assert ((1 - mask) * (first - second)).abs().max() < 1e-12
    assert (mask * (first - second)).abs().max() > 1e-2


def test_cached_mode_returns_the_background_exactly(scene):
    latents, mask, trajectory = scene
    inverted = invert(latents, mask, ToyNoise(1), trajectory)
    drawn = draw(inverted, mask, _noise(1), ToyNoise(2), None, trajectory)
    assert ((1 - mask) * (drawn - latents)).abs().max() < 1e-10


def test_paper_mode_comes_closer_with_more_steps(scene):
    latents, mask, _ = scene
    errors = []
    for steps in (10, 100):
        trajectory = make_trajectory(ALPHAS, steps)
        inverted = invert(latents, mask, ToyNoise(1), trajectory)
        drawn = draw(inverted, mask, _noise(1), ToyNoise(2), ToyNoise(1), trajectory)
        errors.append(float(((1 - mask) * (drawn - latents)).abs().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_starting_from_an_example_keeps_the_background_and_comes_near_it_at_low_levels(scene):
    latents, mask, trajectory = scene
    example = _noise(7)
    inverted = invert(latents, mask, ToyNoise(1), trajectory)

    def walk(start):
        return draw(inverted, mask, _noise(1), lambda z, t: _noise(1), None, trajectory, example, start)

    for start in (1, 10, 25):
        assert ((1 - mask) * (walk(start) - latents)).abs().max() < 1e-10
        # the noise model returns the noise that was added, so the walk must come back to the example
        assert (mask * (walk(start) - example)).abs().max() < 1e-10


@pytest.mark.parametrize("mode", ["paper", "cached"])
def test_a_walk_from_a_lower_level_needs_the_inversion_only_so_far(scene, mode):
    latents, mask, trajectory = scene
    calls = []

    def background(latents, time):
        calls.append(float(time))
        return ToyNoise(1)(latents, time)

    again = background if mode == "paper" else None
    whole, part = (invert(latents, mask, background, trajectory, last) for last in (None, 10))
    assert len(calls) == 25 + 10 and len(part.path) == 11
    drawn = [draw(i, mask, _noise(1), ToyNoise(2), again, trajectory, _noise(7), 10) for i in (whole, part)]
    assert torch.equal(*drawn)


def test_an_empty_mask_reconstructs_and_a_full_mask_generates(scene):
    latents, mask, trajectory = scene
    nothing, everything = torch.zeros_like(mask), torch.ones_like(mask)
    kept = draw(invert(latents, nothing, ToyNoise(1), trajectory), nothing, _noise(1), ToyNoise(2), None, trajectory)
    assert (kept - latents).abs().max() < 1e-10
    other = latents.flip(-1)
    first, second = (
        draw(invert(z, everything, ToyNoise(1), trajectory), everything, _noise(1), ToyNoise(2), None, trajectory)
        for z in (latents, other)
    )
    assert torch.equal(first, second)


def test_the_true_noise_gives_back_the_background_in_one_step(scene):
    latents, mask, _ = scene
    trajectory = make_trajectory(ALPHAS, 1)
    true = _noise(4)
    inverted = invert(latents, mask, lambda z, t: true, trajectory)
    drawn = draw(inverted, mask, _noise(5), lambda z, t: true, lambda z, t: true, trajectory)
    assert ((1 - mask) * (drawn - latents)).abs().max() < 1e-12


def test_the_start_differs_from_the_inverted_background_by_noise_inside_the_mask_only(scene):
    latents, mask, trajectory = scene
    inverted = invert(latents, mask, ToyNoise(1), trajectory)
    seen = []

    def watch(z, t):
        seen.append(z.clone())
        return torch.zeros_like(z)

    draw(inverted, mask, _noise(6), watch, None, trajectory)
    assert torch.allclose(seen[0] - inverted.path[-1], mask * _noise(6))


def test_a_sample_does_not_depend_on_its_neighbours():
    together = sample_noise([5, 6, 7], (4, 8, 8))
    assert torch.equal(together[1], sample_noise([6], (4, 8, 8))[0])
    assert not torch.equal(together[0], together[1])


def test_what_the_autoencoder_cannot_hold_of_an_example_stays():
    """A short walk from a speckled patch ends near that patch, pasted; the autoencoder alone would lose it."""
    rng = np.random.default_rng(0)
    normal = np.full((64, 64, 3), 120, np.uint8)
    speckled = rng.choice(np.array([60, 180], np.uint8), (64, 64, 1)).repeat(3, -1)
    mask = np.zeros((64, 64), bool)
    mask[24:40, 20:44] = True
    source = Example("plate", "speck", speckled, mask, "0.png")
    request = SampleRequest("speck-0", "plate", "speck", 1, normal, mask, source=source, warped=speckled)
    pasted = composite(normal, paste(normal, speckled, mask, 0.0, 1.0), mask, 1.0).astype(float)

    def change(**settings):
        config = Config(start="example", refinement="none", min_side=64, **settings)
        drawn = DisentangledInversion(load_backbone("embedded"), config, "plate", ["speck"])
        (pair,) = drawn.sample([request])
        assert (pair.image[~mask] == normal[~mask]).all()
        return np.abs(pair.image - pasted)[mask].mean()

    short = change(start_level=0.04)
    assert short < 8 < change(start_level=0.04, residual=False)
    assert change(start_level=1.0) > 2 * short
