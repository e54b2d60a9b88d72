"""CADiff as a whole on a tiny Stable-Diffusion-like backbone: what trains, what its loss is, how it draws."""

import copy
import dataclasses
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from tiny_unet import WIDTH, tiny_backbone

from defect_core.diffusion.attention import control_attention
from defect_core.diffusion.losses import noise_loss, resize_mask
from defect_core.diffusion.schedule import add_noise
from defect_core.errors import InputError
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.cadiff.config import Config
from defect_core.generators.cadiff.generator import CADiff
from defect_core.generators.cadiff.model import Batch, Model, token_groups
from defect_core.generators.registry import generator_config
from defect_core.training.loop import train

DEFECTS = ("dent", "scratch")
QUICK = {"steps": 3, "batch_size": 2, "variants": 2, "sampling_steps": 4, "contrast_views": 2, "tune_denoiser": False}


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    made = [Example("plate", "good", _plate(rng), None, "good/0.png")]
    for defect, value in zip(DEFECTS, (30, 230), strict=True):
        image, mask = _plate(rng), np.zeros((64, 64), bool)
        mask[20:40, 10:30] = True
        image[mask] = value
        made.append(Example("plate", defect, image, mask, f"{defect}/0.png"))
    return made


def _plate(rng):
    return np.clip(128 + rng.normal(0, 6, (64, 64, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def fitted(backbone, examples, tmp_path_factory):
    """Woken up by hand after a short fit, so that tokens and control matter as after a long one."""
    generator = CADiff.create(Config(**QUICK, focus_threshold=0.0), backbone)
    generator.fit(examples, tmp_path_factory.mktemp("work"), seed=1)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for join in (
            *generator.model.control.net.controlnet_down_blocks,
            generator.model.control.net.controlnet_mid_block,
        ):
            join.weight.copy_(torch.randn(join.weight.shape, generator=noise) * 0.3)
        generator.model.control.net.controlnet_cond_embedding.conv_out.weight.mul_(20)
        for vector in generator.model.tokens.parameters():
            vector.copy_(torch.randn(vector.shape, generator=noise))
    return generator


def _with(generator, **settings):
    """The same fitted generator under other settings."""
    other = copy.copy(generator)
    other.config = generator.config.model_copy(update=settings)
    other.model = copy.copy(generator.model)
    other.model.config = other.config
    return other


def _request(examples, **changes):
    mask = np.zeros((64, 64), bool)
    mask[24:44, 20:44] = True
    made = SampleRequest("dent-0", "plate", "dent", seed=5, normal_image=examples[0].image, mask=mask, strength=1.5)
    return dataclasses.replace(made, **changes)


def _draw(generator, *requests):
    return list(generator.sample(requests))


def _batch(backbone, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 1, 64, 64)
    masks[..., 16:40, 8:32] = 1
    return Batch(
        torch.randn((count, 4, 8, 8), generator=generator),
        resize_mask(masks, 8),
        masks,
        torch.arange(count) % 2,
        torch.randn((count, 4, 8, 8), generator=generator),
        torch.randint(1000, (count,), generator=generator),
        ["a photo of a {context} with {anomaly}"] * count,
        torch.ones(count, dtype=torch.bool),
    )


# what trains (§5.6.7)


def test_only_the_products_tokens_and_its_control_branch_change(backbone, examples, tmp_path):
    networks = (backbone.denoiser, backbone.text_encoder, backbone.vae)
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    generator = CADiff.create(Config(**QUICK), backbone)
    generator.fit(examples, tmp_path, seed=1)
    for network, old in zip(networks, before, strict=True):
        assert all(torch.equal(old[name], tensor) for name, tensor in network.state_dict().items())
        assert not any(parameter.requires_grad for parameter in network.parameters())
    fresh = Model(backbone, generator.config, 2, seed=1)
    assert set(generator.model.tokens.names) == {"context", "anomaly_0", "anomaly_1"}
    for name in fresh.tokens.names:
        assert generator.model.tokens[name].shape == (1, WIDTH)
        assert not torch.equal(generator.model.tokens[name], fresh.tokens[name])
    moved = generator.model.control.net.controlnet_mid_block.weight
    assert moved.abs().max() > 0
    assert set(generator.model.state_dict()) == set(fresh.state_dict())
    assert not any("denoiser" in name for name in fresh.state_dict())


def test_all_tokens_begin_at_the_word_anomaly(backbone):
    model = Model(backbone, Config(), 2, seed=1)
    ids = backbone.tokenizer("anomaly", add_special_tokens=False)["input_ids"]
    expected = backbone.text_encoder.get_input_embeddings().weight[ids].mean(0)
    assert all(torch.allclose(model.tokens[name][0], expected) for name in model.tokens.names)


def test_the_unet_trains_only_on_demand_and_is_saved_then(examples, tmp_path):
    backbone = tiny_backbone()
    before = copy.deepcopy(backbone.denoiser.state_dict())
    generator = CADiff.create(Config(**{**QUICK, "tune_denoiser": True}, learning_rate=1e-2), backbone)
    generator.fit(examples, tmp_path / "work", seed=1)
    assert any(not torch.equal(before[name], tensor) for name, tensor in backbone.denoiser.state_dict().items())
    generator.save(tmp_path / "saved")
    loaded = CADiff.load(tmp_path / "saved", tiny_backbone())
    (one,), (other,) = _draw(generator, _request(examples)), _draw(loaded, _request(examples))
    assert (one.image == other.image).all()


# the loss (§5.6.8, 4)


def test_without_its_two_extra_terms_the_loss_is_that_of_a_controlnet_with_textual_inversion(backbone):
    model = Model(backbone, Config(localising_weight=0, contrast_weight=0, balance="image"), 2, seed=1)
    batch = _batch(backbone)
    with torch.no_grad():
        found = model.loss(batch, torch.Generator())
        text = model.encode(batch.templates, [[0], [1]]).states
        noised = add_noise(batch.latents, batch.noise, backbone.schedule[batch.times])
        down, mid = model.control.net(noised, batch.times, text, batch.images.expand(-1, 3, -1, -1), return_dict=False)
        predicted = backbone.denoiser(
            noised, batch.times, text, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
    assert float(found) == pytest.approx(float(((predicted - batch.noise) ** 2).mean()), rel=1e-5)


def test_the_loss_is_the_weighted_sum_of_its_terms(backbone):
    model, batch = Model(backbone, Config(localising_weight=0.7, contrast_weight=0.3), 2, seed=1), _batch(backbone)
    with torch.no_grad():
        terms = model.terms(batch, torch.Generator().manual_seed(4))
        total = model.loss(batch, torch.Generator().manual_seed(4))
    assert terms.localising > 0 and terms.contrast > 0
    assert float(total) == pytest.approx(float(terms.noise + 0.7 * terms.localising + 0.3 * terms.contrast), rel=1e-6)


def test_the_contrast_is_of_the_encoders_outputs_which_differ_between_templates(backbone):
    templates = ("a {context} has {anomaly}", "some {anomaly} is here on the {context}")
    model = Model(backbone, Config(templates=templates, contrast_views=8), 2, seed=1)
    with torch.no_grad():
        value = float(model._contrast(torch.Generator().manual_seed(0)))
    # all tokens are equal at first: only outputs that differ can take the loss off its value for equal vectors
    assert value != pytest.approx(7 * np.log(7 * 3), rel=1e-4)


@pytest.mark.parametrize("weights", [{"localising_weight": 1.0, "contrast_weight": 0.0}, {"contrast_weight": 1.0}])
def test_both_extra_terms_move_the_tokens(backbone, weights):
    model = Model(backbone, Config(**{"localising_weight": 0.0, **weights}), 2, seed=1)
    batch = _batch(backbone)
    terms = model.terms(batch, torch.Generator().manual_seed(4))
    (terms.localising + terms.contrast).backward()
    assert all(vector.grad.abs().max() > 0 for vector in model.tokens.parameters())


def _agreement(model, batch):
    """Share of the |M| most attended places that lie in the mask, of the anomaly token at side 8."""
    backbone, count = model.backbone, len(batch.latents)
    noised = add_noise(batch.latents, batch.noise, backbone.schedule[batch.times])
    with torch.no_grad():
        encoded = model.encode(batch.templates, [[number] for number in batch.defects.tolist()])
        groups = token_groups(encoded, [[f"anomaly_{number}"] for number in batch.defects.tolist()])
        with control_attention(backbone.denoiser).capture(groups, sides={8}) as maps:
            model.predict(noised, batch.times, encoded.states, batch.images)
    inside = batch.masks[:, 0].flatten(1) > 0
    most = maps.mean(8)[:, 0].flatten(1).topk(int(inside[0].sum())).indices
    return float(inside.gather(1, most).float().mean()) if count else 0.0


def test_it_learns_loss_falls_and_attention_comes_to_the_mask(tmp_path):
    backbone = tiny_backbone()
    config = Config(localising_weight=1.0, tune_denoiser=True)
    model = Model(backbone, config, 2, seed=1)
    backbone.denoiser.requires_grad_(True)
    batch = _batch(backbone)._replace(defects=torch.zeros(2, dtype=torch.int64), times=torch.tensor([100, 300]))
    before = _agreement(model, batch)
    losses = train(
        model,
        lambda step, generator: model.loss(batch, generator),
        steps=60,
        learning_rate=3e-3,
        weight_decay=0.0,
        seed=1,
        work_dir=tmp_path,
        label="learning",
        overrides={"tokens": {"learning_rate": 1e-1}},
    )
    after = _agreement(model, batch)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert before < 0.6 and after > 0.9


def test_good_images_train_in_the_place_of_some_with_another_ones_mask(examples, tmp_path, monkeypatch):
    seen, loss = [], Model.loss
    monkeypatch.setattr(
        Model, "loss", lambda self, batch, *rest, **more: seen.append(batch) or loss(self, batch, *rest)
    )
    backbone = tiny_backbone()
    generator = CADiff.create(Config(**{**QUICK, "batch_size": 4}, normal_share=0.5, canvas="whole"), backbone)
    generator.fit(examples, tmp_path / "both", seed=1)
    assert all(batch.shown.tolist() == [True, True, False, False] for batch in seen) and len(seen) == QUICK["steps"]
    assert all(batch.masks.flatten(1).sum(1).min() > 0 for batch in seen)
    seen.clear()
    generator.fit([one for one in examples if one.mask is not None], tmp_path / "none", seed=1)
    assert all(batch.shown.all() for batch in seen)


def test_a_good_image_is_told_of_the_defect_at_intensity_zero_and_has_no_part_in_the_localising_loss(fitted, backbone):
    model = copy.copy(fitted.model)
    model.config = Config(**QUICK, localising_weight=1.0, contrast_weight=0, balance="image")
    batch = _batch(backbone)
    half = batch._replace(shown=torch.tensor([True, False]))
    alone = Batch(*(part[:1] for part in batch))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        both, told = (model.terms(one, generator) for one in (batch, half))
        first = model.terms(alone, generator)
        encoded = model.encode(batch.templates, [[int(n)] for n in batch.defects])
        token = torch.zeros(encoded.states.shape[:2], dtype=torch.bool)
        token[1, encoded.spans[1]["anomaly_1"]] = True
        noised = add_noise(batch.latents, batch.noise, backbone.schedule[batch.times])
        with ExitStack() as asked:
            model.reweight(asked, token, lambda side: 1 - resize_mask(batch.masks, side))
            expected = model.predict(noised, batch.times, encoded.states, batch.images)
    assert torch.allclose(told.noise, noise_loss(batch.noise, expected), atol=1e-6)
    assert not torch.allclose(told.noise, both.noise, atol=1e-6)
    assert torch.allclose(told.localising, first.localising, atol=1e-5)


# drawing (§5.6.5, 9)


def test_strength_one_draws_what_no_reweighting_draws_bit_for_bit(fitted, examples):
    never = _with(fitted, focus_threshold=1.0)
    assert (_draw(fitted, _request(examples, strength=1.0))[0].image == _draw(never, _request(examples))[0].image).all()


def test_strength_changes_the_defect_once_focused_and_only_there(fitted, examples):
    request = _request(examples)
    weak, plain, strong = (_draw(fitted, _request(examples, strength=w))[0] for w in (-2.0, 1.0, 2.0))
    for pair in (weak, strong):
        assert (pair.image[request.mask] != plain.image[request.mask]).any()
        assert (pair.image[~request.mask] == plain.image[~request.mask]).all()
    assert (weak.image != strong.image).any()
    unfocused = _with(fitted, focus_threshold=1.0)
    assert (_draw(unfocused, _request(examples, strength=2.0))[0].image == plain.image).all()


def test_the_strength_is_the_requests_or_drawn_from_its_seed_and_is_recorded(fitted, examples):
    assert _draw(fitted, _request(examples, strength=0.25))[0].facts["strength"] == 0.25
    drawn = [_draw(fitted, _request(examples, strength=None, seed=seed))[0].facts["strength"] for seed in (1, 2, 1)]
    assert min(drawn) >= 0.5 and max(drawn) <= 1.5 and drawn[0] == drawn[2] != drawn[1]


def test_without_control_the_mask_has_no_say(fitted, examples):
    free = _with(fitted, control_scale=0.0, paste=False, start="noise", strength_range=(1, 1), canvas="whole")
    held = _with(free, control_scale=1.0)
    request = _request(examples, strength=1.0)
    moved = dataclasses.replace(request, mask=np.roll(request.mask, 14, axis=1))
    assert (_draw(free, request)[0].image == _draw(free, moved)[0].image).all()
    assert (_draw(held, request)[0].image != _draw(held, moved)[0].image).any()


def test_with_paste_every_pixel_outside_the_mask_is_the_normal_images_and_without_it_is_not(fitted, examples):
    request = _request(examples)
    kept = _draw(fitted, request)[0]
    assert (kept.image[~request.mask] == request.normal_image[~request.mask]).all()
    drawn = _draw(_with(fitted, paste=False, start="noise", canvas="whole"), request)[0]
    assert (drawn.image[~request.mask] != request.normal_image[~request.mask]).any()


def test_an_instance_promises_an_untouched_background_only_if_it_pastes(backbone):
    assert CADiff.create(Config(), backbone).capabilities.keeps_background
    assert not CADiff.create(Config(paste=False), backbone).capabilities.keeps_background
    assert CADiff.capabilities.keeps_background and CADiff.capabilities.has_strength


def test_guidance_is_off_at_one_and_changes_the_drawing_above(fitted, examples):
    request = _request(examples)
    guided = _with(fitted, guidance_scale=4.0)
    assert (_draw(guided, request)[0].image != _draw(fitted, request)[0].image).any()


def test_two_defects_share_one_image_and_each_has_a_part_of_the_mask(fitted, examples):
    both = _draw(fitted, _request(examples, defect="dent+scratch"))[0]
    assert both.facts["prompt"] == "a photo of a plate with dent and scratch"
    assert (both.mask == _request(examples).mask).all()
    alone = [_draw(fitted, _request(examples, defect=defect))[0] for defect in DEFECTS]
    assert all((both.image != one.image).any() for one in alone)
    mixed = _draw(fitted, _request(examples), _request(examples, defect="dent+scratch"))
    assert np.abs(mixed[1].image.astype(int) - both.image).max() <= 1
    assert np.abs(mixed[0].image.astype(int) - alone[0].image).max() <= 1


def test_a_joint_defects_token_is_not_read_where_the_other_defect_is(fitted, examples, monkeypatch):
    asked = []
    original = type(fitted._attention).reweight

    def watch(control, tokens, weights, where="probabilities"):
        asked.append((tokens, weights(8)))
        return original(control, tokens, weights, where)

    monkeypatch.setattr(type(fitted._attention), "reweight", watch)
    _draw(_with(fitted, focus_threshold=1.0), _request(examples, defect="dent+scratch"))
    (tokens, first), (others, second) = asked[0], asked[2]  # each in the U-Net and in the control branch
    assert tokens.sum() == 1 and others.sum() == 1 and not (tokens & others).any()
    assert (first == 0).any() and (second == 0).any()
    assert ((first == 0) & (second == 0)).sum() == 0


# bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defect": "rust"}, "defect 'rust' was not fitted; expected dent or scratch"),
        ({"defect": "dent+rust"}, "defect 'rust' was not fitted"),
        ({"defect": "dent+dent"}, "names one defect twice"),
        ({"strength": 3.0}, "strength 3; expected -2 to 2"),
    ],
)
def test_a_request_it_cannot_answer_is_refused_with_one_line(fitted, examples, change, message):
    with pytest.raises(InputError, match=message) as caught:
        _draw(fitted, _request(examples, **change))
    assert "\n" not in str(caught.value)


def test_a_mask_outside_the_object_is_refused(fitted, examples):
    image = np.full((64, 64, 3), 250, np.uint8)
    image[16:48, 16:48] = 40
    corner = np.zeros((64, 64), bool)
    corner[:6, :6] = True
    with pytest.raises(InputError, match="the mask lies outside the object; expected it to overlap"):
        _draw(fitted, _request(examples, normal_image=image, mask=corner))


def test_a_backbone_without_cross_attention_or_with_another_text_width_is_refused():
    blind = tiny_backbone(
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type="UNetMidBlock2D"
    )
    with pytest.raises(InputError, match="no cross-attention layers"):
        CADiff.create(Config(), blind)
    with pytest.raises(InputError, match=f"reads text of width 48, its text encoder gives {WIDTH}"):
        CADiff.create(Config(), tiny_backbone(cross_attention_dim=48))


def test_settings_that_cannot_be_are_refused(backbone):
    with pytest.raises(InputError, match=r"cadiff: loss_sides names 5, but .* has the sides 4, 8"):
        CADiff.create(Config(loss_sides=(5,)), backbone)
    for settings, message in (
        ({"templates": ["a photo of {anomaly}"]}, "once in each template"),
        ({"strength_range": [1.5, 0.5]}, "the smaller first"),
        ({"strength_range": [0, 9]}, "from -2 to 2"),
    ):
        with pytest.raises(InputError, match=message):
            generator_config("cadiff", settings)


def test_too_many_defects_for_the_prompt_are_refused(examples, tmp_path):
    backbone = tiny_backbone(length=7)
    generator = CADiff.create(Config(**QUICK), backbone)
    with pytest.raises(InputError, match="expected a shorter prompt"):
        generator.fit(examples, tmp_path, seed=1)


def test_a_fit_without_defects_is_refused(backbone, examples, tmp_path):
    with pytest.raises(InputError, match="no defect examples to learn from"):
        CADiff.create(Config(**QUICK), backbone).fit(examples[:1], tmp_path, seed=1)
