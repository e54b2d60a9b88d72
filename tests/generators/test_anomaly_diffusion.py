"""AnomalyDiffusion on a tiny backbone: what its words are, what its loss sees, what trains (brief §2.6: 1 to 3, 10)."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from tiny_unet import tiny_backbone

from defect_core.backbones import load_backbone
from defect_core.diffusion.tokens import token_embedding
from defect_core.errors import InputError
from defect_core.generators.anomaly_diffusion import generator as module
from defect_core.generators.anomaly_diffusion import mask_model
from defect_core.generators.anomaly_diffusion.generator import AnomalyDiffusion
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.canvas import choose_window
from defect_core.generators.registry import generator_config
from defect_core.training.loop import step_generator, train

QUICK = {
    "steps": 3,
    "batch_size": 2,
    "variants": 2,
    "sampling_steps": 3,
    "tune_denoiser": False,
    "encoder": {"side": 32},
    "mask_model": {"steps": 2, "sampling_steps": 2},
}
CONCEPTS = (("cloth", "scratch"), ("plate", "dent"), ("plate", "scratch"))


def _example(product, defect, number=0, mask=None):
    rng = np.random.default_rng(number)
    image = np.clip(128 + rng.normal(0, 6, (80, 96, 3)), 0, 255).astype(np.uint8)
    if mask is None:
        mask = np.zeros((80, 96), bool)
        mask[20 + number : 44 + number, 30 : 46 if defect == "dent" else 36] = True
    image[mask] = 230
    return Example(product, defect, image, mask, f"{product}/{defect}/{number}.png")


@pytest.fixture
def examples():
    return [_example(*concept, number) for concept in CONCEPTS for number in range(2)]


@pytest.fixture
def backbone():
    return tiny_backbone()


def _generator(backbone, **changes):
    return AnomalyDiffusion.create(generator_config("anomaly-diffusion", {**QUICK, **changes}), backbone)


def _request(**changes):
    one = _example("plate", "dent")
    normal = np.full((80, 96, 3), 120, np.uint8)
    request = SampleRequest("dent-0", "plate", "dent", 7, normal, one.mask, None, one, one.image)
    return dataclasses.replace(request, **changes)


class _Denoiser(torch.nn.Module):
    """A denoiser that gives a prepared prediction and keeps what it was told."""

    def __init__(self, real):
        super().__init__()
        self.config, self.prediction, self.text = real.config, None, None
        self.number = torch.nn.Parameter(torch.zeros(()))

    def forward(self, latents, times, text):
        self.text = text
        return type("Output", (), {"sample": self.prediction + 0 * text.sum()})


def _caught(monkeypatch, backbone, examples, tmp_path, denoiser=None, **changes):
    """A generator before training, its loss and the module it would train."""
    caught = {}

    def keep(learned, loss, **_settings):
        caught.update(learned=learned, loss=loss)
        return []

    generator = _generator(backbone, **changes)
    if denoiser is not None:
        backbone.denoiser = denoiser
    with monkeypatch.context() as patch:
        patch.setattr(module, "train", keep)
        generator.fit(examples, tmp_path, 1)
    return generator, caught["loss"], caught["learned"]


def _drawn(views, batch, shape, seed, step=0):
    """What a step's generator gives first: the chosen views and the noise."""
    generator = step_generator(seed, step)
    chosen = torch.randint(views, (batch,), generator=generator)
    return chosen, torch.randn((batch, *shape), generator=generator)


# the words (§2.6-1)


def test_the_embedding_stands_in_the_slot_first_k_anomaly_then_n_spatial_tokens(
    backbone, examples, monkeypatch, tmp_path
):
    generator, *_ = _caught(monkeypatch, backbone, examples, tmp_path, anomaly_tokens=5, spatial_tokens=3)
    seen = {}
    real = module.encode_prompts

    def watch(backbone, prompts, vectors):
        seen["vectors"] = vectors
        return real(backbone, prompts, vectors)

    monkeypatch.setattr(module, "encode_prompts", watch)
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, :, 10:30, 10:30] = 1
    keys = ["plate/dent", "cloth/scratch"]
    told = generator._encode(["a photo of a {anomaly}", "{anomaly} here"], keys, masks)
    p = 1 + len(backbone.tokenizer("a photo of a", add_special_tokens=False)["input_ids"])
    assert told.spans == [{"anomaly": slice(p, p + 8)}, {"anomaly": slice(1, 9)}]
    assert told.states.shape[1] == backbone.text_length
    places = generator.encoder(masks)
    for index, key in enumerate(keys):
        assert torch.equal(seen["vectors"][index]["anomaly"][:5], generator.words[key])
        assert torch.equal(seen["vectors"][index]["anomaly"][5:], places[index])


def test_anomaly_tokens_begin_at_the_init_word(backbone, examples, monkeypatch, tmp_path):
    generator, *_ = _caught(monkeypatch, backbone, examples, tmp_path, init_word="scratch")
    ids = backbone.tokenizer("scratch", add_special_tokens=False)["input_ids"]
    row = token_embedding(backbone).weight[torch.tensor(ids)].mean(0)
    assert set(generator.words.vectors) == {f"{product}/{defect}" for product, defect in CONCEPTS}
    # what training rounds to half precision before saving
    assert all(torch.allclose(rows, row.expand(8, -1), atol=1e-4) for rows in generator.words.vectors.values())


# the loss (§2.6-2, 10)


def test_the_loss_sees_the_noise_inside_the_mask_only(backbone, examples, monkeypatch, tmp_path):
    denoiser = _Denoiser(backbone.denoiser)
    cells = {}
    real = module.resize_mask
    monkeypatch.setattr(module, "resize_mask", lambda *args: cells.setdefault("all", real(*args)))
    _, loss, _ = _caught(monkeypatch, backbone, examples, tmp_path, denoiser)
    chosen, noise = _drawn(12, 2, (4, 8, 8), 1)
    outside = cells["all"][chosen] == 0
    assert outside.any() and not outside.all()
    for prediction in (noise, torch.where(outside, noise + 3, noise)):
        denoiser.prediction = prediction
        assert float(loss(0, step_generator(1, 0)).detach()) == 0
    denoiser.prediction = (noise + 0.5).requires_grad_(True)
    value = loss(0, step_generator(1, 0))
    value.backward()
    gradient = denoiser.prediction.grad
    assert (gradient[outside.expand_as(gradient)] == 0).all()
    assert (gradient[~outside.expand_as(gradient)] != 0).all()
    assert float(value.detach()) == pytest.approx(0.25)  # the mean over the mask


def test_a_tiny_defect_is_learned_from_unless_the_public_codes_rule_is_asked_for(backbone, monkeypatch, tmp_path):
    dot = np.zeros((80, 96), bool)
    dot[40, 50] = True
    examples = [_example("plate", "dent", 0, dot)]
    for policy, learns in (("max", True), ("bilinear_half", False)):
        settings = {"canvas": "whole", "mask_policy": policy}
        _, loss, learned = _caught(monkeypatch, backbone, examples, tmp_path, **settings)
        learned.zero_grad()
        value = loss(0, step_generator(1, 0))
        value.backward()
        assert torch.isfinite(value)
        assert (float(value.detach()) > 0) == learns
        assert (float(learned["words"]["plate/dent"].grad.abs().sum()) > 0) == learns


@pytest.mark.parametrize("reduction", ["masked_mean", "global_mean", "sum"])
def test_a_batch_of_empty_masks_gives_a_finite_loss(backbone, monkeypatch, tmp_path, reduction):
    dot = np.zeros((80, 96), bool)
    dot[40, 50] = True
    settings = {"canvas": "whole", "mask_policy": "bilinear_half", "reduction": reduction, "steps": 2}
    generator = _generator(backbone, **settings)
    empty = _example("plate", "dent", 1, np.zeros((80, 96), bool))
    generator.fit([_example("plate", "dent", 0, dot), empty], tmp_path, 1)
    assert generator.training["loss"] == [0.0, 0.0]
    assert all(torch.isfinite(parameter).all() for parameter in generator.encoder.parameters())


def test_examples_without_any_defect_pixel_are_refused(backbone, tmp_path):
    empty = _example("plate", "dent", 1, np.zeros((80, 96), bool))
    with pytest.raises(InputError, match="no defect examples to learn from"):
        _generator(backbone).fit([empty], tmp_path, 1)


# what trains (§2.6-3)


def test_only_the_batchs_own_words_and_the_encoder_get_gradients(backbone, examples, monkeypatch, tmp_path):
    _, loss, learned = _caught(monkeypatch, backbone, examples, tmp_path, batch_size=1)
    chosen, _ = _drawn(12, 1, (4, 8, 8), 1)
    loss(0, step_generator(1, 0)).backward()
    present = sorted(CONCEPTS)[int(chosen) // 4]  # two examples of two variants each
    for product, defect in CONCEPTS:
        gradient = learned["words"][f"{product}/{defect}"].grad
        assert (gradient is not None and bool(gradient.any())) == ((product, defect) == present)
    assert all(parameter.grad is not None for parameter in learned["encoder"].parameters())
    for network in (backbone.denoiser, backbone.vae, backbone.text_encoder):
        assert all(parameter.grad is None for parameter in network.parameters())


def _state(backbone):
    networks = {"denoiser": backbone.denoiser, "vae": backbone.vae, "text": backbone.text_encoder}
    return {
        f"{part}.{name}": tensor.clone()
        for part, network in networks.items()
        for name, tensor in network.state_dict().items()
    }


@pytest.mark.parametrize("tune", [False, True])
def test_the_networks_stay_bit_for_bit_unless_the_denoiser_is_to_be_tuned(backbone, examples, tmp_path, tune):
    before = _state(backbone)
    generator = _generator(backbone, tune_denoiser=tune)
    generator.fit(examples, tmp_path, 1)
    after = _state(backbone)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == ({"denoiser"} if tune else set())
    start = token_embedding(backbone).weight[backbone.tokenizer("anomaly", add_special_tokens=False)["input_ids"][0]]
    assert any(not torch.allclose(rows, start.expand(8, -1), atol=1e-3) for rows in generator.words.vectors.values())
    generator.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "unet.safetensors").is_file() == tune
    fresh = tiny_backbone()
    loaded = AnomalyDiffusion.load(tmp_path / "saved", fresh)
    pair, again = next(generator.sample([_request()])), next(loaded.sample([_request()]))
    assert (pair.image == again.image).all()


def test_a_killed_fit_goes_on_to_the_same_words(backbone, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "train", functools.partial(train, checkpoint_every=2))
    whole = _generator(backbone, steps=5)
    whole.fit(examples, tmp_path / "whole", 1)
    real = module.noise_loss
    calls = []

    def dies(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    killed = _generator(backbone, steps=5)
    monkeypatch.setattr(module, "noise_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        killed.fit(examples, tmp_path / "killed", 1)
    killed.fit(examples, tmp_path / "killed", 1)
    assert len(calls) == 4 + 3
    assert killed.training == whole.training
    for one, other in zip(whole._words(), killed._words(), strict=True):
        assert one[:2] == other[:2] and torch.equal(one[2], other[2])
    for name, tensor in whole.encoder.state_dict().items():
        assert torch.equal(tensor, killed.encoder.state_dict()[name])


def test_words_that_were_learned_predict_the_defect_better(examples, tmp_path, monkeypatch):
    """The embedded U-Net, frozen, on the same noise; it barely reads its text, so little can be gained."""
    embedded = load_backbone("embedded")
    generator, loss, _ = _caught(monkeypatch, embedded, examples[-1:], tmp_path, batch_size=4, variants=4)
    states = [step_generator(99, step).get_state() for step in range(3)]

    def measured():
        with torch.no_grad():
            return np.mean([float(loss(0, torch.Generator().set_state(state))) for state in states])

    before = measured()
    optimiser = torch.optim.Adam(
        [{"params": generator.words.parameters(), "lr": 2e-2}, {"params": generator.encoder.parameters(), "lr": 1e-3}]
    )
    for step in range(12):
        optimiser.zero_grad()
        loss(step, step_generator(1, step)).backward()
        optimiser.step()
    assert measured() < 0.998 * before


def test_the_masked_loss_halves_where_the_denoiser_is_tuned_too(backbone, examples, tmp_path):
    settings = {"tune_denoiser": True, "denoiser_learning_rate": 3e-3, "steps": 100, "batch_size": 2}
    generator = _generator(backbone, **settings)
    generator.fit(examples[-1:], tmp_path, 1)
    assert np.mean(generator.training["loss"][-20:]) < 0.5 * np.mean(generator.training["loss"][:5])


# drawing


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Fitted jointly on two products, with the mask model."""
    generator = _generator(tiny_backbone(), masks="generated")
    made = [_example(*concept, number) for concept in CONCEPTS for number in range(2)]
    generator.fit(made, tmp_path_factory.mktemp("fit"), 1)
    return generator


@pytest.mark.parametrize("reweighting", ["off", "paper", "official"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_image_equals_the_normal_one_outside_the_mask(fitted, monkeypatch, reweighting, guidance_scale):
    changes = {"masks": "given", "reweighting": reweighting, "guidance_scale": guidance_scale}
    monkeypatch.setattr(fitted, "config", fitted.config.model_copy(update=changes))
    request = _request()
    pair = next(fitted.sample([request]))
    assert (pair.mask == request.mask).all()
    assert (pair.image[~pair.mask] == request.normal_image[~pair.mask]).all()
    assert (pair.image[pair.mask] != request.normal_image[pair.mask]).any()


def test_products_fitted_jointly_keep_their_own_words_and_share_the_encoder(fitted, monkeypatch):
    monkeypatch.setattr(fitted, "config", fitted.config.model_copy(update={"masks": "given"}))
    assert set(fitted.words.names) == {"cloth/scratch", "plate/dent", "plate/scratch"}
    of_plate = next(fitted.sample([_request(defect="scratch")]))
    of_cloth = next(fitted.sample([_request(defect="scratch", product="cloth")]))
    assert (of_plate.image != of_cloth.image).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"product": "gear"}, "product 'gear' was not fitted; expected cloth or plate"),
        ({"product": "cloth"}, "defect 'dent' was not fitted; expected scratch"),
        ({"mask": None}, "expected a normal image and a mask"),
    ],
)
def test_what_was_not_fitted_is_refused_with_one_line(fitted, change, message):
    with pytest.raises(InputError, match=message):
        list(fitted.sample([_request(**change)]))


def test_a_mask_beside_the_object_is_refused(fitted):
    normal = np.full((80, 96, 3), 20, np.uint8)
    normal[30:60, 30:60] = 220
    mask = np.zeros((80, 96), bool)
    mask[2:8, 2:8] = True
    with pytest.raises(InputError, match="the mask lies outside the object"):
        list(fitted.sample([_request(normal_image=normal, mask=mask)]))


def test_generated_masks_stand_where_the_given_ones_do_and_rejected_ones_fall_back(fitted, monkeypatch):
    shape = np.zeros((64, 64), bool)
    shape[20:44, 28:40] = True
    requests = [_request(), _request(sample_id="dent-1", seed=8)]
    monkeypatch.setattr(module, "draw_masks", lambda *_: [shape, None])
    new, old = fitted.sample(requests)
    assert (old.mask == requests[1].mask).all()
    assert (new.mask != requests[0].mask).any() and new.mask.any()
    middle = [np.mean([axis.min(), axis.max()]) for axis in np.nonzero(new.mask)]
    wanted = [np.mean([axis.min(), axis.max()]) for axis in np.nonzero(requests[0].mask)]
    assert np.abs(np.subtract(middle, wanted)).max() <= 1
    window = choose_window(requests[0].mask, "local", fitted.config.context, fitted.config.min_side)
    assert abs(np.ptp(np.nonzero(new.mask)[0]) + 1 - 24 / 64 * window.height) <= 2
    assert (new.image[~new.mask] == requests[0].normal_image[~new.mask]).all()
    assert (new.metadata["mask"], old.metadata["mask"]) == ("generated", "given")


def test_sampled_masks_depend_on_the_seed_and_keep_the_rules(fitted, monkeypatch):
    relaxed = fitted.config.mask_model.model_copy(update={"threshold": -0.9, "border_share": 1.0})
    monkeypatch.setattr(fitted, "config", fitted.config.model_copy(update={"mask_model": relaxed}))
    masks = fitted.sample_masks("dent", 3, 5, "plate")
    assert len(masks) == 3 and all(mask.shape == (64, 64) and mask.any() for mask in masks)
    again, other = fitted.sample_masks("dent", 3, 5, "plate"), fitted.sample_masks("dent", 3, 6, "plate")
    assert all((one == two).all() for one, two in zip(masks, again, strict=True))
    assert any((one != two).any() for one, two in zip(masks, other, strict=True))
    monkeypatch.setattr(mask_model, "touches_border_too_much", lambda *_: True)
    assert fitted.sample_masks("dent", 3, 5, "plate") == []


def test_masks_that_were_not_learned_are_refused(fitted, backbone, examples, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="masks of plate/rust: not fitted; expected cloth/scratch or plate/dent"):
        fitted.sample_masks("rust", 1, 0, "plate")
    without, *_ = _caught(monkeypatch, backbone, examples, tmp_path)
    with pytest.raises(InputError, match="no mask model was fitted; expected masks: generated"):
        without.sample_masks("dent", 1, 0, "plate")


# bad input


def test_a_backbone_that_reads_no_text_is_refused():
    blocks = {
        "down_block_types": ("DownBlock2D",) * 2,
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ("UpBlock2D",) * 2,
    }
    with pytest.raises(InputError, match="has no cross-attention layers"):
        _generator(tiny_backbone(**blocks))


def test_a_backbone_whose_text_has_another_width_is_refused():
    with pytest.raises(InputError, match="reads text of width 16, its text encoder gives 32"):
        _generator(tiny_backbone(cross_attention_dim=16))


def test_more_words_than_the_text_encoder_reads_are_refused(backbone, examples, tmp_path):
    with pytest.raises(InputError, match="fewer learned words"):
        _generator(backbone, anomaly_tokens=30).fit(examples, tmp_path, 1)


@pytest.mark.parametrize("prompts", [("a photo",), ("{anomaly} {anomaly}",)])
def test_a_prompt_without_its_slot_is_refused(prompts):
    with pytest.raises(InputError, match="slot {anomaly}, or several; expected one"):
        generator_config("anomaly-diffusion", {"prompts": prompts})


def test_the_papers_settings_are_valid():
    paper = {
        "steps": 300_000,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "encoder_learning_rate": 5e-3,
        "reduction": "sum",
        "canvas": "whole",
        "sampling_steps": 200,
        "tune_denoiser": False,
    }
    config = generator_config("anomaly-diffusion", paper)
    assert (config.anomaly_tokens, config.spatial_tokens, config.eta) == (8, 4, 1.0)
    assert config.weight_decay == 0 and config.guidance_scale == 1 and config.reweighting == "paper"
