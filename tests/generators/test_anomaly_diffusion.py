"""AnomalyDiffusion on a tiny backbone: tokens, loss, trained parameters and requests."""

import numpy as np
import pytest
import torch
from tiny_anomaly_diffusion import CONCEPTS, make_example, make_generator, make_request
from tiny_unet import tiny_backbone

from defect_core.backbones import load_backbone
from defect_core.backbones.compute import ComputeConfig
from defect_core.diffusion.tokens import token_embedding
from defect_core.errors import InputError
from defect_core.generators.anomaly_diffusion import generator as module
from defect_core.generators.anomaly_diffusion import mask_model
from defect_core.generators.anomaly_diffusion.generator import AnomalyDiffusion
from defect_core.generators.canvas import choose_window
from defect_core.generators.registry import generator_config
from defect_core.training.loop import step_generator


@pytest.fixture
def examples():
    return [make_example(*concept, number) for concept in CONCEPTS for number in range(2)]


@pytest.fixture
def backbone():
    return tiny_backbone()


class _Denoiser(torch.nn.Module):
    """A denoiser that returns a prepared prediction and records its text."""

    def __init__(self, real):
        super().__init__()
        self.config, self.prediction, self.text = real.config, None, None
        self.number = torch.nn.Parameter(torch.zeros(()))

    def forward(self, latents, times, text):
        self.text = text
        return type("Output", (), {"sample": self.prediction + 0 * text.sum()})


def _capture_training(monkeypatch, backbone, examples, tmp_path, denoiser=None, **changes):
    """Return a generator before training, its loss and the module it would train."""
    captured = {}

    def record(trained, loss, _config, **_settings):
        captured.update(trained=trained, loss=loss)
        return []

    generator = make_generator(backbone, **changes)
    if denoiser is not None:
        backbone.denoiser = denoiser
    with monkeypatch.context() as patch:
        patch.setattr(module, "train", record)
        generator.fit(examples, tmp_path, 1)
    return generator, lambda *args: sum(captured["loss"](*args)), captured["trained"]


def _first_random_numbers(views, batch, shape, seed, step=0):
    """Return the first random numbers of a training step: the rows of the views and the noise."""
    generator = step_generator(seed, step)
    chosen = torch.randint(views, (batch,), generator=generator)
    return chosen, torch.randn((batch, *shape), generator=generator)


# tokens (paper §3.2)


def test_the_slot_has_k_anomaly_tokens_then_n_spatial_tokens(backbone, examples, monkeypatch, tmp_path):
    generator, *_ = _capture_training(monkeypatch, backbone, examples, tmp_path, anomaly_tokens=5, spatial_tokens=3)
    recorded = {}
    real = module.encode_prompts

    def record(backbone, prompts, vectors):
        recorded["vectors"] = vectors
        return real(backbone, prompts, vectors)

    monkeypatch.setattr(module, "encode_prompts", record)
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, :, 10:30, 10:30] = 1
    keys = ["plate/dent", "cloth/scratch"]
    encoded = generator._encode(["a photo of a {anomaly}", "{anomaly} here"], keys, masks)
    p = 1 + len(backbone.tokenizer("a photo of a", add_special_tokens=False)["input_ids"])
    assert encoded.spans == [{"anomaly": slice(p, p + 8)}, {"anomaly": slice(1, 9)}]
    assert encoded.states.shape[1] == backbone.text_length
    spatial = generator.encoder(masks)
    for index, key in enumerate(keys):
        assert torch.equal(recorded["vectors"][index]["anomaly"][:5], generator.tokens[key])
        assert torch.equal(recorded["vectors"][index]["anomaly"][5:], spatial[index])


def test_anomaly_tokens_are_initialised_with_the_init_word(backbone, examples, monkeypatch, tmp_path):
    generator, *_ = _capture_training(monkeypatch, backbone, examples, tmp_path, init_word="scratch")
    ids = backbone.tokenizer("scratch", add_special_tokens=False)["input_ids"]
    row = token_embedding(backbone).weight[torch.tensor(ids)].mean(0)
    assert set(generator.tokens.embeddings) == {f"{product}/{defect}" for product, defect in CONCEPTS}
    # The tolerance is that of half precision.
    assert all(torch.allclose(rows, row.expand(8, -1), atol=1e-4) for rows in generator.tokens.embeddings.values())


# loss (eq. 5)


def test_the_loss_depends_only_on_the_noise_inside_the_mask(backbone, examples, monkeypatch, tmp_path):
    denoiser = _Denoiser(backbone.denoiser)
    sources = []
    real = module.ViewSource
    monkeypatch.setattr(
        module, "ViewSource", lambda *args, **kwargs: sources.append(real(*args, **kwargs)) or sources[-1]
    )
    _, loss, _ = _capture_training(monkeypatch, backbone, examples, tmp_path, denoiser)
    _, noise = _first_random_numbers(12, 2, (4, 8, 8), 1)
    masks = sources[0].batch(2, step_generator(1, 0)).masks
    outside = torch.nn.functional.max_pool2d(masks.float(), 8) == 0
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
    assert float(value.detach()) == pytest.approx(0.25)  # mean over the mask


def test_a_tiny_defect_gives_a_gradient_except_with_bilinear_half(backbone, monkeypatch, tmp_path):
    dot = np.zeros((80, 96), bool)
    dot[40, 50] = True
    examples = [make_example("plate", "dent", 0, dot)]
    for policy, has_gradient in (("max", True), ("bilinear_half", False)):
        settings = {"canvas": "whole", "mask_policy": policy}
        _, loss, trained = _capture_training(monkeypatch, backbone, examples, tmp_path, **settings)
        trained.zero_grad()
        value = loss(0, step_generator(1, 0))
        value.backward()
        assert torch.isfinite(value)
        assert (float(value.detach()) > 0) == has_gradient
        assert (float(trained["tokens"]["plate/dent"].grad.abs().sum()) > 0) == has_gradient


@pytest.mark.parametrize("reduction", ["masked_mean", "global_mean", "sum"])
def test_a_batch_of_empty_masks_gives_a_finite_loss(backbone, monkeypatch, tmp_path, reduction):
    dot = np.zeros((80, 96), bool)
    dot[40, 50] = True
    settings = {"canvas": "whole", "mask_policy": "bilinear_half", "reduction": reduction, "steps": 2}
    generator = make_generator(backbone, **settings)
    empty = make_example("plate", "dent", 1, np.zeros((80, 96), bool))
    generator.fit([make_example("plate", "dent", 0, dot), empty], tmp_path, 1)
    assert generator.training["loss"] == [0.0, 0.0]
    assert all(torch.isfinite(parameter).all() for parameter in generator.encoder.parameters())


def test_examples_without_a_defect_pixel_are_rejected(backbone, tmp_path):
    empty = make_example("plate", "dent", 1, np.zeros((80, 96), bool))
    with pytest.raises(InputError, match="no defect examples to learn from"):
        make_generator(backbone).fit([empty], tmp_path, 1)


# trained parameters


def test_only_the_tokens_of_the_batch_and_the_encoder_get_gradients(backbone, examples, monkeypatch, tmp_path):
    _, loss, trained = _capture_training(monkeypatch, backbone, examples, tmp_path, batch_size=1)
    chosen, _ = _first_random_numbers(12, 1, (4, 8, 8), 1)
    loss(0, step_generator(1, 0)).backward()
    present = sorted(CONCEPTS)[int(chosen) // 4]  # two examples of two variants each
    for product, defect in CONCEPTS:
        gradient = trained["tokens"][f"{product}/{defect}"].grad
        assert (gradient is not None and bool(gradient.any())) == ((product, defect) == present)
    assert all(parameter.grad is not None for parameter in trained["encoder"].parameters())
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
def test_only_tune_denoiser_changes_the_networks(backbone, examples, tmp_path, tune):
    before = _state(backbone)
    generator = make_generator(backbone, tune_denoiser=tune)
    generator.fit(examples, tmp_path, 1)
    after = _state(backbone)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == ({"denoiser"} if tune else set())
    start = token_embedding(backbone).weight[backbone.tokenizer("anomaly", add_special_tokens=False)["input_ids"][0]]
    assert any(
        not torch.allclose(rows, start.expand(8, -1), atol=1e-3) for rows in generator.tokens.embeddings.values()
    )
    generator.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "unet.safetensors").is_file() == tune
    fresh = tiny_backbone()
    loaded = AnomalyDiffusion.load(tmp_path / "saved", fresh)
    pair, again = next(generator.sample([make_request()])), next(loaded.sample([make_request()]))
    assert (pair.image == again.image).all()


def test_a_killed_fit_resumes_and_ends_with_the_same_weights(backbone, examples, tmp_path, monkeypatch):
    backbone.configure(ComputeConfig(checkpoint_every=2))
    whole = make_generator(backbone, steps=5)
    whole.fit(examples, tmp_path / "whole", 1)
    real = module.noise_loss
    calls = []

    def fail_at_fourth_call(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    killed = make_generator(backbone, steps=5)
    monkeypatch.setattr(module, "noise_loss", fail_at_fourth_call)
    with pytest.raises(KeyboardInterrupt):
        killed.fit(examples, tmp_path / "killed", 1)
    killed.fit(examples, tmp_path / "killed", 1)
    assert len(calls) == 4 + 3
    assert killed.training == whole.training
    for one, other in zip(whole._named_tokens(), killed._named_tokens(), strict=True):
        assert one[0] == other[0] and torch.equal(one[1], other[1])
    for name, tensor in whole.encoder.state_dict().items():
        assert torch.equal(tensor, killed.encoder.state_dict()[name])


def test_learned_tokens_predict_the_defect_better(examples, tmp_path, monkeypatch):
    """The gain is small because the text has little effect on the embedded U-Net."""
    embedded = load_backbone("embedded")
    generator, loss, _ = _capture_training(monkeypatch, embedded, examples[-1:], tmp_path, batch_size=4, variants=4)
    states = [step_generator(99, step).get_state() for step in range(3)]

    def mean_loss():
        with torch.no_grad():
            return np.mean([float(loss(0, torch.Generator().set_state(state))) for state in states])

    before = mean_loss()
    optimiser = torch.optim.Adam(
        [{"params": generator.tokens.parameters(), "lr": 2e-2}, {"params": generator.encoder.parameters(), "lr": 1e-3}]
    )
    for step in range(12):
        optimiser.zero_grad()
        loss(step, step_generator(1, step)).backward()
        optimiser.step()
    assert mean_loss() < 0.998 * before


def test_tuning_the_denoiser_halves_the_masked_loss(backbone, examples, tmp_path):
    settings = {"tune_denoiser": True, "denoiser_learning_rate": 3e-3, "steps": 100, "batch_size": 2}
    generator = make_generator(backbone, **settings)
    generator.fit(examples[-1:], tmp_path, 1)
    assert np.mean(generator.training["loss"][-20:]) < 0.5 * np.mean(generator.training["loss"][:5])


# requests


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Return a generator fitted on two products, with the mask model."""
    generator = make_generator(tiny_backbone(), masks="generated")
    examples = [make_example(*concept, number) for concept in CONCEPTS for number in range(2)]
    generator.fit(examples, tmp_path_factory.mktemp("fit"), 1)
    return generator


@pytest.mark.parametrize("reweighting", ["off", "paper", "official"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_image_equals_the_normal_image_outside_the_mask(fitted, monkeypatch, reweighting, guidance_scale):
    changes = {"masks": "given", "reweighting": reweighting, "guidance_scale": guidance_scale}
    monkeypatch.setattr(fitted, "config", fitted.config.model_copy(update=changes))
    request = make_request()
    pair = next(fitted.sample([request]))
    assert (pair.mask == request.mask).all()
    assert (pair.image[~pair.mask] == request.normal_image[~pair.mask]).all()
    assert (pair.image[pair.mask] != request.normal_image[pair.mask]).any()


def test_products_fitted_together_have_their_own_tokens(fitted, monkeypatch):
    monkeypatch.setattr(fitted, "config", fitted.config.model_copy(update={"masks": "given"}))
    assert set(fitted.tokens.names) == {"cloth/scratch", "plate/dent", "plate/scratch"}
    of_plate = next(fitted.sample([make_request(defect="scratch")]))
    of_cloth = next(fitted.sample([make_request(defect="scratch", product="cloth")]))
    assert (of_plate.image != of_cloth.image).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"product": "gear"}, "product 'gear' was not fitted; expected cloth or plate"),
        ({"product": "cloth"}, "defect 'dent' was not fitted; expected scratch"),
        ({"mask": None}, "expected a normal image and a mask"),
    ],
)
def test_a_request_for_something_not_fitted_is_rejected(fitted, change, message):
    with pytest.raises(InputError, match=message):
        list(fitted.sample([make_request(**change)]))


def test_a_mask_outside_the_product_is_rejected(fitted):
    normal = np.full((80, 96, 3), 20, np.uint8)
    normal[30:60, 30:60] = 220
    mask = np.zeros((80, 96), bool)
    mask[2:8, 2:8] = True
    with pytest.raises(InputError, match="the mask is outside the product"):
        list(fitted.sample([make_request(normal_image=normal, mask=mask)]))


def test_generated_masks_replace_the_requested_ones_unless_rejected(fitted, monkeypatch):
    shape = np.zeros((64, 64), bool)
    shape[20:44, 28:40] = True
    requests = [make_request(), make_request(sample_id="dent-1", seed=8)]
    monkeypatch.setattr(module, "generate_masks", lambda *_: [shape, None])
    moved, kept = fitted.sample(requests)
    assert (kept.mask == requests[1].mask).all()
    assert (moved.mask != requests[0].mask).any() and moved.mask.any()
    centre = [np.mean([axis.min(), axis.max()]) for axis in np.nonzero(moved.mask)]
    expected = [np.mean([axis.min(), axis.max()]) for axis in np.nonzero(requests[0].mask)]
    assert np.abs(np.subtract(centre, expected)).max() <= 1
    window = choose_window(requests[0].mask, "local", fitted.config.context, fitted.config.min_side)
    assert abs(np.ptp(np.nonzero(moved.mask)[0]) + 1 - 24 / 64 * window.height) <= 2
    assert (moved.image[~moved.mask] == requests[0].normal_image[~moved.mask]).all()
    assert (moved.metadata["mask"], kept.metadata["mask"]) == ("generated", "given")


def test_sampled_masks_depend_on_the_seed_and_pass_the_rules(fitted, monkeypatch):
    relaxed = fitted.config.mask_model.model_copy(update={"threshold": -0.9, "border_fraction": 1.0})
    monkeypatch.setattr(fitted, "config", fitted.config.model_copy(update={"mask_model": relaxed}))
    masks = fitted.sample_masks("dent", 3, 5, "plate")
    assert len(masks) == 3 and all(mask.shape == (64, 64) and mask.any() for mask in masks)
    again, other = fitted.sample_masks("dent", 3, 5, "plate"), fitted.sample_masks("dent", 3, 6, "plate")
    assert all((one == two).all() for one, two in zip(masks, again, strict=True))
    assert any((one != two).any() for one, two in zip(masks, other, strict=True))
    monkeypatch.setattr(mask_model, "touches_border_too_much", lambda *_: True)
    assert fitted.sample_masks("dent", 3, 5, "plate") == []


def test_masks_of_concepts_that_were_not_fitted_are_rejected(fitted, backbone, examples, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="masks of plate/rust: not fitted; expected cloth/scratch or plate/dent"):
        fitted.sample_masks("rust", 1, 0, "plate")
    without, *_ = _capture_training(monkeypatch, backbone, examples, tmp_path)
    with pytest.raises(InputError, match="no mask model was fitted; expected masks: generated"):
        without.sample_masks("dent", 1, 0, "plate")


# invalid input


def test_a_backbone_without_cross_attention_is_rejected():
    blocks = {
        "down_block_types": ("DownBlock2D",) * 2,
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ("UpBlock2D",) * 2,
    }
    with pytest.raises(InputError, match="has no cross-attention layers"):
        make_generator(tiny_backbone(**blocks))


def test_a_backbone_with_another_text_width_is_rejected():
    with pytest.raises(InputError, match="reads text of width 16, its text encoder gives 32"):
        make_generator(tiny_backbone(cross_attention_dim=16))


def test_more_tokens_than_the_text_encoder_reads_are_rejected(backbone, examples, tmp_path):
    with pytest.raises(InputError, match="fewer learned"):
        make_generator(backbone, anomaly_tokens=30).fit(examples, tmp_path, 1)


@pytest.mark.parametrize("prompts", [("a photo",), ("{anomaly} {anomaly}",)])
def test_a_prompt_without_its_slot_is_rejected(prompts):
    with pytest.raises(InputError, match=r"expected the slot \{anomaly\} exactly once"):
        generator_config("anomaly-diffusion", {"prompts": prompts})


def test_the_settings_of_the_paper_are_valid():
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
