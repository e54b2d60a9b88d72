"""CADiff on a tiny backbone: sampling with intensity, mask control and several defects, and input that is refused."""

import copy
import dataclasses

import numpy as np
import pytest
from plate_examples import DEFECTS
from tiny_cadiff import QUICK, cadiff_examples, wake_up
from tiny_unet import WIDTH, tiny_backbone

from defect_core.diffusion.attention import AttentionControl
from defect_core.errors import InputError
from defect_core.generators.base import SampleRequest
from defect_core.generators.cadiff.config import CADiffConfig
from defect_core.generators.cadiff.generator import CADiff
from defect_core.generators.registry import generator_config


@pytest.fixture(scope="module")
def examples():
    return cadiff_examples()


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def fitted(backbone, examples, tmp_path_factory):
    generator = CADiff.create(CADiffConfig(**QUICK, focus_threshold=0.0), backbone)
    generator.fit(examples, tmp_path_factory.mktemp("work"), seed=1)
    wake_up(generator.model)
    return generator


def _with_settings(generator, **settings):
    """Return the same fitted generator with other settings."""
    other = copy.copy(generator)
    other.config = generator.config.model_copy(update=settings)
    other.model = copy.copy(generator.model)
    other.model.config = other.config
    return other


def _request(examples, **changes):
    mask = np.zeros((64, 64), bool)
    mask[24:44, 20:44] = True
    request = SampleRequest("dent-0", "plate", "dent", seed=5, normal_image=examples[0].image, mask=mask, strength=1.5)
    return dataclasses.replace(request, **changes)


def _sample(generator, request):
    (pair,) = generator.sample([request])
    return pair


# Intensity


def test_strength_one_equals_sampling_without_reweighting(fitted, examples):
    unfocused = _with_settings(fitted, focus_threshold=1.0)
    pair = _sample(fitted, _request(examples, strength=1.0))
    assert (pair.image == _sample(unfocused, _request(examples)).image).all()


def test_strength_changes_the_image_inside_the_mask_once_attention_is_focused(fitted, examples):
    request = _request(examples)
    weak, unchanged, strong = (_sample(fitted, _request(examples, strength=w)) for w in (-2.0, 1.0, 2.0))
    for pair in (weak, strong):
        assert (pair.image[request.mask] != unchanged.image[request.mask]).any()
        assert (pair.image[~request.mask] == unchanged.image[~request.mask]).all()
    assert (weak.image != strong.image).any()
    unfocused = _with_settings(fitted, focus_threshold=1.0)
    assert (_sample(unfocused, _request(examples, strength=2.0)).image == unchanged.image).all()


def test_the_metadata_contain_the_requested_strength_or_one_from_the_seed(fitted, examples):
    assert _sample(fitted, _request(examples, strength=0.25)).metadata["strength"] == 0.25
    pairs = [_sample(fitted, _request(examples, strength=None, seed=seed)) for seed in (1, 2, 1)]
    strengths = [pair.metadata["strength"] for pair in pairs]
    assert min(strengths) >= 0.5 and max(strengths) <= 1.5 and strengths[0] == strengths[2] != strengths[1]


# Mask control, paste, guidance


def test_with_control_scale_zero_the_mask_has_no_effect(fitted, examples):
    uncontrolled = _with_settings(
        fitted, control_scale=0.0, paste=False, start="noise", strength_range=(1, 1), canvas="whole"
    )
    controlled = _with_settings(uncontrolled, control_scale=1.0)
    request = _request(examples, strength=1.0)
    moved = dataclasses.replace(request, mask=np.roll(request.mask, 14, axis=1))
    assert (_sample(uncontrolled, request).image == _sample(uncontrolled, moved).image).all()
    assert (_sample(controlled, request).image != _sample(controlled, moved).image).any()


def test_only_paste_keeps_every_pixel_outside_the_mask(fitted, examples):
    request = _request(examples)
    pasted = _sample(fitted, request)
    assert (pasted.image[~request.mask] == request.normal_image[~request.mask]).all()
    generated = _sample(_with_settings(fitted, paste=False, start="noise", canvas="whole"), request)
    assert (generated.image[~request.mask] != request.normal_image[~request.mask]).any()


def test_an_instance_keeps_the_background_only_with_paste(backbone):
    assert CADiff.create(CADiffConfig(), backbone).capabilities.keeps_background
    assert not CADiff.create(CADiffConfig(paste=False), backbone).capabilities.keeps_background
    assert CADiff.capabilities.keeps_background and CADiff.capabilities.has_strength


def test_a_guidance_scale_above_one_changes_the_image(fitted, examples):
    request = _request(examples)
    guided = _with_settings(fitted, guidance_scale=4.0)
    assert (_sample(guided, request).image != _sample(fitted, request).image).any()


# Several defects in one image


def test_two_defects_share_one_image_and_the_result_does_not_depend_on_the_batch(fitted, examples):
    both = _sample(fitted, _request(examples, defect="dent+scratch"))
    assert both.metadata["prompt"] == "a photo of a plate with dent and scratch"
    assert (both.mask == _request(examples).mask).all()
    single = [_sample(fitted, _request(examples, defect=defect)) for defect in DEFECTS]
    assert all((both.image != pair.image).any() for pair in single)
    batch = list(fitted.sample([_request(examples), _request(examples, defect="dent+scratch")]))
    assert np.abs(batch[1].image.astype(int) - both.image).max() <= 1
    assert np.abs(batch[0].image.astype(int) - single[0].image).max() <= 1


def test_the_token_of_a_defect_gets_no_attention_where_the_other_defect_is(fitted, examples, monkeypatch):
    calls, reweight = [], AttentionControl.reweight

    def record(control, tokens, weights, where="probabilities"):
        calls.append((tokens, weights(8)))
        return reweight(control, tokens, weights, where)

    monkeypatch.setattr(AttentionControl, "reweight", record)
    _sample(_with_settings(fitted, focus_threshold=1.0), _request(examples, defect="dent+scratch"))
    (dent_token, dent_weights), (scratch_token, scratch_weights) = calls[0], calls[2]  # U-Net and branch call each
    assert dent_token.sum() == 1 and scratch_token.sum() == 1 and not (dent_token & scratch_token).any()
    assert (dent_weights == 0).any() and (scratch_weights == 0).any()
    assert ((dent_weights == 0) & (scratch_weights == 0)).sum() == 0


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defect": "rust"}, "defect 'rust' was not fitted; expected dent or scratch"),
        ({"defect": "dent+rust"}, "defect 'rust' was not fitted"),
        ({"defect": "dent+dent"}, "names one defect twice"),
        ({"strength": 3.0}, "strength 3; expected -2 to 2"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_in_one_line(fitted, examples, change, message):
    with pytest.raises(InputError, match=message) as caught:
        _sample(fitted, _request(examples, **change))
    assert "\n" not in str(caught.value)


def test_a_mask_outside_the_object_is_refused(fitted, examples):
    image = np.full((64, 64, 3), 250, np.uint8)
    image[16:48, 16:48] = 40
    corner = np.zeros((64, 64), bool)
    corner[:6, :6] = True
    with pytest.raises(InputError, match="the mask is outside the product on the normal image; expected an overlap"):
        _sample(fitted, _request(examples, normal_image=image, mask=corner))


def test_a_backbone_without_cross_attention_or_with_another_text_width_is_refused():
    without_attention = tiny_backbone(
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type="UNetMidBlock2D"
    )
    with pytest.raises(InputError, match="no cross-attention layers"):
        CADiff.create(CADiffConfig(), without_attention)
    with pytest.raises(InputError, match=f"48.*{WIDTH}"):
        CADiff.create(CADiffConfig(), tiny_backbone(cross_attention_dim=48))


def test_impossible_settings_are_refused(backbone):
    with pytest.raises(InputError, match=r"cadiff: loss_sides names 5, but .* has the sides 4, 8"):
        CADiff.create(CADiffConfig(loss_sides=(5,)), backbone)
    for settings, message in (
        ({"templates": ["a photo of {anomaly}"]}, "once in each template"),
        ({"strength_range": [1.5, 0.5]}, "the smaller first"),
        ({"strength_range": [0, 9]}, "from -2 to 2"),
    ):
        with pytest.raises(InputError, match=message):
            generator_config("cadiff", settings)
