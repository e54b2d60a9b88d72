"""Disentangled DDIM inversion learns: both terms of eq. 5 fall, and the defect is inside the mask only."""

import numpy as np
import pytest
import torch
from plate_examples import plate_examples
from tiny_unet import tiny_backbone

from defect_core.diffusion.attention import control_attention
from defect_core.diffusion.schedule import add_noise, make_trajectory
from defect_core.errors import InputError
from defect_core.generators.base import SampleRequest
from defect_core.generators.disentangled_inversion.config import DisentangledInversionConfig
from defect_core.generators.disentangled_inversion.denoiser import MaskedDenoiser, encode_prompts
from defect_core.generators.disentangled_inversion.generator import DisentangledInversion
from defect_core.generators.disentangled_inversion.inversion import (
    disentanglement_loss,
    invert_background,
    sample_defect,
)
from defect_core.generators.disentangled_inversion.training import fit_product, make_loss
from defect_core.generators.views import LatentBank

DEFECTS = ("dent", "scratch")
SHIFT = 2.0  # of the first latent channel, upwards in a dent and downwards in a scratch
QUICK = {"steps": 2, "batch_size": 2, "variants": 2, "sampling_steps": 3, "canvas": "whole"}


def _masks():
    masks = torch.zeros(8, 1, 8, 8)
    for row, mask in enumerate(masks):
        top, left = 2 * (row // 2) % 5, (3 * row) % 5
        mask[:, top : top + 3, left : left + 3] = 1
    return masks


def _normal_latents(count):
    return torch.linspace(-0.5, 0.5, 8).expand(count, 4, 8, 8)


def _bank():
    masks, defects = _masks(), torch.arange(8) % 2
    latents = _normal_latents(8).clone()
    latents[:, :1] += SHIFT * masks * (1 - 2 * defects)[:, None, None, None]
    return LatentBank(latents, masks, defects)


def _denoiser(backbone, config, mask, rows):
    prompts = encode_prompts(backbone, config, "plate", DEFECTS)
    prompts = prompts._replace(defect=prompts.defect[rows], defect_tokens=prompts.defect_tokens[rows])
    return MaskedDenoiser(backbone, control_attention(backbone.denoiser), prompts, mask, 1.0, False)


@torch.no_grad()
def _loss_terms(backbone, config, bank):
    """Return both terms of eq. 5 from separate calls of the two branches, with fixed noise and timesteps."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(bank.latents.shape, generator=generator)
    timesteps = torch.tensor([100, 300, 500, 700]).repeat(2)
    noised = add_noise(bank.latents, noise, backbone.alphas_cumprod[timesteps])
    denoiser = _denoiser(backbone, config, bank.masks, bank.defects)
    inside = bank.masks * (noise - denoiser.predict_defect(noised, timesteps)) ** 2
    outside = (1 - bank.masks) * (noise - denoiser.predict_background((1 - bank.masks) * noised, timesteps)) ** 2
    return float(inside.sum() / bank.masks.sum() / 4), float(outside.sum() / (1 - bank.masks).sum() / 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A backbone after a short training on `_bank`, the settings, and both loss terms before and after."""
    backbone, config, bank = (
        tiny_backbone(),
        DisentangledInversionConfig(steps=120, batch_size=4, learning_rate=1e-2),
        _bank(),
    )
    prompts = encode_prompts(backbone, config, "plate", DEFECTS)
    before = _loss_terms(backbone, config, bank)
    loss = make_loss(backbone, control_attention(backbone.denoiser), config, prompts, bank)
    fit_product(backbone, loss, config, 1, tmp_path_factory.mktemp("work"), "learning")
    return backbone, config, before, _loss_terms(backbone, config, bank)


def test_both_terms_of_the_loss_fall(trained):
    _, _, before, after = trained
    assert after[0] < 0.5 * before[0]
    assert after[1] < 0.5 * before[1]


def test_the_defect_of_the_prompt_is_inside_the_mask_and_not_outside(trained):
    backbone, config, _, _ = trained
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 3:6, 2:5] = 1
    clean, denoiser = _normal_latents(2), _denoiser(backbone, config, mask, torch.tensor([0, 1]))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    trajectory = make_trajectory(backbone.alphas_cumprod, 20)
    with torch.no_grad():
        inversion = invert_background(clean, mask, denoiser.predict_background, trajectory)
        for background in (None, denoiser.predict_background):
            sampled = sample_defect(inversion, mask, noise, denoiser.predict_defect, background, trajectory)
            change = sampled - clean
            inside = (change * mask).sum((2, 3))[:, 0] / 9
            outside = ((1 - mask) * change).abs().mean()
            assert inside[0] > 0.6 and inside[1] < -0.6
            assert outside < 0.15


def test_the_loss_of_a_step_is_eq_5_of_the_two_branches():
    backbone, bank = tiny_backbone(), _bank()
    config = DisentangledInversionConfig(batch_size=6, balance="area")
    prompts = encode_prompts(backbone, config, "plate", DEFECTS)
    loss = make_loss(backbone, control_attention(backbone.denoiser), config, prompts, bank)
    with torch.no_grad():
        value = sum(float(part) for part in loss(0, torch.Generator().manual_seed(8)))
    generator = torch.Generator().manual_seed(8)
    rows = torch.randint(8, (6,), generator=generator)
    noise = torch.randn((6, 4, 8, 8), generator=generator)
    timesteps = torch.randint(1000, (6,), generator=generator)
    masks = bank.masks[rows]
    noised = add_noise(bank.latents[rows], noise, backbone.alphas_cumprod[timesteps])
    denoiser = _denoiser(backbone, config, masks, bank.defects[rows])
    with torch.no_grad():
        defect = denoiser.predict_defect(noised, timesteps)
        background = denoiser.predict_background((1 - masks) * noised, timesteps)
    expected = ((noise - masks * defect - (1 - masks) * background) ** 2).mean()  # the second form of eq. 5
    assert value == pytest.approx(float(expected), rel=1e-4)
    swapped = _denoiser(backbone, config, masks, 1 - bank.defects[rows])
    with torch.no_grad():
        other = swapped.predict_defect(noised, timesteps)
    assert abs(float(((other - defect) * masks).abs().max())) > 1e-5  # so that the prompts are compared, too


@pytest.mark.parametrize("balance", ["area", "equal", "equal_per_sample"])
def test_the_losses_of_the_parts_of_a_batch_add_up(balance):
    backbone, bank = tiny_backbone(), _bank()
    config = DisentangledInversionConfig(batch_size=5, balance=balance)
    prompts = encode_prompts(backbone, config, "plate", DEFECTS)
    loss = make_loss(backbone, control_attention(backbone.denoiser), config, prompts, bank)
    values = []
    for count in (1, 2, 5):
        backbone.compute = backbone.compute.model_copy(update={"accumulate": count})
        with torch.no_grad():
            parts = [float(part) for part in loss(0, torch.Generator().manual_seed(8))]
        assert len(parts) == count
        values.append(sum(parts))
    assert values == pytest.approx([values[0]] * 3, rel=1e-4)


def _first_attention(backbone, denoise):
    """Return the output of the first cross-attention layer, which depends on the text only through that layer."""
    layer = next(module for name, module in backbone.denoiser.named_modules() if name.endswith("attn2"))
    outputs = []
    hook = layer.register_forward_hook(lambda *args: outputs.append(args[-1]))
    with torch.no_grad():
        denoise()
    hook.remove()
    return outputs[0].unflatten(1, (8, 8))


@pytest.mark.parametrize("branch", ["predict_defect", "predict_background"])
def test_each_prompt_conditions_its_region_only(branch):
    """Eq. 10 and 11: C_def or C_m inside the mask, C_bg outside, in one layer of the U-Net."""
    backbone, config = tiny_backbone(), DisentangledInversionConfig()
    masks = _masks()[:2]
    inside = masks[:, 0] > 0
    latents, timesteps = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(1)), torch.tensor(400)

    def attend(**changed):
        denoiser = _denoiser(backbone, config, masks, torch.tensor([0, 1]))
        denoiser.prompts = denoiser.prompts._replace(**changed)
        return _first_attention(backbone, lambda: getattr(denoiser, branch)(latents, timesteps))

    prompts = encode_prompts(backbone, config, "plate", DEFECTS)
    plain, other = attend(), torch.roll(prompts.background, 1, 1) + 1
    used, unused = ("defect", "hole") if branch == "predict_defect" else ("hole", "defect")
    moved = attend(background=other)
    assert torch.equal(moved[inside], plain[inside]) and (moved[~inside] != plain[~inside]).any(-1).all()
    moved = attend(**{used: getattr(prompts, used) + 1})
    assert torch.equal(moved[~inside], plain[~inside]) and (moved[inside] != plain[inside]).any(-1).all()
    assert torch.equal(attend(**{unused: getattr(prompts, unused) + 1}), plain)


@pytest.mark.parametrize(("sides", "expected"), [((), [8, 4]), ((4,), [4]), ((8, 4), [8, 4])])
def test_refinement_averages_the_attention_of_the_named_layers(sides, expected):
    backbone, masks = tiny_backbone(), _masks()[:1]
    denoiser = _denoiser(backbone, DisentangledInversionConfig(), masks, torch.tensor([0]))
    denoiser.captures_attention, denoiser.sides = True, sides
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        denoiser.predict_defect(latents, torch.tensor(400))
        with denoiser.control.capture(denoiser.prompts.defect_tokens[:, None]) as every:
            denoiser.captures_attention = False
            denoiser.predict_defect(latents, torch.tensor(400))
    total = sum(
        float(layer.sum()) * (8 / layer.shape[-1]) ** 2 for _, layer in every.layers if layer.shape[-1] in expected
    )
    assert sum(float(each.sum()) for each in denoiser.attention_maps) == pytest.approx(total, rel=0.05)


def test_sides_that_the_backbone_lacks_are_refused_in_one_line():
    with pytest.raises(InputError, match=r"refinement_sides names 32, but .* the sides 4, 8; expected some of these"):
        DisentangledInversion(tiny_backbone(), DisentangledInversionConfig(refinement_sides=(32,)))


def test_equal_per_sample_gives_every_defect_the_same_weight():
    noise, mask = torch.zeros(3, 4, 16, 16), torch.zeros(3, 1, 16, 16)
    mask[0, :, 3, 3] = mask[1, :, :10, :10] = 1  # the third image has no defect
    for row in (0, 1):
        wrong = torch.zeros_like(noise)
        wrong[row] = 1
        assert float(disentanglement_loss(noise, wrong, noise, mask, "equal_per_sample")) == pytest.approx(1 / 2)
    small_alone = torch.zeros_like(noise)
    small_alone[0] = 1
    assert float(disentanglement_loss(noise, small_alone, noise, mask, "equal")) == pytest.approx(1 / 101)
    assert float(disentanglement_loss(noise, noise, noise + 1, mask, "equal_per_sample")) == pytest.approx(1)


def _requests(examples, count=3):
    mask = np.zeros((64, 64), bool)
    mask[20:36, 12:40] = True
    names = [("dent", "scratch")[index % 2] for index in range(count)]
    return [
        SampleRequest(f"{name}-{index}", "plate", name, index, examples[0].image, mask)
        for index, name in enumerate(names)
    ]


@pytest.fixture(scope="module")
def per_defect(tmp_path_factory):
    """A generator with one U-Net per defect, and the folders of its fit and of its saved files."""
    folder = tmp_path_factory.mktemp("inversion")
    generator = DisentangledInversion(tiny_backbone(), DisentangledInversionConfig(**QUICK, models="defect"))
    generator.fit(plate_examples(1, slice(20, 40), slice(10, 30)), folder / "work", seed=1)
    generator.save(folder / "saved")
    return generator, folder


def test_every_defect_has_a_unet_of_its_own_fitted_to_its_examples_only(per_defect, tmp_path):
    generator, folder = per_defect
    assert sorted(path.name for path in (folder / "saved").glob("*.safetensors")) == [
        "unet_00.safetensors",
        "unet_01.safetensors",
    ]
    assert len(generator.training["loss"]) == 2 * QUICK["steps"]
    dents = [each for each in plate_examples(1, slice(20, 40), slice(10, 30)) if each.defect != "scratch"]
    alone = DisentangledInversion(tiny_backbone(), DisentangledInversionConfig(**QUICK))
    alone.fit(dents, tmp_path, seed=1)
    states = generator.state_dicts()
    expected = alone.backbone.denoiser.state_dict()
    # The first defect sees the same views and random numbers as a fit without the second one.
    assert all(torch.equal(value.float(), expected[name]) for name, value in states["unet_00"].items())
    assert any(not torch.equal(value, states["unet_00"][name]) for name, value in states["unet_01"].items())


def test_a_sample_comes_from_the_unet_of_its_defect_in_any_batch(per_defect):
    generator, folder = per_defect
    requests = _requests(plate_examples(1, slice(20, 40), slice(10, 30)))
    mixed = list(generator.sample(requests))
    assert [pair.sample_id for pair in mixed] == [request.sample_id for request in requests]
    loaded = DisentangledInversion.load(folder / "saved", tiny_backbone())
    for request, pair in zip(requests, mixed, strict=True):
        (alone,) = loaded.sample([request])
        assert np.abs(alone.image.astype(int) - pair.image).max() <= 1
    generator._use_unet("scratch")
    wrong = dict(generator._unets)
    generator._unets = {"dent": wrong["scratch"], "scratch": wrong["dent"]}
    generator._current_unet = None
    assert any((a.image != b.image).any() for a, b in zip(mixed, generator.sample(requests), strict=True))
    loads = []
    generator._unets = {name: lambda name=name: loads.append(name) or wrong[name]() for name in wrong}
    generator._current_unet = None
    list(generator.sample(requests))
    assert loads == ["dent", "scratch"]
    generator._unets, generator._current_unet = wrong, None


def test_a_finished_unet_is_not_trained_again(per_defect, monkeypatch):
    generator, folder = per_defect
    again = DisentangledInversion(tiny_backbone(), generator.config)
    (folder / "work" / "unet_01" / "finished.safetensors").unlink()
    trained = []
    from defect_core.generators.disentangled_inversion import training

    fit = training.fit_product
    monkeypatch.setattr(training, "fit_product", lambda *args: trained.append(args[-1]) or fit(*args))
    again.fit(plate_examples(1, slice(20, 40), slice(10, 30)), folder / "work", seed=1)
    assert trained == ["fine-tuning a U-Net on scratch"]
    for name, state in generator.state_dicts().items():
        assert all(torch.equal(value, again.state_dicts()[name][key]) for key, value in state.items())
    assert again.training == generator.training


def test_without_paste_the_background_is_the_decoded_sample():
    examples = plate_examples(1, slice(20, 40), slice(10, 30))
    request = _requests(examples, 1)[0]
    for paste in (True, False):
        config = DisentangledInversionConfig(**QUICK, paste=paste)
        generator = DisentangledInversion(tiny_backbone(), config, "plate", DEFECTS)
        (pair,) = generator.sample([request])
        is_kept = (pair.image == request.normal_image).all(-1)
        assert is_kept[~pair.mask].all() == paste
        assert generator.capabilities.keeps_background == paste


@pytest.mark.parametrize("paste", [True, False])
def test_attention_never_refines_to_pixels_outside_the_requested_mask(paste):
    examples = plate_examples(1, slice(20, 40), slice(10, 30))
    config = DisentangledInversionConfig(**QUICK, refinement="attention", refinement_sides=(4, 8), paste=paste)
    generator = DisentangledInversion(tiny_backbone(), config, "plate", DEFECTS)
    for request in _requests(examples):
        (pair,) = generator.sample([request])
        assert pair.mask.any() and not (pair.mask & ~request.mask).any()
        assert pair.mask.sum() < request.mask.sum()
