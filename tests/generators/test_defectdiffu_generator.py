"""DefectDiffu as a generator: catalogue, zero-shot requests, regions, strength, masks."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_dit import plain_dit

from defect_core.backbones.load import load_backbone
from defect_core.errors import InputError
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.defectdiffu import generator as generator_module
from defect_core.generators.defectdiffu import view_bank
from defect_core.generators.defectdiffu.config import DefectDiffuConfig
from defect_core.generators.defectdiffu.generator import DefectDiffu
from defect_core.generators.defectdiffu.view_bank import encode_bank
from defect_core.synthesis.config import FilterLimits
from defect_core.synthesis.filter import measure_pair

QUICK = {"steps": 2, "batch_size": 4, "variants": 2, "normal_variants": 1, "sampling_steps": 4}
SHAPE = (64, 80)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("embedded")


@pytest.fixture(scope="module")
def small_dit(backbone, tmp_path_factory):
    """Name of a narrow transformer for the latents of the embedded backbone."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    folder = tmp_path_factory.mktemp("dit")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=backbone.latent_channels,
            out_channels=2 * backbone.latent_channels,
            num_layers=3,
            sample_size=16,
            num_embeds_ada_norm=1,
        ).save_pretrained(folder / "transformer")
    return str(folder)


@pytest.fixture(scope="module")
def catalogue():
    """Examples of `plate` with two defects, `sheet` with scratches, and `disc` without defects."""
    rng, examples = np.random.default_rng(0), []
    for product, shade, defects in (("plate", 90, ("dent", "scratch")), ("sheet", 150, ("scratch",)), ("disc", 60, ())):
        for index in range(2):
            examples.append(Example(product, "good", _surface(rng, shade), None, f"{product}/good/{index}.png"))
        for defect in defects:
            image, mask = _surface(rng, shade), np.zeros(SHAPE, bool)
            mask[20:34, 30 : 36 if defect == "scratch" else 44] = True
            image[mask] = 230
            examples.append(Example(product, defect, image, mask, f"{product}/{defect}/0.png"))
    return examples


@pytest.fixture(scope="module")
def fitted(backbone, small_dit, catalogue, tmp_path_factory):
    generator = DefectDiffu.create(DefectDiffuConfig(dit=small_dit, **QUICK), backbone)
    generator.fit(catalogue, tmp_path_factory.mktemp("work"), seed=1)
    return generator


@pytest.fixture(scope="module")
def bank(fitted, catalogue):
    return encode_bank(fitted.backbone, fitted.config, catalogue, fitted.resolution, fitted.latent_size, 0)


@pytest.fixture
def request_disc(catalogue):
    """A function that returns a request for a dent on a disc, with changes."""
    mask = np.zeros(SHAPE, bool)
    mask[10:20, 12:25] = True
    normal = next(example.image for example in catalogue if example.product == "disc")
    request = SampleRequest("x", "disc", "dent", 7, normal_image=normal, mask=mask)
    return lambda **changes: dataclasses.replace(request, **changes)


def _surface(rng, shade):
    return np.clip(rng.normal(shade, 6, (*SHAPE, 3)), 0, 255).astype(np.uint8)


def _sample_one(generator, request):
    return next(iter(generator.sample([request])))


def _with_settings(fitted, **changes):
    config = fitted.config.model_copy(update=changes)
    return DefectDiffu(fitted.backbone, config, fitted.transformer, fitted.encoder, fitted.products, fitted.defects)


def _make_pair(fitted, request, soft_mask, **changes):
    """Return the pair of a black canvas with the given soft mask."""
    generator = _with_settings(fitted, paste=False, **changes)
    return generator.make_pair(generator.prepare(request), np.zeros((128, 128, 3), np.float32), soft_mask)


def _soft_mask(background, value, *region):
    soft_mask = np.full((128, 128), background, np.float32)
    soft_mask[region] = value
    return soft_mask


def test_a_product_without_defects_is_part_of_the_catalogue(fitted):
    assert fitted.products == ("disc", "plate", "sheet")
    assert fitted.defects == ("dent", "scratch")


def test_a_defect_is_generated_on_a_product_without_examples_of_it(fitted, request_disc):
    pair = _sample_one(fitted, request_disc())
    assert pair.mask.any()
    assert pair.metadata["prompt"] == "a photo of dent disc"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"product": "cube"}, "product 'cube' was not fitted; expected disc or plate or sheet"),
        ({"defect": "rust"}, "defect 'rust' was not fitted; expected dent or scratch"),
        ({"normal_image": None}, "expected a normal image"),
        ({"mask": np.zeros(SHAPE, bool)}, "the mask is empty"),
        ({"mask": np.ones((4, 4), bool)}, "expected the same size"),
    ],
)
def test_an_invalid_request_is_refused(fitted, request_disc, change, message):
    with pytest.raises(InputError, match=message):
        list(fitted.sample([request_disc(**change)]))


def test_fit_without_defect_examples_is_refused(backbone, small_dit, catalogue, tmp_path):
    generator = DefectDiffu.create(DefectDiffuConfig(dit=small_dit, **QUICK), backbone)
    with pytest.raises(InputError, match="no defect examples"):
        generator.fit([example for example in catalogue if example.mask is None], tmp_path, seed=1)


def test_a_dit_with_other_latent_channels_than_the_vae_is_refused(backbone, tmp_path):
    plain_dit().save_pretrained(tmp_path / "transformer")
    with pytest.raises(InputError, match="has latents of 4 channels, the backbone 'embedded' of"):
        DefectDiffu.create(DefectDiffuConfig(dit=str(tmp_path)), backbone)


def test_training_batches_have_uniform_products_and_defects(bank):
    rows = bank.choose(6000, 0.6, torch.Generator().manual_seed(0))
    chosen = [bank.names[row] for row in rows.tolist()]
    fractions = {name: chosen.count(name) / len(chosen) for name in set(chosen)}
    for product, defect in (("plate", "dent"), ("plate", "scratch"), ("sheet", "scratch")):
        assert fractions[product, defect] == pytest.approx(0.2, abs=0.02)
    for product in ("plate", "sheet", "disc"):
        assert fractions[product, "good"] == pytest.approx(0.4 / 3, abs=0.02)


def test_a_bank_in_files_is_that_in_memory_and_never_holds_all_views(fitted, catalogue, bank, tmp_path, monkeypatch):
    sizes, encode = [], view_bank.encode_images

    def count_images(backbone, images):
        sizes.append(len(images))
        return encode(backbone, images)

    monkeypatch.setattr(view_bank, "encode_images", count_images)
    monkeypatch.setattr(view_bank, "ENCODING_BATCH_SIZE", 5)
    stored = encode_bank(
        fitted.backbone, fitted.config, catalogue, fitted.resolution, fitted.latent_size, 0, tmp_path / "views"
    )
    assert max(sizes) == 5 and sum(sizes) == 2 * len(bank.names)
    assert (tmp_path / "views" / "latents.bin").stat().st_size == 4 * bank.latents.numel()
    for name in ("latents", "masks", "mask_latents"):
        assert torch.allclose(getattr(stored, name), getattr(bank, name), atol=1e-4)
    assert stored.names == bank.names


def test_training_masks_are_empty_for_normal_views_only(bank):
    for row, (_, defect) in enumerate(bank.names):
        assert bool(bank.masks[row].any()) == (defect != "good")


def test_the_mask_latent_of_a_normal_view_decodes_to_black(fitted, bank):
    black = bank.mask_latents[bank.names.index(("disc", "good"))]
    assert float(fitted.backbone.decode(black[None]).max()) < -0.9


def test_the_region_is_the_requested_mask_at_the_latent_size(fitted, request_disc):
    task = fitted.prepare(request_disc())
    region = fitted.make_regions([task])[0, 0].numpy()
    assert region.shape == (16, 16)
    assert set(np.unique(region)) == {0, 1}
    rows, columns = np.nonzero(region)
    window, (mask_rows, mask_columns) = task.window, np.nonzero(task.request.mask)
    cell_height, cell_width = window.height / 16, window.width / 16
    assert abs(window.top + cell_height * rows.min() - mask_rows.min()) <= cell_height
    assert abs(window.left + cell_width * (columns.max() + 1) - mask_columns.max() - 1) <= cell_width + 1


def test_the_region_is_empty_without_mask_or_region_training(fitted, request_disc):
    assert not fitted.make_regions([fitted.prepare(request_disc(mask=None))]).any()
    untrained = _with_settings(fitted, region_fraction=0.0)
    assert not untrained.make_regions([untrained.prepare(request_disc())]).any()


@pytest.fixture
def record_batches(monkeypatch):
    """Replace the training loss by one that records the batches."""
    batches = []

    def record(model, schedule, batch, weights, compute):
        batches.append(batch)
        return model.text.weight.square().mean()

    monkeypatch.setattr(generator_module, "training_loss", record)
    return batches


def test_a_fraction_of_the_defect_views_is_trained_with_its_region(
    backbone, small_dit, catalogue, tmp_path, record_batches
):
    settings = {**QUICK, "steps": 6, "batch_size": 32, "region_fraction": 0.5}
    generator = DefectDiffu.create(DefectDiffuConfig(dit=small_dit, **settings), backbone)
    generator.fit(catalogue, tmp_path, seed=1)
    masks, regions, defects = (
        torch.cat(parts)
        for parts in zip(*((b.masks, b.region, b.conditions.defect) for b in record_batches), strict=True)
    )
    is_normal = (defects == generator.encoder(["a photo of good"])).all(1)
    has_region = regions.flatten(1).any(1)
    assert not has_region[is_normal].any()
    assert torch.equal(regions[has_region], masks[has_region])
    defect_views = ~is_normal & masks.flatten(1).any(1)
    assert float(has_region.sum() / defect_views.sum()) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(("start", "end"), [("normal", 250), ("noise", 1000)])
def test_only_noise_levels_of_the_sampler_are_trained(
    backbone, small_dit, catalogue, tmp_path, record_batches, start, end
):
    settings = {**QUICK, "steps": 8, "batch_size": 32, "start": start, "start_level": 0.25}
    DefectDiffu.create(DefectDiffuConfig(dit=small_dit, **settings), backbone).fit(catalogue, tmp_path, seed=1)
    assert 0.9 * end < int(torch.cat([batch.timesteps for batch in record_batches]).max()) < end


def test_the_requested_strength_is_in_the_metadata(fitted, request_disc):
    assert _sample_one(fitted, request_disc(strength=2.25)).metadata["strength"] == 2.25
    request = request_disc()
    assert _sample_one(fitted, request).metadata["strength"] == fitted.choose_strength(request)


def test_the_seed_chooses_the_strength_from_the_range(fitted, request_disc):
    strengths = {fitted.choose_strength(request_disc(seed=seed)) for seed in range(200)}
    assert min(strengths) >= 1.5
    assert max(strengths) <= 3.5
    assert len(strengths) > 150


def test_strength_zero_returns_the_normal_image(fitted, request_disc):
    request = request_disc(strength=0.0)
    assert (_sample_one(fitted, request).image == request.normal_image).all()
    without_residual = _sample_one(_with_settings(fitted, residual=False), request)
    assert (without_residual.image != request.normal_image).any()


def test_a_high_strength_changes_pixels_inside_the_mask(fitted, request_disc):
    request = request_disc(strength=30.0)
    pair = _sample_one(fitted, request)
    assert (pair.image != request.normal_image).any(-1)[pair.mask].mean() > 0.5


def test_strength_changes_the_image(fitted, request_disc):
    generator = _with_settings(fitted, paste=False)
    weak, strong = (_sample_one(generator, request_disc(strength=strength)) for strength in (0.0, 30.0))
    assert (weak.image != strong.image).any()


def test_without_paste_the_whole_window_changes_and_nothing_else(fitted, request_disc):
    request = request_disc()
    pair = _sample_one(_with_settings(fitted, paste=False), request)
    is_changed = (pair.image != request.normal_image).any(-1)
    window = fitted.prepare(request).window.slices
    assert is_changed[window].mean() > 0.5
    is_changed[window] = False
    assert not is_changed.any()


@pytest.mark.parametrize(("start", "level", "is_same"), [("noise", 0.6, True), ("normal", 0.25, False)])
def test_only_start_normal_depends_on_the_normal_image(fitted, catalogue, request_disc, start, level, is_same):
    generator = _with_settings(fitted, paste=False, start=start, start_level=level)
    image, whole = next(example.image for example in catalogue if example.product == "sheet"), np.ones(SHAPE, bool)
    first, second = (
        _sample_one(generator, request_disc(mask=whole, normal_image=normal)).image for normal in (image, 255 - image)
    )
    assert (first == second).all() == is_same


@pytest.mark.parametrize(("contrast", "origin"), [(0.4, "predicted"), (0.6, "requested")])
def test_a_predicted_mask_of_low_contrast_is_rejected(fitted, request_disc, contrast, origin):
    request = request_disc(mask=np.eye(*SHAPE, dtype=bool))
    soft_mask = _soft_mask(0.25, 0.75, slice(40, 60), slice(40, 60))  # The two classes differ by 0.5.
    pair = _make_pair(fitted, request, soft_mask, mask_contrast=contrast)
    assert pair.metadata["mask"].startswith(origin)
    assert pair.reject_reason == ("no mask" if origin == "requested" else "")
    assert (pair.mask == request.mask).all() == (origin == "requested")
    assert pair.soft_mask.max() == pytest.approx(0.75, abs=0.1)


def test_the_mask_is_limited_to_the_dilated_requested_mask(fitted, request_disc):
    request = request_disc()  # rows 10 to 19, columns 12 to 24
    window = fitted.prepare(request).window
    soft_mask = _soft_mask(0.1, 0.9, slice(None), slice(64))
    unlimited, strict, dilated = (
        _make_pair(fitted, request, soft_mask, mask_dilation=dilation).mask for dilation in (None, 0.0, 8.0)
    )
    assert unlimited.sum() > dilated.sum() > strict.sum() > 0
    assert not (strict & ~request.mask).any()
    radius = 8 * max(window.height, window.width) / 128
    rows, columns = np.nonzero(dilated)
    assert 10 - rows.min() <= radius
    assert rows.max() - 19 <= radius
    assert columns.min() >= 12 - radius


def test_a_mask_outside_the_requested_one_is_rejected(fitted, request_disc):
    request = request_disc()
    pair = _make_pair(fitted, request, _soft_mask(0.1, 0.9, slice(-4, None), slice(-4, None)), mask_dilation=0.0)
    assert (pair.mask == request.mask).all()
    assert pair.reject_reason == "mask outside the request"
    limits = FilterLimits(min_change=0, min_on_product=0)
    assert measure_pair(pair, request.normal_image, limits).reason == "mask outside the request"
    accepted = dataclasses.replace(pair, reject_reason="")
    assert measure_pair(accepted, request.normal_image, limits).reason == ""


@pytest.mark.parametrize("mask", [None, np.eye(*SHAPE, dtype=bool)], ids=["no mask", "mask"])
def test_a_constant_prediction_never_gives_an_empty_mask(fitted, request_disc, mask):
    pair = _make_pair(fitted, request_disc(mask=mask), _soft_mask(0.0, 0.0), mask_contrast=0.0)
    assert pair.mask.any()
    assert pair.metadata["mask"].startswith("requested")


def test_two_branch_guidance_gives_another_image(fitted, request_disc):
    request = request_disc(strength=1.0)
    three, two = (
        _sample_one(_with_settings(fitted, paste=False, guidance=guidance), request).image
        for guidance in ("three_branch", "two_branch")
    )
    assert (three != two).any()
