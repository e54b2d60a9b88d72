"""DefectDiffu as a generator: catalogue, zero-shot, strength, mask rejection; its folders; its pretraining."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_dit import plain_dit, tiny_model

from defect_core.backbones import load_backbone
from defect_core.errors import InputError
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.defectdiffu.config import Config
from defect_core.generators.defectdiffu.folder import load_transformer, save_transformer
from defect_core.generators.defectdiffu.generator import DefectDiffu
from defect_core.generators.defectdiffu.text import ClipSentences
from defect_core.pretraining import transformer as pretrain
from defect_core.pretraining.corpus_store import Corpus, prepared

WEIGHTS = "diffusion_pytorch_model.safetensors"
QUICK = {"steps": 2, "batch_size": 4, "variants": 2, "good_variants": 1, "sampling_steps": 4}


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("embedded")


@pytest.fixture(scope="module")
def small_dit(backbone, tmp_path_factory):
    """A narrow transformer for the embedded backbone's latents."""
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
    return folder


@pytest.fixture(scope="module")
def catalogue():
    """`plate` has both defects, `sheet` has scratches only, `disc` has none."""
    rng, made = np.random.default_rng(0), []
    for product, shade, defects in (("plate", 90, ("dent", "scratch")), ("sheet", 150, ("scratch",)), ("disc", 60, ())):
        for number in range(2):
            made.append(Example(product, "good", _surface(rng, shade), None, f"{product}/good/{number}.png"))
        for defect in defects:
            image, mask = _surface(rng, shade), np.zeros((64, 80), bool)
            mask[20:34, 30 : 36 if defect == "scratch" else 44] = True
            image[mask] = 230
            made.append(Example(product, defect, image, mask, f"{product}/{defect}/0.png"))
    return made


@pytest.fixture(scope="module")
def fitted(backbone, small_dit, catalogue, tmp_path_factory):
    made = DefectDiffu.create(Config(dit=str(small_dit), **QUICK), backbone)
    made.fit(catalogue, tmp_path_factory.mktemp("work"), seed=1)
    return made


def _surface(rng, shade):
    return np.clip(rng.normal(shade, 6, (64, 80, 3)), 0, 255).astype(np.uint8)


def _request(catalogue, **changes):
    mask = np.zeros((64, 80), bool)
    mask[10:20, 12:25] = True
    normal = next(e.image for e in catalogue if e.product == "disc")
    request = SampleRequest("x", "disc", "dent", 7, normal_image=normal, mask=mask)
    return dataclasses.replace(request, **changes)


def _one(generator, request):
    return next(iter(generator.sample([request])))


def test_a_product_without_defects_is_learned_with_the_others(fitted):
    assert fitted.products == ("disc", "plate", "sheet")
    assert fitted.defects == ("dent", "scratch")


def test_a_defect_is_drawn_on_a_product_that_never_had_it(fitted, catalogue):
    pair = _one(fitted, _request(catalogue))
    assert pair.mask.any() and pair.facts["prompt"] == "a photo of dent disc"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"product": "cube"}, "product 'cube' was not fitted; expected disc or plate or sheet"),
        ({"defect": "rust"}, "defect 'rust' was not fitted; expected dent or scratch"),
        ({"normal_image": None}, "expected a normal image"),
        ({"mask": np.zeros((64, 80), bool)}, "the mask is empty"),
        ({"mask": np.ones((4, 4), bool)}, "expected the same size"),
    ],
)
def test_what_was_not_learned_or_does_not_fit_is_refused_in_one_line(fitted, catalogue, change, message):
    with pytest.raises(InputError, match=message):
        list(fitted.sample([_request(catalogue, **change)]))


def test_nothing_to_learn_defects_from_is_refused(backbone, small_dit, catalogue, tmp_path):
    with pytest.raises(InputError, match="no defect examples"):
        DefectDiffu.create(Config(dit=str(small_dit), **QUICK), backbone).fit(
            [e for e in catalogue if e.mask is None], tmp_path, seed=1
        )


def test_training_draws_products_and_defects_evenly(fitted, catalogue):
    bank = fitted._bank(catalogue, 0)
    rows = bank.choose(6000, 0.6, torch.Generator().manual_seed(0))
    drawn = [bank.pairs[row] for row in rows.tolist()]
    shares = {pair: drawn.count(pair) / len(drawn) for pair in set(drawn)}
    for product, defect in (("plate", "dent"), ("plate", "scratch"), ("sheet", "scratch")):
        assert shares[product, defect] == pytest.approx(0.2, abs=0.02)
    for product in ("plate", "sheet", "disc"):
        assert shares[product, "good"] == pytest.approx(0.4 / 3, abs=0.02)


def test_masks_of_training_lie_where_the_defect_is_and_are_empty_on_good_views(fitted, catalogue):
    bank = fitted._bank(catalogue, 0)
    for row, (_, defect) in enumerate(bank.pairs):
        assert bool(bank.masks[row].any()) == (defect != "good")
    black = bank.mask_latents[bank.pairs.index(("disc", "good"))]
    picture = fitted.backbone.decode(black[None])
    assert float(picture.max()) < -0.9


def test_the_requested_place_is_told_to_the_network(fitted, catalogue):
    request = _request(catalogue)
    window = fitted._window(request)
    (region,) = fitted._regions([request], [window])[:, 0].numpy()
    assert region.shape == (16, 16) and set(np.unique(region)) == {0, 1}
    rows, columns = np.nonzero(region)
    tall, wide = window.height / 16, window.width / 16
    seen = np.nonzero(request.mask)
    assert abs(window.top + tall * rows.min() - seen[0].min()) <= tall
    assert abs(window.left + wide * (columns.max() + 1) - seen[1].max() - 1) <= wide + 1
    assert not fitted._regions([dataclasses.replace(request, mask=None)], [window]).any()
    assert not _unpasted(fitted, focus_share=0.0)._regions([request], [window]).any()


def test_training_tells_the_place_of_some_defects_and_of_nothing_else(
    backbone, small_dit, catalogue, tmp_path, monkeypatch
):
    seen = []

    def note(model, chain, latents, masks, mask_latents, conditions, times, noise, weights, region):
        seen.append((masks, conditions.defect, region))
        return model.text.weight.square().mean()

    monkeypatch.setattr("defect_core.generators.defectdiffu.generator.total_loss", note)
    settings = {**QUICK, "steps": 6, "batch_size": 32, "focus_share": 0.5}
    made = DefectDiffu.create(Config(dit=str(small_dit), **settings), backbone)
    made.fit(catalogue, tmp_path, seed=1)
    masks, told, regions = (torch.cat(parts) for parts in zip(*seen, strict=True))
    good = (told == made.encoder(["a photo of good"])).all(1)
    assert not regions[good].any()
    shown = regions.flatten(1).any(1)
    assert torch.equal(regions[shown], masks[shown])
    assert float(shown.sum() / (~good & masks.flatten(1).any(1)).sum()) == pytest.approx(0.5, abs=0.15)


def test_noise_that_sampling_never_asks_for_is_not_trained(backbone, small_dit, catalogue, tmp_path, monkeypatch):
    asked = []

    def note(model, chain, latents, masks, mask_latents, conditions, times, *_):
        asked.append(times)
        return model.text.weight.square().mean()

    monkeypatch.setattr("defect_core.generators.defectdiffu.generator.total_loss", note)
    for start, most in (("normal", 250), ("noise", 1000)):
        asked.clear()
        settings = {**QUICK, "steps": 8, "batch_size": 32, "start": start, "start_level": 0.25}
        DefectDiffu.create(Config(dit=str(small_dit), **settings), backbone).fit(catalogue, tmp_path / start, seed=1)
        assert 0.9 * most < int(torch.cat(asked).max()) < most


def test_strength_is_the_requests_or_drawn_by_its_seed_and_is_told(fitted, catalogue):
    asked = _one(fitted, _request(catalogue, strength=2.25))
    assert asked.facts["strength"] == 2.25
    drawn = {fitted.strength_of(_request(catalogue, seed=seed)) for seed in range(200)}
    assert min(drawn) >= 1.5 and max(drawn) <= 3.5 and len(drawn) > 150
    assert _one(fitted, _request(catalogue)).facts["strength"] == fitted.strength_of(_request(catalogue))


def test_without_strength_the_image_stays_as_it_is(fitted, catalogue):
    request = _request(catalogue)
    made = _unpasted(fitted, paste=True)
    assert (_one(made, dataclasses.replace(request, strength=0.0)).image == request.normal_image).all()
    strong = _one(made, dataclasses.replace(request, strength=30.0))
    assert (strong.image != request.normal_image).any(-1)[strong.mask].mean() > 0.5
    redrawn = _one(_unpasted(fitted, paste=True, residual=False), dataclasses.replace(request, strength=0.0))
    assert (redrawn.image != request.normal_image).any()


def test_strength_changes_the_picture(fitted, catalogue):
    weak, strong = (_one(_unpasted(fitted), _request(catalogue, strength=value)) for value in (0.0, 30.0))
    assert (weak.image != strong.image).any()


def _unpasted(fitted, **changes):
    config = fitted.config.model_copy(update={"paste": False, **changes})
    made = DefectDiffu(fitted.backbone, config, fitted.transformer, fitted.encoder, fitted.products, fitted.defects)
    return made


def test_without_paste_the_whole_window_is_drawn_and_nothing_beyond_it(fitted, catalogue):
    request = _request(catalogue)
    changed = (_one(_unpasted(fitted), request).image != request.normal_image).any(-1)
    window = fitted._window(request).slices
    assert changed[window].mean() > 0.5
    changed[window] = False
    assert not changed.any()


def test_pure_noise_forgets_the_normal_image_and_the_noised_one_does_not(fitted, catalogue):
    other = next(e.image for e in catalogue if e.product == "sheet")
    whole = np.ones((64, 80), bool)
    for start, level, same in (("noise", 0.6, True), ("normal", 0.25, False)):
        made = _unpasted(fitted, start=start, start_level=level)
        pairs = [_one(made, _request(catalogue, mask=whole, normal_image=i)) for i in (other, 255 - other)]
        assert (pairs[0].image == pairs[1].image).all() == same


@pytest.mark.parametrize(("contrast", "kind"), [(0.4, "predicted"), (0.6, "requested")])
def test_a_mask_without_contrast_is_rejected_for_the_requested_one(fitted, catalogue, contrast, kind):
    made = _unpasted(fitted, mask_contrast=contrast)
    soft = np.full((128, 128), 0.25, np.float32)
    soft[40:60, 40:60] = 0.75  # the two classes differ by a half
    request = _request(catalogue, mask=np.eye(64, 80, dtype=bool))
    window = made._window(request)
    pair = made._finish(request, window, np.zeros((128, 128, 3)), soft, 1.0)
    assert pair.facts["mask"].startswith(kind)
    assert (pair.mask == request.mask).all() == (kind == "requested")
    assert pair.soft_mask.max() == pytest.approx(0.75, abs=0.1)


def test_the_mask_stays_within_reach_of_the_requested_one(fitted, catalogue):
    request = _request(catalogue)  # the mask spans rows 10 to 19, columns 12 to 24
    window = fitted._window(request)
    soft = np.full((128, 128), 0.1, np.float32)
    soft[:, :64] = 0.9
    found = {}
    for reach in (None, 0.0, 8.0):
        made = _unpasted(fitted, reach=reach)
        found[reach] = made._finish(request, window, np.zeros((128, 128, 3)), soft, 1.0).mask
    assert found[None].sum() > found[8.0].sum() > found[0.0].sum() > 0
    assert not (found[0.0] & ~request.mask).any()
    far = 8 * max(window.height, window.width) / 128
    rows, columns = np.nonzero(found[8.0])
    assert 10 - rows.min() <= far and columns.min() >= 12 - far and rows.max() - 19 <= far
    elsewhere = np.full((128, 128), 0.1, np.float32)
    elsewhere[-4:, -4:] = 0.9
    pair = _unpasted(fitted, reach=0.0)._finish(request, window, np.zeros((128, 128, 3)), elsewhere, 1.0)
    assert (pair.mask == request.mask).all() and pair.facts["mask"].startswith("requested")


def test_a_flat_prediction_never_gives_an_empty_mask(fitted, catalogue):
    made = _unpasted(fitted, mask_contrast=0.0)
    for mask in (None, np.eye(64, 80, dtype=bool)):
        request = _request(catalogue, mask=mask)
        pair = made._finish(request, made._window(request), np.zeros((128, 128, 3)), np.zeros((128, 128)), 1.0)
        assert pair.mask.any() and pair.facts["mask"].startswith("requested")


def test_two_branch_guidance_draws_otherwise(fitted, catalogue):
    request = _request(catalogue, strength=1.0)
    three, two = (_one(_unpasted(fitted, guidance=kind), request).image for kind in ("three_branch", "two_branch"))
    assert (three != two).any()


def test_a_dit_of_other_channels_than_the_autoencoder_is_refused(backbone, tmp_path):
    plain_dit().save_pretrained(tmp_path / "transformer")
    with pytest.raises(InputError, match="reads latents of 4 channels, the backbone 'embedded' makes"):
        DefectDiffu.create(Config(dit=str(tmp_path)), backbone)


# folders


def test_a_dits_folder_loads_with_or_without_its_parent(tmp_path):
    plain = plain_dit()
    plain.save_pretrained(tmp_path / "transformer")
    for name in (tmp_path, tmp_path / "transformer"):
        loaded = load_transformer(str(name), 16)
        assert torch.equal(loaded.model.dit.proj_out_2.weight, plain.proj_out_2.weight)
        # DiT's own schedule where none lies beside it
        assert float(loaded.chain.betas[0]) == pytest.approx(1e-4, rel=1e-3)
        assert float(loaded.chain.betas[-1]) == pytest.approx(0.02, rel=1e-3)
        again = load_transformer(str(name), 16).model.state_dict()
        assert all(torch.equal(value, again[key]) for key, value in loaded.model.state_dict().items())


def test_a_saved_transformer_comes_back_with_all_its_parts_and_is_a_dit(tmp_path):
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    model = tiny_model()
    schedule = {"_class_name": "DDIMScheduler", "num_train_timesteps": 10, "beta_schedule": "scaled_linear"}
    save_transformer(tmp_path, model, model.state_dict(), schedule)
    loaded = load_transformer(str(tmp_path), 16)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value.half().float()), key
    assert loaded.chain.steps == 10
    other = load_transformer(str(tmp_path), 20)  # another text encoder: its layer starts afresh
    assert other.model.text.weight.shape[1] == 20
    _, info = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / WEIGHTS).unlink(), "cannot be loaded"),
        (
            lambda folder: _drop_weight(folder / WEIGHTS),
            "no weight named proj_out_1.bias",
        ),
        (lambda folder: _halve_output(folder / "config.json"), "cannot be loaded|expected 8"),
    ],
)
def test_a_damaged_dit_is_refused_in_one_line(tmp_path, damage, message):
    plain_dit().save_pretrained(tmp_path / "transformer")
    damage(tmp_path / "transformer")
    with pytest.raises(InputError, match=message) as raised:
        load_transformer(str(tmp_path / "transformer"), 16)
    assert "\n" not in str(raised.value)


def _drop_weight(path):
    state = load_file(path)
    del state["proj_out_1.bias"]
    save_file(state, path, metadata={"format": "pt"})


def _halve_output(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "out_channels": 4}))


def test_an_unknown_dit_is_refused():
    with pytest.raises(InputError, match="dit nowhere: no such folder"):
        load_transformer("nowhere", 16)


def test_a_text_folder_without_clip_is_refused(tmp_path):
    with pytest.raises(InputError, match="text_encoder/config.json is missing"):
        ClipSentences(tmp_path)


def test_clips_sentences_are_pooled_and_normalised(backbone):
    encoder = ClipSentences(backbone.folder)
    vectors = encoder(["a photo of scratch", "a photo of dent", "a photo of scratch"])
    assert vectors.shape == (3, encoder.width)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(vectors[0], vectors[2], atol=1e-6) and not torch.allclose(vectors[0], vectors[1], atol=1e-3)


# pretraining

SCENES = 12


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    with prepared(folder, SCENES):
        pass
    return folder


@pytest.fixture
def small(monkeypatch):
    for name, value in {"WIDTH": 72, "HEADS": 2, "DEPTH": 3, "BATCH": 2, "SAVE_EVERY_S": -1.0}.items():
        monkeypatch.setattr(pretrain, name, value)


def test_the_embedded_architecture_starts_near_the_identity():
    model, generator = pretrain.build(), torch.Generator().manual_seed(0)
    noise = torch.randn((4, pretrain.LATENT_CHANNELS, 16, 16), generator=generator)
    words = pretrain.encode_pairs(pretrain.HashedWords(), [("gear", "scratch")] * 4)
    with torch.no_grad():
        answer = model(noise, torch.full((4,), 999), words)
    assert float(((answer.noise - noise) ** 2).mean()) < 0.1
    assert float(answer.variance.abs().max()) == 0


def test_the_corpus_has_words_and_the_ends_of_the_masks_latents(work):
    corpus = Corpus(work, SCENES, torch.device("cpu"))
    corpus.grow()
    pairs, (black, white) = pretrain.read_pairs(work, corpus), pretrain.ends_of(corpus)
    assert [pair[1] != "good" for pair in pairs] == corpus.mask.flatten(1).any(1).tolist()
    assert all(thing and fault and not thing.startswith("a ") for thing, fault in pairs)
    assert not torch.allclose(black, white, atol=1.0)


def test_an_interrupted_pretraining_equals_an_unbroken_one_and_its_export_loads(work, small, tmp_path, monkeypatch):
    pretrain.train(work, SCENES, 4)
    unbroken = load_file(work / pretrain.CHECKPOINT)
    (work / pretrain.CHECKPOINT).unlink()
    original = pretrain._loss

    def stop_at_third(*given):
        if given[-1] == 2:  # the step
            raise KeyboardInterrupt
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "_loss", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            pretrain.train(work, SCENES, 4)
    pretrain.train(work, SCENES, 4)
    resumed = load_file(work / pretrain.CHECKPOINT)
    assert resumed.keys() == unbroken.keys()
    assert all(torch.equal(resumed[key], unbroken[key]) for key in unbroken)
    pretrain.export(work, tmp_path / "embedded_dit")
    loaded = load_transformer(str(tmp_path / "embedded_dit"), pretrain.HASHED_WIDTH)
    head = resumed["average.mask_head.layers.1.weight"]
    assert torch.allclose(loaded.model.mask_head.layers[1].weight, head, atol=1e-3)
    assert torch.allclose(loaded.chain.alpha_bars.float(), pretrain.alphas_cumprod(), rtol=1e-4)


def test_the_embedded_transformer_fits_the_embedded_backbone(backbone):
    made = DefectDiffu.create(Config(), backbone)
    assert made.model.split == (4, 4, 4) and made.resolution == backbone.resolution
    assert sum(path.stat().st_size for path in _embedded_files()) <= 20e6


def _embedded_files():
    from defect_core.generators.defectdiffu.folder import EMBEDDED_DIT

    return [path for path in EMBEDDED_DIT.rglob("*") if path.is_file()]
