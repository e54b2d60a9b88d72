"""SeaS on a tiny Stable-Diffusion-like backbone: what trains, what it learns, how it draws (brief §3.6: 4, 6, 9-11)."""

import dataclasses
import functools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from scipy import ndimage
from tiny_unet import tiny_backbone

from defect_core.backbones import load_backbone
from defect_core.data.augment import augment
from defect_core.diffusion.attention import control_attention
from defect_core.diffusion.losses import agreement
from defect_core.diffusion.schedule import add_noise
from defect_core.diffusion.tokens import token_embedding
from defect_core.errors import InputError
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.registry import generator_config
from defect_core.generators.seas import finetune
from defect_core.generators.seas import generator as seas
from defect_core.generators.seas.config import Config
from defect_core.generators.seas.finetune import Batch, Words, finetune_loss
from defect_core.generators.seas.generator import Seas
from defect_core.generators.seas.sampling import Place, begin_from, clean_latents, draw, extended_alpha_bars

DEFECTS = ("dent", "scratch")
AS_PRINTED = {
    "balance": "image",
    "canvas": "whole",
    "paste": False,
    "ref_strength": 0.0,
    "alignment": "paper",
    "reach": None,
}
QUICK = {
    **AS_PRINTED,
    "steps": 3,
    "mask_steps": 2,
    "batch_size": 2,
    "variants": 2,
    "sampling_steps": 4,
    "mask_layers": 1,
}


def _plate(rng):
    return np.clip(128 + rng.normal(0, 6, (64, 64, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    made = [Example("plate", "good", _plate(rng), None, f"good/{number}.png") for number in range(2)]
    for defect, value in zip(DEFECTS, (30, 230), strict=True):
        image, mask = _plate(rng), np.zeros((64, 64), bool)
        mask[8:32, 8:24] = True
        image[mask] = value
        made.append(Example("plate", defect, image, mask, f"{defect}/0.png"))
    return made


@pytest.fixture(scope="module")
def fitted(examples, tmp_path_factory):
    generator = Seas.create(Config(**QUICK), tiny_backbone())
    generator.fit(examples, tmp_path_factory.mktemp("work"), seed=1)
    return generator


def _request(examples, **changes):
    request = SampleRequest("dent-0", "plate", "dent", 5, examples[0].image, examples[2].mask)
    return dataclasses.replace(request, **changes)


def _batch(seed, count=2):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 1, 64, 64)
    masks[..., 8:32, 8:24] = 1
    latents, noise = torch.randn((2, 2 * count, 4, 8, 8), generator=generator)
    times = torch.randint(1000, (2 * count,), generator=generator)
    return Batch(latents, masks, ["dent"] * count, noise, times)


# what trains


def test_every_word_of_the_vocabulary_and_the_frozen_networks_are_bit_identical_after_a_fit(fitted):
    fresh = tiny_backbone()
    assert torch.equal(token_embedding(fitted.backbone).weight, token_embedding(fresh).weight)
    for part in ("text_encoder", "vae"):
        before, after = getattr(fresh, part).state_dict(), getattr(fitted.backbone, part).state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
    begun = Words.begin(fresh, DEFECTS, fitted.config).tokens.vectors
    assert all(not torch.equal(begun[name], rows) for name, rows in fitted.words.tokens.vectors.items())
    assert begun["dent"].shape[0] == 4 and begun["good"].shape[0] == 1
    moved = [
        not torch.equal(before, after)
        for before, after in zip(fresh.denoiser.parameters(), fitted.backbone.denoiser.parameters(), strict=True)
    ]
    assert np.mean(moved) > 0.5


def test_a_part_of_a_batch_holds_the_same_images_of_both_kinds():
    batch = _batch(0, count=3)
    part = batch.part(1, 3)
    assert torch.equal(part.latents, batch.latents[[1, 2, 4, 5]]) and torch.equal(part.times, batch.times[[1, 2, 4, 5]])
    assert torch.equal(part.noise, batch.noise[[1, 2, 4, 5]]) and torch.equal(part.masks, batch.masks[1:])
    assert part.defects == batch.defects[1:]


def test_the_loss_is_that_of_defect_images_plus_that_of_normal_ones_and_neither_touches_the_other(monkeypatch):
    monkeypatch.setattr(finetune, "fast", lambda *_: nullcontext())
    backbone = tiny_backbone()
    config = Config(**AS_PRINTED, noise_weighting="noise")
    words, control = Words.begin(backbone, DEFECTS, config), control_attention(backbone.denoiser)
    trained = [*backbone.denoiser.requires_grad_(True).parameters(), *words.parameters()]

    def gradients(loss):
        found = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        return torch.cat(
            [torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(trained, found, strict=True)]
        )

    batch = _batch(0)
    parts = finetune_loss(backbone, words, control, [4], batch, config)
    defect = gradients(parts.defect_noise + parts.alignment)
    assert torch.allclose(gradients(parts.total), defect + gradients(parts.normal_noise), atol=1e-5)
    other = _batch(1)
    mixed = Batch(
        torch.cat([batch.latents[:2], other.latents[2:]]),
        batch.masks,
        batch.defects,
        torch.cat([batch.noise[:2], other.noise[2:]]),
        torch.cat([batch.times[:2], other.times[2:]]),
    )
    changed = finetune_loss(backbone, words, control, [4], mixed, config)
    assert changed.normal_noise != parts.normal_noise
    assert torch.allclose(gradients(changed.defect_noise + changed.alignment), defect, atol=1e-6)


def test_balanced_a_small_defect_weighs_as_much_as_all_around_it():
    masks = torch.zeros(1, 1, 64, 64)
    masks[..., :8, :16] = 1
    noise, predicted = torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    predicted[..., 0, :2] = 2.0  # two of 64 places, those of the mask
    losses = [finetune._defect_noise(noise, predicted, masks, Config(balance=form)) for form in ("equal", "image")]
    assert losses == [pytest.approx(4 / 2), pytest.approx(4 * 2 / 64)]


def test_defect_images_come_first_and_normal_ones_are_told_the_normal_word_only(fitted, examples):
    views = seas._Views(fitted.backbone, fitted.config, examples[2:], examples[:2], DEFECTS, 0)
    batch = views.batch(3, 1000, torch.Generator().manual_seed(0))
    assert len(batch.latents) == 6 and len(batch.defects) == len(batch.masks) == 3
    assert all(any(torch.equal(row, known) for known in views.defective) for row in batch.latents[:3])
    assert all(any(torch.equal(row, known) for known in views.good) for row in batch.latents[3:])
    prompts = fitted.words.encode(fitted.backbone, [("dent",), ()])
    assert prompts.spans == [{"product": slice(2, 3), "defect": slice(4, 8)}, {"product": slice(2, 3)}]


def test_over_fitting_one_image_lowers_the_alignment_loss_and_brings_the_attention_onto_the_defect(examples):
    backbone = tiny_backbone()
    config = Config(**{**AS_PRINTED, "alignment": "compat"}, alignment_weight=5)
    words, control = Words.begin(backbone, DEFECTS, config), control_attention(backbone.denoiser)
    views = seas._Views(backbone, config, examples[2:3], examples[:1], DEFECTS, 0)
    optimiser = torch.optim.Adam([*backbone.denoiser.requires_grad_(True).parameters(), *words.parameters()], 3e-3)
    held = views.batch(16, 200, torch.Generator().manual_seed(99))

    def measure():
        with torch.no_grad():
            parts = finetune_loss(backbone, words, control, [4], held, config)
        return parts.alignment.item(), agreement(parts.maps.anomaly[4], parts.masks[4]).mean().item()

    loss, score = measure()
    for step in range(60):
        batch = views.batch(4, 300, torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        finetune_loss(backbone, words, control, [4], batch, config).total.backward()
        optimiser.step()
    lower, higher = measure()
    assert lower < 0.6 * loss and higher > score + 0.1, (loss, lower, score, higher)


# drawing


def test_the_extended_schedule_of_the_same_length_noises_as_the_schedule_itself():
    schedule = tiny_backbone().schedule
    assert torch.allclose(extended_alpha_bars(schedule, 1000)[-1].float(), schedule[-1], atol=1e-6)
    clean, noise = torch.randn((2, 1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    own = add_noise(clean, noise, schedule[-1:])
    extended = add_noise(clean, noise, extended_alpha_bars(schedule, 1000)[-1:])
    assert torch.allclose(extended, own, atol=1e-5)


def test_fifteen_hundred_steps_reach_the_level_of_the_public_code():
    assert float(extended_alpha_bars(tiny_backbone().schedule, 1500)[-1]) == pytest.approx(3.18e-4, abs=1e-6)


def test_compat_begins_from_the_unscaled_reference_and_paper_from_the_scaled_one():
    backbone = tiny_backbone()
    clean, noise = torch.randn((2, 1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    shares = []
    for reference in ("paper", "compat"):
        begun = begin_from(backbone, clean, noise, 999, Config(**AS_PRINTED, reference=reference))
        shares.append(
            float(
                (
                    (begun - begin_from(backbone, 0 * clean, noise, 999, Config(**AS_PRINTED, reference=reference)))
                    / clean
                ).mean()
            )
        )
    assert shares[0] == pytest.approx(0.0683, abs=1e-3)
    assert shares[1] == pytest.approx(0.0178 / backbone.vae.config.scaling_factor, abs=1e-3)


def test_clean_latents_undo_the_noise_they_were_given():
    clean, noise = torch.randn((2, 3, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    levels = tiny_backbone().schedule[[5, 300, 900]]
    assert torch.allclose(clean_latents(add_noise(clean, noise, levels), noise, levels), clean, atol=1e-4)


def test_image_and_mask_turn_and_flip_alike_and_a_quarter_turn_four_times_is_nothing():
    side = 8
    rows, columns = np.mgrid[:side, :side]
    image = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
    mask = np.random.default_rng(0).random((side, side)) < 0.3
    seen = {}
    for seed in range(40):
        moved, moved_mask = augment(image, mask, np.random.default_rng(seed), seas._AUGMENTATIONS["rotate_flip"])
        assert (moved_mask == mask[moved[..., 0], moved[..., 1]]).all()
        seen[moved.tobytes()] = moved
    assert len(seen) == 8

    def again(moved, times):
        where = image
        for _ in range(times):
            where = where[moved[..., 0], moved[..., 1]]
        return where

    quarters = [moved for moved in seen.values() if not (again(moved, 2) == image).all()]
    assert len(quarters) == 2
    assert all((again(moved, 4) == image).all() for moved in quarters)


def test_another_reference_changes_an_image_far_less_than_another_seed(fitted, examples):
    references = torch.stack(
        [torch.full((3, 64, 64), -0.5), torch.full((3, 64, 64), 0.5), torch.full((3, 64, 64), -0.5)]
    )
    states = fitted.words.encode(fitted.backbone, [()] * 3).states
    empty = fitted.backbone.encode_text([""])
    first, other_reference, other_seed = draw(
        fitted.backbone, references, states, empty, [1, 1, 2], fitted.config
    ).images
    change = (other_reference - first).abs().mean()
    assert 0 < change < 0.5 * (other_seed - first).abs().mean()


def _draw_twice(fitted, region, **changes):
    """Two drawings from the same seeds: with the defect's words heard in `region` alone, and everywhere."""
    config = fitted.config.model_copy(update=changes)
    references = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        states = fitted.words.encode(fitted.backbone, [("dent",), ("scratch",)]).states
        empty, normal = fitted.backbone.encode_text([""]), fitted.words.encode(fitted.backbone, [()]).states
    given = (fitted.backbone, references, states, empty, [1, 2], config, fitted.branch)
    return draw(*given, Place(region, normal)), draw(*given)


def test_words_heard_in_the_whole_image_draw_as_without_a_region(fitted):
    placed, plain = _draw_twice(fitted, torch.ones(2, 1, 8, 8), residual=False)
    assert torch.allclose(placed.images, plain.images, atol=1e-4)
    assert torch.allclose(placed.masks, plain.masks, atol=1e-4)


def test_words_heard_nowhere_change_nothing_and_heard_somewhere_they_do(fitted):
    settings = {"reach": 0.0, "residual": True, "paste": True}
    nowhere, _ = _draw_twice(fitted, torch.zeros(2, 1, 8, 8), **settings)
    assert nowhere.images.abs().max() < 1e-4  # the difference of the two walks
    region = torch.zeros(2, 1, 8, 8)
    region[..., 2:4, 2:4] = 1
    somewhere, _ = _draw_twice(fitted, region, **settings)
    change = somewhere.images.abs().mean(1)
    assert change[:, 16:32, 16:32].mean() > 2 * change[:, 48:, 48:].mean() > 0


@pytest.mark.parametrize("residual", [True, False])
def test_masks_stay_within_reach_of_the_requested_one_and_the_image_changes_in_them_alone(fitted, examples, residual):
    config = fitted.config
    fitted.config = config.model_copy(
        update={"reach": 3.0, "paste": True, "residual": residual, "mask_threshold": 1e-4, "ref_strength": 0.5}
    )
    request = _request(examples)
    pair = next(fitted.sample([request]))
    fitted.config = config
    near = ndimage.distance_transform_edt(~request.mask) <= 3
    assert (pair.mask == near).all()  # so low a threshold leaves nothing else to decide
    assert (pair.image[~near] == request.normal_image[~near]).all()
    change = pair.image[near].astype(int) - request.normal_image[near]
    assert np.abs(change).mean() > 0.1 and abs(change.mean()) < 60  # a forgotten middle grey would add 127


def test_the_strongest_pixels_of_an_empty_prediction_lie_within_reach_too(fitted, examples):
    """Also where the share asks for more pixels than lie there."""
    config = fitted.config
    fitted.config = config.model_copy(update={"reach": 0.0, "paste": True, "mask_threshold": 0.9999})
    small = np.zeros((64, 64), bool)
    small[40, 50] = True
    pair = next(fitted.sample([_request(examples, mask=small)]))
    fitted.config = config
    assert pair.facts["mask_rule"] == "strongest 0.5%" and (pair.mask == small).all()


def test_normal_images_begin_from_all_references_in_turn(fitted):
    config = fitted.config
    fitted.config = config.model_copy(update={"ref_strength": 0.5})
    rng = np.random.default_rng(1)
    references = [_plate(rng), np.zeros((40, 50, 3), np.uint8)]
    images = list(fitted.generate_normals([1, 2, 3], references))
    assert [image.shape for image in images] == [(64, 64, 3), (40, 50, 3), (64, 64, 3)]
    alone = next(fitted.generate_normals([3], references[:1]))
    other = next(fitted.generate_normals([3], references[1:]))
    fitted.config = config
    assert np.abs(images[2].astype(int) - alone).max() <= 1 and alone.shape != other.shape
    assert (images[0] != images[2]).any()


def test_a_mask_without_any_pixel_above_the_threshold_becomes_the_strongest_ones_and_says_so(fitted, examples):
    config = fitted.config
    fitted.config = config.model_copy(update={"mask_threshold": 0.9999})
    pair = next(fitted.sample([_request(examples)]))
    fitted.config = config.model_copy(update={"mask_threshold": 1e-4})
    full = next(fitted.sample([_request(examples)]))
    fitted.config = config
    assert pair.facts["mask_rule"] == "strongest 0.5%" and pair.mask.sum() == round(0.005 * 64 * 64)
    assert pair.soft_mask[pair.mask].min() >= pair.soft_mask[~pair.mask].max()
    assert full.facts["mask_rule"] == "threshold" and full.mask.all()


def test_an_unseen_defect_joins_the_words_of_two_fitted_ones(fitted, examples):
    pair = next(fitted.sample([_request(examples, defect="scratch+dent")]))
    assert pair.facts["prompt"] == "a <plate> with <scratch> <dent>"
    spans = fitted.words.encode(fitted.backbone, [("scratch", "dent")]).spans[0]
    assert spans["defect"] == slice(4, 12)
    single = next(fitted.sample([_request(examples)]))
    assert (pair.image != single.image).any()
    with pytest.raises(InputError, match="defect 'rust' was not fitted; expected dent or scratch"):
        next(fitted.sample([_request(examples, defect="scratch+rust")]))


@pytest.mark.parametrize("canvas", ["whole", "local"])
def test_a_pasted_defect_leaves_everything_outside_its_mask_untouched(fitted, examples, canvas):
    config = fitted.config
    changes = {"paste": True, "canvas": canvas, "min_side": 32, "context": 1.5, "mask_threshold": 0.5}
    fitted.config = config.model_copy(update=changes)
    pair = next(fitted.sample([_request(examples)]))
    fitted.config = config
    assert (pair.image == examples[0].image)[~pair.mask].all() and not pair.mask.all()
    if canvas == "local":
        assert not pair.mask[40:].any() and not pair.mask[:, 40:].any()


# resuming, bad input


def test_a_fit_killed_in_either_stage_goes_on_to_the_same_weights(examples, tmp_path, monkeypatch):
    monkeypatch.setattr(seas, "train", functools.partial(seas.train, checkpoint_every=2))
    config = Config(**{**QUICK, "steps": 5, "mask_steps": 4, "batch_size": 1, "mask_layers": 0})
    whole = Seas.create(config, tiny_backbone())
    whole.fit(examples, tmp_path / "whole", seed=1)

    def kill(name, at):
        """Fit until the call number `at` of a loss, or to the end; how many calls there were."""
        calls, real = [], getattr(seas, name)

        def run(*args, **kwargs):
            calls.append(name)
            if len(calls) == at:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        generator = Seas.create(config, tiny_backbone())
        with monkeypatch.context() as patch:
            patch.setattr(seas, name, run)
            if at is not None:
                with pytest.raises(KeyboardInterrupt):
                    generator.fit(examples, tmp_path / "killed", seed=1)
            else:
                generator.fit(examples, tmp_path / "killed", seed=1)
        return generator, len(calls)

    one = len(seas._CHECK_TIMES) * len(DEFECTS) * config.variants  # calls of a measure: every view alone
    kill("finetune_loss", one + 4)  # the measure before, then three steps and a half
    kill("branch_loss", 4)
    resumed, steps = kill("branch_loss", None)
    assert steps == 2 and kill("finetune_loss", None)[1] == 2 * one + 1
    assert resumed.training == whole.training
    for part in (lambda g: g.backbone.denoiser, lambda g: g.words, lambda g: g.branch):
        for name, tensor in part(whole).state_dict().items():
            assert torch.equal(tensor, part(resumed).state_dict()[name]), name


def test_examples_of_one_kind_only_are_refused(examples, tmp_path):
    generator = Seas.create(Config(**QUICK), tiny_backbone())
    with pytest.raises(InputError, match="seas: no good examples to learn from"):
        generator.fit(examples[2:], tmp_path, seed=1)
    with pytest.raises(InputError, match="seas: no defect examples to learn from"):
        generator.fit(examples[:2], tmp_path, seed=1)
    with pytest.raises(InputError, match="seas: no normal images to begin from"):
        next(generator.generate_normals([1], []))


def test_a_backbone_that_lacks_what_the_alignment_needs_is_refused():
    plain = {"down_block_types": ("DownBlock2D",) * 2}
    with pytest.raises(InputError, match="no cross-attention in its encoder"):
        Seas.create(Config(), tiny_backbone(**plain))
    with pytest.raises(InputError, match="reads text of width 16, its text encoder gives 32"):
        Seas.create(Config(), tiny_backbone(cross_attention_dim=16))
    with pytest.raises(InputError, match="ends at token .* expected a shorter prompt or fewer learned words"):
        Words.begin(tiny_backbone(length=8), DEFECTS, Config()).encode(tiny_backbone(length=8), [("dent",)])


def test_settings_that_do_not_go_together_are_refused_with_their_field():
    with pytest.raises(InputError, match="mask_width.*multiple of 24"):
        generator_config("seas", {"mask_width": 40})
    with pytest.raises(InputError, match="compat begins at the schedule's last step only"):
        generator_config("seas", {"reference": "compat"})


def test_another_methods_or_backbones_folder_is_refused(fitted, tmp_path):
    fitted.save(tmp_path)
    with pytest.raises(InputError, match="fitted on backbone 'tiny' with other weights"):
        Seas.load(tmp_path, load_backbone("embedded"))
