"""AnomalyDiffusion: re-weighting, blended sampling, mask rules and spatial encoder on known inputs."""

import numpy as np
import pytest
import torch
from tiny_unet import tiny_backbone

from defect_core.diffusion.attention import control_attention
from defect_core.diffusion.samplers import NoiseStream
from defect_core.diffusion.schedule import add_noise, make_trajectory
from defect_core.generators.anomaly_diffusion import sampling
from defect_core.generators.anomaly_diffusion.config import EncoderConfig
from defect_core.generators.anomaly_diffusion.encoder import SpatialEncoder
from defect_core.generators.anomaly_diffusion.mask_model import is_valid_mask, move_mask
from defect_core.generators.anomaly_diffusion.reweighting import (
    MAX_LATENT_WEIGHT,
    adaptive_scaling_softmax,
    dilate_latent_mask,
    dilation_radius,
    latent_weights,
    masked_average_pool,
)
from defect_core.generators.anomaly_diffusion.sampling import NormalCanvases, Reweighting, sample_blended
from defect_core.generators.base import Example
from defect_core.generators.canvas import Window
from defect_core.generators.views import augment_examples

SEEDS = [3, 4]


def _disc(side=16, centre=(7, 8), radius=4):
    rows, columns = np.mgrid[:side, :side]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def _mask(*shapes):
    return torch.from_numpy(np.stack(shapes)).float()[:, None]


def _images(side=16, batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.rand((2, batch, 3, side, side), generator=generator) * 2 - 1


# adaptive scaling softmax (paper eq. 7)


def test_the_weights_sum_to_the_area_of_the_mask_and_are_0_outside():
    normal, predicted = _images()
    mask = _mask(_disc(), _disc(radius=2))
    weights = adaptive_scaling_softmax(normal, predicted, mask, 0.05)
    assert torch.allclose(weights.sum((1, 2, 3)), mask.sum((1, 2, 3)), rtol=1e-4)
    assert (weights[mask == 0] == 0).all() and (weights[mask == 1] > 0).any()


def test_a_smaller_difference_gets_a_larger_weight():
    normal, mask = torch.zeros(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
    predicted = torch.linspace(0.5, 1.0, 256).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    weights = adaptive_scaling_softmax(normal, predicted, mask, 1e-3).flatten()
    assert (weights.diff() < 0).all()


def test_equal_differences_give_the_weight_1_inside_the_mask():
    normal, mask = _images()[0], _mask(_disc(), _disc(radius=2))
    weights = adaptive_scaling_softmax(normal, normal + 0.7, mask, 1e-3)
    assert torch.allclose(weights, mask, atol=1e-4)


@pytest.mark.parametrize("least", [1e-8, 0.5])
def test_weights_are_finite_without_a_difference_or_a_mask(least):
    normal, predicted = _images()
    predicted = torch.where(_mask(_disc(radius=2), _disc(radius=2)) > 0, normal, predicted)
    for mask in (_mask(_disc(), _disc()), torch.zeros(2, 1, 16, 16)):
        weights = adaptive_scaling_softmax(normal, predicted, mask, least)
        assert torch.isfinite(weights).all()
        assert torch.allclose(weights.sum((1, 2, 3)), mask.sum((1, 2, 3)), rtol=1e-4)


def test_pooled_weights_are_means_over_the_mask():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 5] = 1
    at_4 = masked_average_pool(mask * 1.0, mask)(4)
    assert torch.allclose(at_4[..., 1], torch.ones(1, 1, 4)) and (at_4[..., [0, 2, 3]] == 0).all()
    halves = masked_average_pool(torch.linspace(0, 1, 256).view(1, 1, 16, 16), torch.ones(1, 1, 16, 16))(2)
    assert float(halves.mean()) == pytest.approx(0.5, abs=1e-5)


# weights of the public code


def test_latent_weights_are_1_to_1_5_inside_and_1_outside_the_mask():
    generator = torch.Generator().manual_seed(0)
    noisy, normal = torch.randn((2, 2, 4, 16, 16), generator=generator)
    mask = _mask(_disc(), _disc(radius=2))
    weights = latent_weights(noisy, normal, mask)
    assert (weights >= 1).all() and (weights <= MAX_LATENT_WEIGHT).all() and MAX_LATENT_WEIGHT == 1.5
    assert (weights[mask == 0] == 1).all()
    inside = weights[mask == 1]
    assert (inside == MAX_LATENT_WEIGHT).any() and (inside == 1).any()
    for sample in range(2):
        within = mask[sample] == 1
        inside, change = weights[sample][within], (noisy - normal)[sample].square().mean(0, keepdim=True)[within]
        assert (inside[change.argsort()].diff() <= 0).all()


def test_latent_weights_are_finite_without_a_difference_or_a_mask():
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    assert (latent_weights(latents, latents, torch.zeros(1, 1, 8, 8)) == 1).all()
    assert torch.isfinite(latent_weights(latents, latents, torch.ones(1, 1, 8, 8))).all()


def test_the_dilation_radius_decreases_as_in_the_public_code():
    times = (999, 900, 500, 200, 100, 25, 24)
    assert [dilation_radius(time) for time in times] == [8, 8, 4, 2, 1, 1, 0]


def test_a_latent_mask_is_dilated_by_the_radius_in_every_direction():
    mask = torch.zeros(1, 1, 9, 9)
    mask[..., 4, 4] = 1
    grown = dilate_latent_mask(mask, 2)
    expected = torch.zeros(9, 9)
    expected[2:7, 2:7] = 1
    assert torch.equal(grown[0, 0], expected)
    assert torch.equal(dilate_latent_mask(mask, 0), mask)


# blended sampling (paper eq. 1)


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture
def normal(backbone):
    images = _images(64)[0]
    mask = torch.zeros(2, 1, 64, 64)
    mask[0, :, 16:40, 24:40] = 1
    mask[1, :, 40:42, 8:50] = 1
    latent_masks = torch.nn.functional.max_pool2d(mask, 8)
    with torch.no_grad():
        return NormalCanvases(images, mask, backbone.encode(images), latent_masks)


def _stream(normal):
    return NoiseStream(SEEDS, normal.latents.shape[1:])


def _sample(backbone, normal, mode, eta=1.0):
    text = torch.randn((2, 24, 32), generator=torch.Generator().manual_seed(5))
    tokens = torch.zeros(2, 24, dtype=torch.bool)
    tokens[:, 3:9] = True
    reweighting = None
    if mode != "off":
        reweighting = Reweighting(mode, control_attention(backbone.denoiser), tokens, backbone.decode, 0.1)
    calls = []

    def predict(latents, time):
        calls.append((latents.clone(), int(time)))
        return backbone.denoiser(latents, time, text).sample

    trajectory = make_trajectory(backbone.alphas_cumprod, 4)
    with torch.no_grad():
        latents = sample_blended(normal, predict, trajectory, _stream(normal), eta, reweighting)
    return latents, calls, trajectory


@pytest.mark.parametrize("mode", ["off", "paper", "official"])
def test_the_denoiser_receives_the_noised_normal_latent_outside_the_mask(backbone, normal, mode):
    _, calls, trajectory = _sample(backbone, normal, mode)
    stream = _stream(normal)
    stream()
    assert [time for _, time in calls] == trajectory.timesteps[1:].flip(0).tolist()
    for latents, time in calls:
        alphas_cumprod = trajectory.alphas_cumprod[trajectory.timesteps.tolist().index(time)]
        expected = add_noise(normal.latents, stream(), alphas_cumprod.expand(2))
        latent_masks = (
            dilate_latent_mask(normal.latent_masks, dilation_radius(time, 2))
            if mode == "official"
            else normal.latent_masks
        )
        outside = (latent_masks == 0).expand_as(latents)
        assert torch.equal(latents[outside], expected[outside])
        assert (latents[~outside] != expected[~outside]).all()
        stream()


def test_the_result_is_the_clean_normal_latent_outside_the_mask(backbone, normal):
    latents, *_ = _sample(backbone, normal, "paper")
    outside = (normal.latent_masks == 0).expand_as(latents)
    assert torch.equal(latents[outside], normal.latents[outside])
    assert not torch.allclose(latents[~outside], normal.latents[~outside])


@pytest.mark.parametrize("mode", ["paper", "official"])
def test_weights_of_1_equal_sampling_without_reweighting(backbone, normal, mode, monkeypatch):
    plain, *_ = _sample(backbone, normal, "off")
    adaptive, *_ = _sample(backbone, normal, mode)
    inside = normal.latent_masks.bool().expand_as(plain)
    assert not torch.equal(adaptive[inside], plain[inside])
    monkeypatch.setattr(sampling, "masked_average_pool", lambda *_: lambda side: torch.ones(2, 1, side, side))
    monkeypatch.setattr(sampling, "latent_weights", lambda *_: torch.ones(2, 1, 8, 8))
    monkeypatch.setattr(sampling, "dilation_radius", lambda *_: 0)
    same, *_ = _sample(backbone, normal, mode)
    assert torch.equal(same[inside], plain[inside])


def test_the_unconditional_prediction_is_not_reweighted(backbone, normal):
    """Guidance with two equal prompts changes nothing unless one prediction is re-weighted."""
    text = torch.randn((2, 24, 32), generator=torch.Generator().manual_seed(5))
    control = control_attention(backbone.denoiser)
    is_reweighted = []

    def conditional(latents, time):
        return backbone.denoiser(latents, time, text).sample

    def unconditional(latents, time):
        is_reweighted.append(bool(control._reweights))
        return conditional(latents, time)

    trajectory = make_trajectory(backbone.alphas_cumprod, 3)
    with torch.no_grad():
        plain = sample_blended(normal, conditional, trajectory, _stream(normal))
        guided = sample_blended(normal, conditional, trajectory, _stream(normal), guidance=(5.0, unconditional))
        tokens = torch.ones(2, 24, dtype=torch.bool)
        reweighting = Reweighting("official", control, tokens, backbone.decode, 0.1)
        sample_blended(normal, conditional, trajectory, _stream(normal), 1.0, reweighting, (5.0, unconditional))
    assert torch.allclose(plain, guided, atol=1e-4)
    assert is_reweighted and not any(is_reweighted)


# views, masks, encoder


def test_image_and_mask_are_transformed_together():
    """The image is bright inside the mask, whose shape has no symmetry, so that every difference is visible."""
    mask = np.zeros((90, 120), bool)
    mask[20:60, 30:40] = True
    mask[50:60, 30:70] = True
    mask[20:28, 30:52] = True
    image = np.where(mask[..., None], 230, 40).astype(np.uint8).repeat(3, -1)
    views = augment_examples([Example("p", "d", image, mask, "0")], 24, "local", 2.0, 32, 128, np.random.default_rng(0))
    for view in views:
        bright = view.image.mean(-1) > (float(view.image.min()) + float(view.image.max())) / 2
        assert view.mask.sum() > 0
        assert (bright & view.mask).sum() / (bright | view.mask).sum() > 0.9
    shapes = {view.mask.tobytes() for view in views}
    assert len(shapes) == len(views)


def test_a_mask_along_the_border_is_invalid():
    framed, narrow, inside = np.zeros((3, 30, 30), bool)
    framed[0, 5:16] = True  # 11 of 30 in the border row
    narrow[0:20, 5:15] = True  # 10 of 30
    inside[5:25, 5:25] = True
    for turn in range(4):
        assert not is_valid_mask(np.rot90(framed, turn), 1 / 3)
        assert is_valid_mask(np.rot90(narrow, turn), 1 / 3)
    assert is_valid_mask(inside, 1 / 3)
    assert not is_valid_mask(np.zeros((30, 30), bool), 1 / 3)


def test_a_generated_mask_is_centred_on_the_requested_mask():
    shape = np.zeros((64, 64), bool)
    shape[2:22, 4:44] = True
    target = np.zeros((100, 120), bool)
    target[70:76, 80:90] = True
    moved = move_mask(shape, Window(40, 60, 32, 32), target)
    rows, columns = np.nonzero(moved)
    assert abs((rows.min() + rows.max()) / 2 - 72.5) <= 1 and abs((columns.min() + columns.max()) / 2 - 84.5) <= 1
    assert abs(np.ptp(rows) + 1 - 10) <= 1 and abs(np.ptp(columns) + 1 - 20) <= 1
    assert move_mask(np.zeros((64, 64), bool), Window(40, 60, 32, 32), target) is None


def test_the_encoder_distinguishes_masks_with_tokens_at_the_scale_of_words():
    torch.manual_seed(0)
    encoder = SpatialEncoder(EncoderConfig(side=32), 3, 48, 0.02)
    left, right = np.zeros((2, 100, 100), bool)
    left[30:50, 5:25], right[30:50, 70:90] = True, True
    tokens = encoder(_mask(left, right, left)).detach()
    assert tokens.shape == (3, 3, 48)
    assert 0.01 < float(tokens.square().mean().sqrt()) < 0.04
    assert torch.allclose(tokens[0], tokens[2], atol=1e-6)
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-3)
    assert not torch.allclose(tokens[0, 0], tokens[0, 1], atol=1e-3)


def test_a_mask_of_one_pixel_changes_the_tokens():
    torch.manual_seed(0)
    encoder = SpatialEncoder(EncoderConfig(side=32), 1, 48, 0.02)
    dot = np.zeros((512, 512), bool)
    dot[101, 333] = True
    assert not torch.allclose(encoder(_mask(dot)), encoder(_mask(np.zeros_like(dot))), atol=1e-6)


def test_the_encoder_of_the_public_code_can_be_built():
    paper = EncoderConfig(side=256, channels=(64, 128, 256, 512), depths=(3, 4, 14, 3), width=512, head_width=1280)
    with torch.device("meta"):
        encoder = SpatialEncoder(paper, 4, 1280, 0.02)
        assert encoder(torch.zeros(2, 1, 256, 256)).shape == (2, 4, 1280)
