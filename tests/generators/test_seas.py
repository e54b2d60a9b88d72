"""SeaS on a tiny backbone: sampling of pairs and normal images, and input that is refused."""

import dataclasses

import numpy as np
import pytest
import torch
from plate_examples import DEFECTS, plate
from scipy import ndimage
from tiny_seas import PAPER, QUICK, seas_examples, with_settings
from tiny_unet import tiny_backbone

from defect_core.backbones.load import load_backbone
from defect_core.diffusion.schedule import add_noise
from defect_core.errors import InputError
from defect_core.generators.base import SampleRequest
from defect_core.generators.registry import generator_config
from defect_core.generators.seas.config import SeasConfig
from defect_core.generators.seas.generator import Seas
from defect_core.generators.seas.prompt import UnbalancedAbnormalPrompt
from defect_core.generators.seas.sampling import (
    Conditioning,
    TokenRegion,
    extended_alphas_cumprod,
    noise_reference,
    sample_images,
)


@pytest.fixture(scope="module")
def examples():
    return seas_examples()


@pytest.fixture(scope="module")
def fitted(examples, tmp_path_factory):
    generator = Seas.create(SeasConfig(**QUICK), tiny_backbone())
    generator.fit(examples, tmp_path_factory.mktemp("work"), seed=1)
    return generator


def _request(examples, **changes):
    request = SampleRequest("dent-0", "plate", "dent", 5, examples[0].image, examples[2].mask)
    return dataclasses.replace(request, **changes)


def _sample(generator, request):
    return next(generator.sample([request]))


# The start of the sampling


def test_extended_schedule_of_equal_length_adds_noise_like_the_schedule_itself():
    alphas_cumprod = tiny_backbone().alphas_cumprod
    extended = extended_alphas_cumprod(alphas_cumprod, 1000)[-1:]
    assert torch.allclose(extended[-1].float(), alphas_cumprod[-1], atol=1e-6)
    clean, noise = torch.randn((2, 1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    expected = add_noise(clean, noise, alphas_cumprod[-1:])
    assert torch.allclose(add_noise(clean, noise, extended), expected, atol=1e-5)


def test_schedule_of_1500_steps_ends_at_the_level_of_the_public_code():
    alphas_cumprod = tiny_backbone().alphas_cumprod
    assert float(extended_alphas_cumprod(alphas_cumprod, 1500)[-1]) == pytest.approx(3.18e-4, abs=1e-6)


def test_each_kind_of_reference_has_its_weight():
    backbone = tiny_backbone()
    clean, noise = torch.randn((2, 1, 4, 8, 8), generator=torch.Generator().manual_seed(0))

    def reference_weight(reference):
        config = SeasConfig(**PAPER, reference=reference)
        with_reference = noise_reference(backbone, clean, noise, 999, config)
        without = noise_reference(backbone, 0 * clean, noise, 999, config)
        return float(((with_reference - without) / clean).mean())

    assert reference_weight("schedule") == pytest.approx(0.0683, abs=1e-3)
    assert reference_weight("paper") == pytest.approx(0.0178, abs=1e-4)
    expected = pytest.approx(0.0178 / backbone.vae.config.scaling_factor, abs=1e-3)
    assert reference_weight("official") == expected


def test_another_reference_changes_an_image_far_less_than_another_seed(fitted):
    levels = (-0.5, 0.5, -0.5)
    references = torch.stack([torch.full((3, 64, 64), level) for level in levels])
    prompts = fitted.prompt.encode(fitted.backbone, [()] * 3).states
    conditioning = Conditioning(prompts, fitted.backbone.encode_text([""]))
    first, other_reference, other_seed = sample_images(
        fitted.backbone, references, conditioning, [1, 1, 2], fitted.config
    ).images
    change = (other_reference - first).abs().mean()
    assert 0 < change < 0.5 * (other_seed - first).abs().mean()


# Token region and residual


def _sample_with_and_without_region(fitted, weight, **settings):
    """Sample twice from the same seeds: with the anomaly tokens in a region only, and everywhere."""
    config = fitted.config.model_copy(update=settings)
    references = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        prompts = fitted.prompt.encode(fitted.backbone, [("dent",), ("scratch",)]).states
        normal_prompt = fitted.prompt.encode(fitted.backbone, [()]).states
        everywhere = Conditioning(prompts, fitted.backbone.encode_text([""]))
    restricted = everywhere._replace(region=TokenRegion(weight, normal_prompt))
    return tuple(
        sample_images(fitted.backbone, references, conditioning, [1, 2], config, fitted.branch)
        for conditioning in (restricted, everywhere)
    )


def test_a_region_that_covers_the_image_changes_nothing(fitted):
    restricted, everywhere = _sample_with_and_without_region(fitted, torch.ones(2, 1, 8, 8), residual=False)
    assert torch.allclose(restricted.images, everywhere.images, atol=1e-4)
    assert torch.allclose(restricted.masks, everywhere.masks, atol=1e-4)


def test_the_residual_is_zero_for_an_empty_region_and_largest_inside_a_region(fitted):
    settings = {"mask_dilation": 0.0, "residual": True, "paste": True}
    empty, _ = _sample_with_and_without_region(fitted, torch.zeros(2, 1, 8, 8), **settings)
    assert empty.images.abs().max() < 1e-4
    weight = torch.zeros(2, 1, 8, 8)
    weight[..., 2:4, 2:4] = 1
    restricted, _ = _sample_with_and_without_region(fitted, weight, **settings)
    change = restricted.images.abs().mean(1)
    assert change[:, 16:32, 16:32].mean() > 2 * change[:, 48:, 48:].mean() > 0


@pytest.mark.parametrize("residual", [True, False])
def test_mask_and_changed_pixels_stay_inside_the_dilated_request_mask(fitted, examples, residual):
    generator = with_settings(
        fitted, mask_dilation=3.0, paste=True, residual=residual, mask_threshold=1e-4, ref_strength=0.5
    )
    request = _request(examples)
    pair = _sample(generator, request)
    dilated = ndimage.distance_transform_edt(~request.mask) <= 3
    assert (pair.mask == dilated).all()  # the low threshold accepts every allowed pixel
    assert (pair.image[~dilated] == request.normal_image[~dilated]).all()
    change = pair.image[dilated].astype(int) - request.normal_image[dilated]
    assert np.abs(change).mean() > 0.1 and abs(change.mean()) < 60  # a middle grey left in would add 127


def test_the_strongest_pixels_of_an_empty_prediction_stay_inside_the_request_mask(fitted, examples):
    generator = with_settings(fitted, mask_dilation=0.0, paste=True, mask_threshold=0.9999)
    small = np.zeros((64, 64), bool)
    small[40, 50] = True  # fewer pixels than the fraction asks for
    pair = _sample(generator, _request(examples, mask=small))
    assert pair.metadata["mask_rule"] == "strongest 0.5%" and (pair.mask == small).all()


def test_a_mask_without_pixels_above_the_threshold_becomes_the_strongest_pixels(fitted, examples):
    pair = _sample(with_settings(fitted, mask_threshold=0.9999), _request(examples))
    full = _sample(with_settings(fitted, mask_threshold=1e-4), _request(examples))
    assert pair.metadata["mask_rule"] == "strongest 0.5%" and pair.mask.sum() == round(0.005 * 64 * 64)
    assert pair.soft_mask[pair.mask].min() >= pair.soft_mask[~pair.mask].max()
    assert full.metadata["mask_rule"] == "threshold" and full.mask.all()


# Pairs and normal images


def test_normal_images_start_from_the_references_in_turn(fitted):
    generator = with_settings(fitted, ref_strength=0.5)
    references = [plate(np.random.default_rng(1)), np.zeros((40, 50, 3), np.uint8)]
    images = list(generator.generate_normals([1, 2, 3], references))
    assert [image.shape for image in images] == [(64, 64, 3), (40, 50, 3), (64, 64, 3)]
    same_reference = next(generator.generate_normals([3], references[:1]))
    other_reference = next(generator.generate_normals([3], references[1:]))
    assert np.abs(images[2].astype(int) - same_reference).max() <= 1
    assert same_reference.shape != other_reference.shape and (images[0] != images[2]).any()
    with pytest.raises(InputError, match="seas: no normal images to start from"):
        next(generator.generate_normals([1], []))


def test_an_unseen_defect_combines_the_tokens_of_two_fitted_ones(fitted, examples):
    pair = _sample(fitted, _request(examples, defect="scratch+dent"))
    assert pair.metadata["prompt"] == "a <plate> with <scratch> <dent>"
    spans = fitted.prompt.encode(fitted.backbone, [("scratch", "dent")]).spans[0]
    assert spans["defect"] == slice(4, 12)
    assert (pair.image != _sample(fitted, _request(examples)).image).any()
    with pytest.raises(InputError, match="defect 'rust' was not fitted; expected dent or scratch"):
        _sample(fitted, _request(examples, defect="scratch+rust"))


@pytest.mark.parametrize("canvas", ["whole", "local"])
def test_a_pasted_defect_keeps_all_pixels_outside_its_mask(fitted, examples, canvas):
    generator = with_settings(fitted, paste=True, canvas=canvas, min_side=32, context=1.5, mask_threshold=0.5)
    pair = _sample(generator, _request(examples))
    assert (pair.image == examples[0].image)[~pair.mask].all() and not pair.mask.all()
    if canvas == "local":
        assert not pair.mask[40:].any() and not pair.mask[:, 40:].any()


# Bad input


def test_a_backbone_without_what_the_alignment_needs_is_refused():
    with pytest.raises(InputError, match="no cross-attention in its encoder"):
        Seas.create(SeasConfig(), tiny_backbone(down_block_types=("DownBlock2D",) * 2))
    with pytest.raises(InputError, match=r"16.*32"):
        Seas.create(SeasConfig(), tiny_backbone(cross_attention_dim=16))
    short = tiny_backbone(length=8)
    with pytest.raises(InputError, match="expected a shorter prompt"):
        UnbalancedAbnormalPrompt.from_init_words(short, DEFECTS, SeasConfig()).encode(short, [("dent",)])


def test_settings_that_exclude_each_other_are_refused_with_their_field():
    with pytest.raises(InputError, match=r"mask_width.*multiple of 24"):
        generator_config("seas", {"mask_width": 40})
    with pytest.raises(InputError, match="official starts at the last timestep"):
        generator_config("seas", {"reference": "official"})


def test_load_refuses_a_folder_of_another_backbone(fitted, tmp_path):
    fitted.save(tmp_path)
    with pytest.raises(InputError, match="fitted on backbone 'tiny' with other weights"):
        Seas.load(tmp_path, load_backbone("embedded"))
