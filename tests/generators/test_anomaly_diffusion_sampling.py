"""AnomalyDiffusion's weights, blending, mask rules and encoder on known inputs (brief §2.6: 4 to 9)."""

import numpy as np
import pytest
import torch
from tiny_unet import tiny_backbone

from defect_core.diffusion.attention import control_attention
from defect_core.diffusion.samplers import NoiseStream
from defect_core.diffusion.schedule import add_noise, make_trajectory
from defect_core.generators.anomaly_diffusion import sampling as drawing
from defect_core.generators.anomaly_diffusion.config import EncoderConfig
from defect_core.generators.anomaly_diffusion.encoder import SpatialEncoder
from defect_core.generators.anomaly_diffusion.mask_model import accept, move_mask
from defect_core.generators.anomaly_diffusion.reweighting import (
    LARGEST,
    dilation_radius,
    latent_weights,
    scaling_softmax,
    to_layers,
    widen,
)
from defect_core.generators.anomaly_diffusion.sampling import Reweighting, Scene, draw
from defect_core.generators.base import Example
from defect_core.generators.canvas import Window
from defect_core.generators.views import augmented_views

SEEDS = [3, 4]


def _disc(side=16, centre=(7, 8), radius=4):
    rows, columns = np.mgrid[:side, :side]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def _mask(*shapes):
    return torch.from_numpy(np.stack(shapes)).float()[:, None]


def _images(side=16, batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.rand((2, batch, 3, side, side), generator=generator) * 2 - 1


# adaptive scaling softmax (§2.6-4)


def test_the_weights_sum_to_the_masks_area_and_are_zero_outside():
    normal, drawn = _images()
    mask = _mask(_disc(), _disc(radius=2))
    weights = scaling_softmax(normal, drawn, mask, 0.05)
    assert torch.allclose(weights.sum((1, 2, 3)), mask.sum((1, 2, 3)), rtol=1e-4)
    assert (weights[mask == 0] == 0).all() and (weights[mask == 1] > 0).any()


def test_a_pixel_weighs_the_more_the_less_the_defect_shows_there():
    normal, mask = torch.zeros(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
    drawn = torch.linspace(0.5, 1.0, 256).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    weights = scaling_softmax(normal, drawn, mask, 1e-3).flatten()
    assert (weights.diff() < 0).all()


def test_equal_differences_weigh_1_everywhere_in_the_mask():
    normal, mask = _images()[0], _mask(_disc(), _disc(radius=2))
    weights = scaling_softmax(normal, normal + 0.7, mask, 1e-3)
    assert torch.allclose(weights, mask, atol=1e-4)


@pytest.mark.parametrize("least", [1e-8, 0.5])
def test_no_difference_at_all_and_no_mask_at_all_stay_finite(least):
    normal, drawn = _images()
    drawn = torch.where(_mask(_disc(radius=2), _disc(radius=2)) > 0, normal, drawn)
    for mask in (_mask(_disc(), _disc()), torch.zeros(2, 1, 16, 16)):
        weights = scaling_softmax(normal, drawn, mask, least)
        assert torch.isfinite(weights).all()
        assert torch.allclose(weights.sum((1, 2, 3)), mask.sum((1, 2, 3)), rtol=1e-4)


def test_a_layer_sees_the_mean_over_the_mask_and_a_thin_scratch_keeps_its_weight():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 5] = 1
    at_4 = to_layers(mask * 1.0, mask)(4)
    assert torch.allclose(at_4[..., 1], torch.ones(1, 1, 4)) and (at_4[..., [0, 2, 3]] == 0).all()
    halves = to_layers(torch.linspace(0, 1, 256).view(1, 1, 16, 16), torch.ones(1, 1, 16, 16))(2)
    assert float(halves.mean()) == pytest.approx(0.5, abs=1e-5)


# the public code's weights (§2.6-5, 6)


def test_latent_weights_lie_between_1_and_1_5_inside_and_are_1_outside():
    generator = torch.Generator().manual_seed(0)
    noisy, normal = torch.randn((2, 2, 4, 16, 16), generator=generator)
    mask = _mask(_disc(), _disc(radius=2))
    weights = latent_weights(noisy, normal, mask)
    assert (weights >= 1).all() and (weights <= LARGEST).all() and LARGEST == 1.5
    assert (weights[mask == 0] == 1).all()
    inside = weights[mask == 1]
    assert (inside == LARGEST).any() and (inside == 1).any()
    for sample in range(2):
        within = mask[sample] == 1
        inside, change = weights[sample][within], (noisy - normal)[sample].square().mean(0, keepdim=True)[within]
        assert (inside[change.argsort()].diff() <= 0).all()


def test_latent_weights_stay_finite_where_nothing_differs_and_nothing_is_masked():
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    assert (latent_weights(latents, latents, torch.zeros(1, 1, 8, 8)) == 1).all()
    assert torch.isfinite(latent_weights(latents, latents, torch.ones(1, 1, 8, 8))).all()


def test_the_dilation_radius_falls_as_in_the_public_code():
    times = (999, 900, 500, 200, 100, 25, 24)
    assert [dilation_radius(time) for time in times] == [8, 8, 4, 2, 1, 1, 0]


def test_widening_grows_by_the_radius_in_every_direction():
    mask = torch.zeros(1, 1, 9, 9)
    mask[..., 4, 4] = 1
    grown = widen(mask, 2)
    expected = torch.zeros(9, 9)
    expected[2:7, 2:7] = 1
    assert torch.equal(grown[0, 0], expected)
    assert torch.equal(widen(mask, 0), mask)


# drawing (§2.6-5, 7)


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture
def scene(backbone):
    images = _images(64)[0]
    mask = torch.zeros(2, 1, 64, 64)
    mask[0, :, 16:40, 24:40] = 1
    mask[1, :, 40:42, 8:50] = 1
    cells = torch.nn.functional.max_pool2d(mask, 8)
    with torch.no_grad():
        return Scene(images, mask, backbone.encode(images), cells)


def _stream(scene):
    return NoiseStream(SEEDS, scene.latents.shape[1:])


def _walk(backbone, scene, mode, eta=1.0):
    text = torch.randn((2, 24, 32), generator=torch.Generator().manual_seed(5))
    tokens = torch.zeros(2, 24, dtype=torch.bool)
    tokens[:, 3:9] = True
    reweighting = None
    if mode != "off":
        reweighting = Reweighting(mode, control_attention(backbone.denoiser), tokens, backbone.decode, 0.1)
    seen = []

    def predict(latents, time):
        seen.append((latents.clone(), int(time)))
        return backbone.denoiser(latents, time, text).sample

    trajectory = make_trajectory(backbone.schedule, 4)
    with torch.no_grad():
        drawn = draw(scene, predict, trajectory, _stream(scene), eta, reweighting)
    return drawn, seen, trajectory


@pytest.mark.parametrize("mode", ["off", "paper", "official"])
def test_before_each_call_the_outside_is_the_normal_latent_noised_afresh(backbone, scene, mode):
    _, seen, trajectory = _walk(backbone, scene, mode)
    stream = _stream(scene)
    stream()
    assert [time for _, time in seen] == trajectory.timesteps[1:].flip(0).tolist()
    for latents, time in seen:
        bar = trajectory.alpha_bars[trajectory.timesteps.tolist().index(time)]
        expected = add_noise(scene.latents, stream(), bar.expand(2))
        cells = widen(scene.cells, dilation_radius(time, 2)) if mode == "official" else scene.cells
        outside = (cells == 0).expand_as(latents)
        assert torch.equal(latents[outside], expected[outside])
        assert not torch.equal(latents[~outside], expected[~outside])
        stream()


def test_at_the_end_the_outside_is_the_clean_normal_latent(backbone, scene):
    drawn, *_ = _walk(backbone, scene, "paper")
    outside = (scene.cells == 0).expand_as(drawn)
    assert torch.equal(drawn[outside], scene.latents[outside])
    assert not torch.allclose(drawn[~outside], scene.latents[~outside])


@pytest.mark.parametrize("mode", ["paper", "official"])
def test_with_weights_of_1_the_drawing_is_the_plain_one_bit_for_bit(backbone, scene, mode, monkeypatch):
    plain, *_ = _walk(backbone, scene, "off")
    adaptive, *_ = _walk(backbone, scene, mode)
    inside = scene.cells.bool().expand_as(plain)
    assert not torch.equal(adaptive[inside], plain[inside])
    monkeypatch.setattr(drawing, "to_layers", lambda *_: lambda side: torch.ones(2, 1, side, side))
    monkeypatch.setattr(drawing, "latent_weights", lambda *_: torch.ones(2, 1, 8, 8))
    monkeypatch.setattr(drawing, "dilation_radius", lambda *_: 0)
    same, *_ = _walk(backbone, scene, mode)
    assert torch.equal(same[inside], plain[inside])


def test_guidance_leaves_the_base_unweighted(backbone, scene):
    """Without a difference between the two texts guidance changes nothing; a re-weighted base would."""
    text = torch.randn((2, 24, 32), generator=torch.Generator().manual_seed(5))
    control = control_attention(backbone.denoiser)
    weighted = []

    def told(latents, time):
        return backbone.denoiser(latents, time, text).sample

    def base(latents, time):
        weighted.append(bool(control._reweights))
        return told(latents, time)

    trajectory = make_trajectory(backbone.schedule, 3)
    with torch.no_grad():
        plain = draw(scene, told, trajectory, _stream(scene))
        guided = draw(scene, told, trajectory, _stream(scene), base=base, guidance_scale=5.0)
        tokens = torch.ones(2, 24, dtype=torch.bool)
        reweighting = Reweighting("official", control, tokens, backbone.decode, 0.1)
        draw(scene, told, trajectory, _stream(scene), 1.0, reweighting, base, 5.0)
    assert torch.allclose(plain, guided, atol=1e-4)
    assert weighted and not any(weighted)


# views (§2.6-8), masks (§2.6-9), encoder


def test_image_and_mask_are_moved_alike_and_the_defect_is_kept():
    """The image is bright where the mask is, in a shape without symmetry: any other move would show."""
    mask = np.zeros((90, 120), bool)
    mask[20:60, 30:40] = True
    mask[50:60, 30:70] = True
    mask[20:28, 30:52] = True
    image = np.where(mask[..., None], 230, 40).astype(np.uint8).repeat(3, -1)
    views = augmented_views([Example("p", "d", image, mask, "0")], 24, "local", 2.0, 32, 128, np.random.default_rng(0))
    for view in views:
        bright = view.image.mean(-1) > (float(view.image.min()) + float(view.image.max())) / 2
        assert view.mask.sum() > 0
        assert (bright & view.mask).sum() / (bright | view.mask).sum() > 0.9
    shapes = {view.mask.tobytes() for view in views}
    assert len(shapes) == len(views)


def test_a_mask_that_frames_the_picture_is_rejected():
    framed, narrow, inside = np.zeros((3, 30, 30), bool)
    framed[0, 5:16] = True  # 11 of 30 in the border row
    narrow[0:20, 5:15] = True  # 10 of 30
    inside[5:25, 5:25] = True
    for turn in range(4):
        assert accept(np.rot90(framed, turn), 1 / 3) is None
        assert accept(np.rot90(narrow, turn), 1 / 3) is not None
    assert accept(inside, 1 / 3) is not None
    assert accept(np.zeros((30, 30), bool), 1 / 3) is None


def test_a_drawn_shape_is_centred_where_the_given_mask_is():
    shape = np.zeros((64, 64), bool)
    shape[2:22, 4:44] = True
    given = np.zeros((100, 120), bool)
    given[70:76, 80:90] = True
    moved = move_mask(shape, Window(40, 60, 32, 32), given)
    rows, columns = np.nonzero(moved)
    assert abs((rows.min() + rows.max()) / 2 - 72.5) <= 1 and abs((columns.min() + columns.max()) / 2 - 84.5) <= 1
    assert abs(np.ptp(rows) + 1 - 10) <= 1 and abs(np.ptp(columns) + 1 - 20) <= 1
    assert move_mask(np.zeros((64, 64), bool), Window(40, 60, 32, 32), given) is None


def test_the_encoder_gives_n_tokens_in_the_words_range_that_tell_masks_apart():
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


def test_a_single_pixel_reaches_the_encoder():
    torch.manual_seed(0)
    encoder = SpatialEncoder(EncoderConfig(side=32), 1, 48, 0.02)
    dot = np.zeros((512, 512), bool)
    dot[101, 333] = True
    assert not torch.allclose(encoder(_mask(dot)), encoder(_mask(np.zeros_like(dot))), atol=1e-6)


def test_the_papers_encoder_can_be_built():
    paper = EncoderConfig(side=256, channels=(64, 128, 256, 512), depths=(3, 4, 14, 3), width=512, head_width=1280)
    with torch.device("meta"):
        encoder = SpatialEncoder(paper, 4, 1280, 0.02)
        assert encoder(torch.zeros(2, 1, 256, 256)).shape == (2, 4, 1280)
