"""AnomalyDiffusion's form in the paper: encoder, augmentation, re-weighting, masks; and over-fitting of two images."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_anomaly_diffusion import CONCEPTS, make_example, make_generator, make_request
from tiny_unet import tiny_backbone
from toy_vae import ToyVAE

from defect_core.data.augment import AugmentOptions, augment_pair, random_crop_with_defect
from defect_core.diffusion.attention import control_attention
from defect_core.diffusion.samplers import NoiseStream
from defect_core.diffusion.schedule import make_trajectory
from defect_core.generators.anomaly_diffusion import sampling
from defect_core.generators.anomaly_diffusion.config import EncoderConfig
from defect_core.generators.anomaly_diffusion.encoder import SpatialEncoder
from defect_core.generators.anomaly_diffusion.generator import AnomalyDiffusion
from defect_core.generators.anomaly_diffusion.reweighting import adaptive_scaling_softmax, dilation_radius
from defect_core.generators.anomaly_diffusion.sampling import NormalCanvases, Reweighting, sample_blended
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.registry import generator_config
from defect_core.generators.views import ViewSource

# spatial encoder


def test_the_papers_encoder_is_resnet_50_with_a_feature_pyramid():
    config = generator_config("anomaly-diffusion", {"variant": "paper"}).encoder
    with torch.device("meta"):
        encoder = SpatialEncoder(config, 4, 768, 0.02)
        sizes = []
        for stage in encoder.stages:
            stage.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape[1:])))
        assert encoder(torch.zeros(2, 1, 512, 512)).shape == (2, 4, 768)
    assert sizes == [(256, 64, 64), (512, 32, 32), (1024, 16, 16), (2048, 8, 8)]
    assert [len(stage) for stage in encoder.stages] == [3, 4, 6, 3]
    body = sum(parameter.numel() for part in (encoder.stem, encoder.stages) for parameter in part.parameters())
    assert body == 25_557_032 - 2_049_000  # ResNet-50 without its classifier
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in encoder.modules()) == 53


@pytest.mark.parametrize("architecture", ["ir", "resnet50"])
def test_each_stage_of_the_pyramid_counts_and_the_batch_does_not(architecture):
    torch.manual_seed(0)
    config = EncoderConfig(architecture=architecture, norm="batch", side=32, width=8, head_width=8)
    encoder = SpatialEncoder(config, 2, 16, 0.02)
    masks = torch.zeros(3, 1, 64, 64)
    masks[0, :, 4:20, 4:20], masks[1, :, 40:60, 10:50], masks[2, :, 30, :] = 1, 1, 1
    encoder(masks).square().sum().backward()
    assert all(float(layer.weight.grad.abs().sum()) > 0 for layer in encoder.lateral)
    encoder.eval()
    with torch.no_grad():
        together, alone = encoder(masks), torch.cat([encoder(mask[None]) for mask in masks])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-4)


def test_running_statistics_of_batch_norm_are_saved(tmp_path):
    examples = [make_example(*concept) for concept in CONCEPTS[1:]]
    generator = make_generator(tiny_backbone(), encoder={"side": 32, "norm": "batch"}, variants=None)
    generator.fit(examples, tmp_path / "work", 1)
    generator.save(tmp_path / "saved")
    loaded = AnomalyDiffusion.load(tmp_path / "saved", tiny_backbone())
    mean = [value for name, value in generator.encoder.state_dict().items() if name.endswith("running_mean")]
    assert any(float(value.abs().max()) > 0 for value in mean)
    for name, value in generator.encoder.state_dict().items():
        assert torch.equal(value, loaded.encoder.state_dict()[name]), name
    assert not loaded.encoder.training and not generator.encoder.training


def test_random_tokens_differ_and_have_the_scale_of_words():
    generator = make_generator(tiny_backbone(), init_word=None)
    generator.concepts = CONCEPTS
    torch.manual_seed(1)
    generator._initialise()
    rows = torch.stack(list(generator.tokens.embeddings.values())).detach().flatten(0, 1)
    table = generator.backbone.text_encoder.get_input_embeddings().weight
    assert float(rows.std()) == pytest.approx(float(table.std()), rel=0.2)
    assert float(torch.cosine_similarity(rows[:1], rows[1:]).abs().max()) < 0.9


# augmentation (appendix B)


def test_a_random_crop_contains_the_whole_defect():
    rows, columns = np.mgrid[:60, :80]
    image = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
    mask = np.zeros((60, 80), bool)
    mask[20:31, 50:61] = True
    boxes = set()
    for seed in range(30):
        crop, moved = random_crop_with_defect(image, mask, np.random.default_rng(seed))
        assert crop.shape == image.shape and moved.shape == mask.shape
        corners = crop[0, 0, :2].tolist() + crop[-1, -1, :2].tolist()
        assert corners[0] <= 20 and corners[1] <= 50 and corners[2] >= 30 and corners[3] >= 60
        boxes.add(tuple(corners))
        inside = crop[moved]
        assert set(inside[:, 0]) >= set(range(21, 30)) and inside[:, 0].min() >= 19 and inside[:, 0].max() <= 31
        assert inside[:, 1].min() >= 49 and inside[:, 1].max() <= 61
    assert len(boxes) > 20
    empty, _ = random_crop_with_defect(image, np.zeros_like(mask), np.random.default_rng(0))
    assert (empty == image).all()


NONE = {"flips": False, "rotate90": False, "rotation": 0.0, "scale": 0.0, "shift": 0.0}
PLAIN = {**NONE, "brightness": 0.0, "contrast": 0.0, "colour": 0.0, "crop": False}


@pytest.mark.parametrize("part", [{"crop": True}, {"shift": 0.2}, {"rotation": 20.0}, {"flips": True}])
def test_the_parts_of_the_augmentation_switch_separately(part):
    """Each part alone moves the defect in the views that training gets; without any part nothing changes."""
    example = make_example("plate", "scratch")

    def masks(augmentation):
        config = {"canvas": "whole", "variants": None, "augmentation": augmentation}
        views = ViewSource(tiny_backbone(), [example], generator_config("anomaly-diffusion", config), None)
        return [views.batch(1, torch.Generator().manual_seed(seed)).masks[0, 0] for seed in range(4)]

    unchanged, moved = masks(PLAIN), masks({**PLAIN, **part})
    assert all(torch.equal(mask, unchanged[0]) for mask in unchanged)
    assert any(not torch.equal(mask, unchanged[0]) for mask in moved) and all(mask.any() for mask in moved)


def test_the_probability_is_the_fraction_of_changed_views():
    image, mask = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8), np.ones((8, 8), bool)
    options = AugmentOptions(probability=0.5)
    seeds = range(200)
    same = [(augment_pair(image, mask, np.random.default_rng(seed), options)[0] == image).all() for seed in seeds]
    assert 0.4 < np.mean(same) < 0.6


def test_the_papers_views_are_new_in_every_batch_and_keep_the_defect():
    config = generator_config("anomaly-diffusion", {"variant": "paper"})
    views = ViewSource(tiny_backbone(), [make_example("plate", "dent")], config, None)
    batches = [views.batch(3, torch.Generator().manual_seed(seed)) for seed in range(3)]
    masks = torch.cat([batch.masks for batch in batches])
    assert len(torch.unique(masks.flatten(1), dim=0)) == 9 and masks.flatten(1).any(1).all()
    again = views.batch(3, torch.Generator().manual_seed(1))
    assert torch.equal(again.latents, batches[1].latents) and torch.equal(again.masks, batches[1].masks)


# re-weighting (eq. 7, and the public code)


@pytest.mark.parametrize("factor", [0.01, 0.1, 0.3])
def test_the_weights_do_not_depend_on_the_contrast_of_the_defect(factor):
    """A pale defect needs the same weights as a strong one; 52 grey levels of 255 are a difference of 0.5."""
    generator = torch.Generator().manual_seed(0)
    normal, change = torch.rand((2, 1, 3, 16, 16), generator=generator) * 2 - 1
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3:12, 5:14] = 1
    strong = adaptive_scaling_softmax(normal, normal + change, mask, 0.2)
    pale = adaptive_scaling_softmax(normal, normal + factor * change, mask, 0.2)
    assert torch.allclose(strong, pale, rtol=1e-3, atol=1e-4)
    inside = pale[mask == 1]
    assert inside.max() > 2 * inside.min()
    order = (change.square().sum(1, keepdim=True))[mask == 1].argsort()
    assert (inside[order].diff() <= 1e-5).all()
    assert float(pale.sum()) == pytest.approx(float(mask.sum()), rel=1e-4) and (pale[mask == 0] == 0).all()


def test_the_official_weights_compare_the_noisy_latent_with_the_clean_normal_one(monkeypatch):
    backbone = tiny_backbone()
    images = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 24:40] = 1
    with torch.no_grad():
        normal = NormalCanvases(images, mask, backbone.encode(images), torch.nn.functional.max_pool2d(mask, 8))
    control, applied, seen = control_attention(backbone.denoiser), [], []
    real = control.reweight
    monkeypatch.setattr(control, "reweight", lambda *args: applied.append(args) or real(*args))
    tokens = torch.zeros(1, 24, dtype=torch.bool)
    tokens[:, 3:9] = True
    text = backbone.encode_text(["a dent"])

    def predict(latents, time):
        seen.append((latents.clone(), int(time)))
        return backbone.denoiser(latents, time, text).sample

    reweighting = Reweighting("official", control, tokens, backbone.decode, 0.1)
    with torch.no_grad():
        stream = NoiseStream([3], normal.latents.shape[1:])
        sample_blended(normal, predict, make_trajectory(backbone.alphas_cumprod, 5), stream, 1.0, reweighting)
    assert len(applied) == len(seen) == 5
    for (_, weights, where), (latents, time) in zip(applied, seen, strict=True):
        assert where == "logits"
        expected = _public_weights(latents[0], normal.latents[0], normal.latent_masks[0, 0], dilation_radius(time, 2))
        assert np.allclose(weights[0, 0], expected, atol=1e-4)
    assert any((weights > 1).any() for _, weights, _ in applied)


def _public_weights(noisy, clean, mask, radius):
    """Return the weights of the public code cell by cell."""
    side = len(mask)
    dilated = np.zeros((side, side))
    for row, column in np.argwhere(mask.numpy() > 0):
        dilated[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1] = 1
    inverse = dilated / ((noisy - clean).square().mean(0).numpy())
    weights = dilated.sum() * inverse / inverse.sum()
    return np.where(dilated > 0, weights, 1).clip(1, 1.5)


# decoding, masks


def test_without_paste_the_decoded_image_is_returned(monkeypatch):
    generator = make_generator(tiny_backbone(), canvas="whole")
    generator.concepts = CONCEPTS
    generator._initialise()
    request = make_request()
    pasted = next(generator.sample([request]))
    monkeypatch.setattr(generator, "config", generator.config.model_copy(update={"paste": False}))
    raw = next(generator.sample([request]))
    outside = ~request.mask
    assert (pasted.image[outside] == request.normal_image[outside]).all()
    assert (raw.image[outside] != request.normal_image[outside]).mean() > 0.5
    assert (raw.mask == request.mask).all()


def test_the_latent_is_blended_with_the_normal_one_at_the_end_unless_switched_off(monkeypatch):
    recorded = []
    monkeypatch.setattr(sampling, "blend", lambda *args: recorded.append(args) or args[0])
    generator = make_generator(tiny_backbone(), reweighting="off", sampling_steps=3)
    generator.concepts = CONCEPTS
    generator._initialise()
    for blend_result, count in ((True, 4), (False, 3)):
        recorded.clear()
        generator.config = generator.config.model_copy(update={"blend_result": blend_result})
        next(generator.sample([make_request()]))
        assert len(recorded) == count


def test_each_defect_has_a_run_of_its_own_for_its_masks(tmp_path):
    examples = [make_example(*concept) for concept in CONCEPTS]
    settings = {"steps_per_defect": 2, "learning_rate": 1e-2}
    generator = make_generator(tiny_backbone(), masks="generated", steps=1, mask_model=settings)
    generator.fit(examples, tmp_path, 1)
    assert len(generator.training["mask_loss"]) == 2 * len(CONCEPTS)
    rows = list(generator.mask_tokens.embeddings.values())
    assert all(not torch.equal(rows[0], other) for other in rows[1:])
    assert all(parameter.requires_grad for parameter in generator.mask_tokens.parameters())


def test_a_sampled_mask_stays_where_it_was_sampled(monkeypatch):
    from defect_core.generators.anomaly_diffusion import generator as module

    shape = np.zeros((64, 64), bool)
    shape[8:16, 40:56] = True
    monkeypatch.setattr(module, "generate_masks", lambda *_: [shape])
    settings = {"masks": "generated", "canvas": "whole", "mask_model": {"position": "sampled"}}
    generator = make_generator(tiny_backbone(), **settings)
    generator.concepts = CONCEPTS
    generator._initialise()
    pair = next(generator.sample([make_request()]))  # an image of 80 x 96 pixels
    rows, columns = np.nonzero(pair.mask)
    assert [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1] == [10, 20, 60, 84]


# over-fitting


def _block_example(defect, level, rows, columns):
    image, mask = np.full((64, 64, 3), 128, np.uint8), np.zeros((64, 64), bool)
    mask[rows, columns] = True
    image[mask] = level
    return Example("plate", defect, image, mask, f"{defect}/0.png")


def _overfit(tmp_path, steps):
    """Fit a dark dent and a bright scratch, and return losses and the defects generated into a third mask."""
    backbone = dataclasses.replace(tiny_backbone(), vae=ToyVAE().eval())
    settings = {
        **{"steps": steps, "batch_size": 4, "variants": 8, "canvas": "whole", "sampling_steps": 8},
        **{"denoiser_learning_rate": 5e-3, "encoder": {"side": 32}, "paste": False, "tune_denoiser": True},
        **{"anomaly_tokens": 2, "spatial_tokens": 2},
    }
    generator = make_generator(backbone, **settings)
    examples = [
        _block_example("dent", 20, slice(8, 32), slice(8, 32)),
        _block_example("scratch", 236, slice(32, 56), slice(24, 56)),
    ]
    generator.fit(examples, tmp_path, 1)
    mask = np.zeros((64, 64), bool)
    mask[24:48, 16:48] = True
    normal = np.full((64, 64, 3), 128, np.uint8)
    images = {
        defect: np.stack(
            [
                pair.image.astype(float)
                for pair in generator.sample(
                    [SampleRequest(f"{defect}-{i}", "plate", defect, i, normal, mask) for i in range(4)]
                )
            ]
        )
        for defect in ("dent", "scratch")
    }
    return generator.training["loss"], images, mask


@pytest.mark.slow
def test_overfitting_generates_each_defect_inside_the_mask_only(tmp_path):
    losses, images, mask = _overfit(tmp_path, 130)
    assert np.mean(losses[-20:]) < 0.4 * np.mean(losses[:5])
    inside = {defect: each[:, mask].mean() for defect, each in images.items()}
    outside = {defect: np.abs(each[:, ~mask] - 128).mean() for defect, each in images.items()}
    assert inside["dent"] < 110 and inside["scratch"] > inside["dent"] + 30, (inside, outside)
    assert max(outside.values()) < 2, (inside, outside)
