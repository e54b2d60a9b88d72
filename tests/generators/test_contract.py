"""The contract of a generator, tested on every registered generator with the capabilities that it declares."""

import dataclasses
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from defect_core.backbones import load_backbone
from defect_core.errors import InputError
from defect_core.generators import registry
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.registry import generator_capabilities, generator_class, generator_config, generator_names
from defect_core.seeds import derive_seed
from defect_core.training import precision

QUICK = {
    "anomaly-diffusion": {"steps": 6, "batch_size": 2, "variants": 2, "sampling_steps": 3},
    "cadiff": {"steps": 4, "batch_size": 2, "variants": 2, "sampling_steps": 3, "contrast_views": 2},
    "defectdiffu": {"steps": 3, "batch_size": 2, "variants": 1, "normal_variants": 1, "sampling_steps": 3},
    "disentangled-inversion": {"steps": 6, "batch_size": 2, "variants": 2, "sampling_steps": 3},
    "seas": {
        **{"steps": 3, "mask_steps": 2, "batch_size": 2, "variants": 1, "sampling_steps": 3, "mask_layers": 1},
        **{"canvas": "whole", "paste": False, "ref_strength": 0.0, "alignment": "paper"},  # the settings of the paper
    },
}
DEFECTS = ("dent", "scratch")


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    examples = []
    for number in range(4):
        examples.append(Example("plate", "good", _plate(rng), None, f"good/{number}.png"))
    for defect, value in zip(DEFECTS, (30, 230), strict=True):
        for number in range(3):
            image, mask = _plate(rng), np.zeros((96, 112), bool)
            top, left = rng.integers(10, 60, 2)
            mask[top : top + 14, left : left + (6 if defect == "scratch" else 14)] = True
            image[mask] = value
            examples.append(Example("plate", defect, image, mask, f"{defect}/{number}.png"))
    return examples


def _plate(rng):
    shade = np.linspace(90, 150, 112)[None, :, None] + rng.normal(0, 4, (96, 112, 3))
    return np.clip(shade, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=generator_names())
def fitted(request, examples, tmp_path_factory):
    """A generator after a short fit, its saved folder, and its name."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    generator = _fit(name, examples, folder / "work")
    generator.save(folder / "saved")
    return name, generator, folder


def _fit(name, examples, work):
    config = generator_config(name, QUICK.get(name, {}))
    generator = generator_class(name).create(config, _backbone(name))
    generator.fit(examples, work, seed=1)
    return generator


def _backbone(name):
    return load_backbone("embedded") if generator_capabilities(name).uses_backbone else None


def _requests(examples, count, name="x"):
    normals = [e for e in examples if e.mask is None]
    defective = [e for e in examples if e.mask is not None]
    requests = []
    for index in range(count):
        source = defective[index % len(defective)]
        requests.append(
            SampleRequest(
                sample_id=f"{source.defect}-{index}",
                product="plate",
                defect=source.defect,
                seed=derive_seed(0, "plate", name, source.defect, index),
                normal_image=normals[index % len(normals)].image,
                mask=source.mask,
                source=source,
                warped=source.image,
            )
        )
    return requests


def test_generated_normal_images_depend_on_seed_and_reference(fitted, examples):
    _, generator, folder = fitted
    references = [examples[0].image, examples[1].image[:64, :64]]
    if not generator.capabilities.generates_normals:
        with pytest.raises(InputError, match="cannot generate normal images; expected a generator that can"):
            list(generator.generate_normals([1], references))
        return
    images = list(generator.generate_normals([5, 6, 7], references))
    assert [image.shape for image in images] == [references[i].shape for i in (0, 1, 0)]
    assert all(image.dtype == np.uint8 and image.std() > 0 for image in images)
    assert (images[0] != images[2]).any()
    loaded = generator_class(generator.name).load(folder / "saved", _backbone(generator.name))
    alone = next(loaded.generate_normals([7], references[:1]))
    assert np.abs(images[2].astype(int) - alone).max() <= 1  # another batch size may change the rounding
    with pytest.raises(InputError, match="expected at least one"):
        list(generator.generate_normals([1], []))


def test_masks_are_nonempty_and_as_large_as_the_image(fitted, examples):
    _, generator, _ = fitted
    requests = _requests(examples, 3)
    pairs = list(generator.sample(requests))
    assert [pair.sample_id for pair in pairs] == [request.sample_id for request in requests]
    for request, pair in zip(requests, pairs, strict=True):
        assert pair.image.shape == request.normal_image.shape and pair.image.dtype == np.uint8
        assert pair.mask.shape == request.normal_image.shape[:2] and pair.mask.dtype == bool
        assert pair.mask.any()


def test_the_background_is_unchanged_with_keeps_background(fitted, examples):
    _, generator, _ = fitted
    if not generator.capabilities.keeps_background:
        pytest.skip("does not declare keeps_background")
    for request, pair in zip(_requests(examples, 3), generator.sample(_requests(examples, 3)), strict=True):
        assert (pair.image[~pair.mask] == request.normal_image[~pair.mask]).all()


def test_the_requested_mask_is_returned_without_predicts_mask(fitted, examples):
    _, generator, _ = fitted
    if generator.capabilities.predicts_mask:
        pytest.skip("declares predicts_mask")
    for request, pair in zip(_requests(examples, 3), generator.sample(_requests(examples, 3)), strict=True):
        assert (pair.mask == request.mask).all()


def test_a_sample_depends_on_its_seed_but_not_on_its_batch(fitted, examples, monkeypatch):
    name, generator, _ = fitted
    requests = _requests(examples, 4)
    # In bfloat16, matrix units sum in an order that depends on the batch: up to five grey levels of difference.
    monkeypatch.setattr(precision, "has_native_bf16", lambda: False)
    together = list(generator.sample(requests))
    alone = [next(iter(generator.sample([request]))) for request in requests]
    for one, other in zip(together, alone, strict=True):
        # Another batch size may change the rounding by one grey level.
        assert np.abs(one.image.astype(int) - other.image.astype(int)).max() <= 1
        assert (one.mask != other.mask).sum() <= 2
    again = list(generator.sample(requests))
    assert all((a.image == b.image).all() and (a.mask == b.mask).all() for a, b in zip(together, again, strict=True))
    if name != "crop-paste":  # crop-paste is deterministic
        other = next(iter(generator.sample([dataclasses.replace(requests[0], seed=99)])))
        assert (other.image != together[0].image).any()


def test_bfloat16_changes_a_sample_only_slightly(fitted, examples, monkeypatch):
    _, generator, _ = fitted
    if not (generator.capabilities.uses_backbone and precision.has_native_bf16()):
        pytest.skip("uses no network, or the processor has no bfloat16 instructions")
    requests = _requests(examples, 3)
    bf16 = list(generator.sample(requests))
    monkeypatch.setattr(precision, "has_native_bf16", lambda: False)
    float32 = list(generator.sample(requests))
    others = list(generator.sample([dataclasses.replace(request, seed=request.seed + 1) for request in requests]))
    assert 0 < _mean_difference(bf16, float32) < 0.25 * _mean_difference(float32, others)  # compared with another seed


def _mean_difference(pairs, others):
    """Return the mean absolute difference in grey levels."""
    return np.mean([np.abs(a.image.astype(int) - b.image).mean() for a, b in zip(pairs, others, strict=True)])


def test_save_and_load_give_the_same_samples(fitted, examples):
    name, generator, folder = fitted
    before = list(generator.sample(_requests(examples, 2)))
    loaded = generator_class(name).load(folder / "saved", _backbone(name))
    for one, other in zip(before, loaded.sample(_requests(examples, 2)), strict=True):
        assert (one.image == other.image).all() and (one.mask == other.mask).all()


def test_fitting_again_writes_the_same_bytes(fitted, examples):
    name, _, folder = fitted
    _fit(name, examples, folder / "work2").save(folder / "again")
    for path in (folder / "saved").iterdir():
        assert path.read_bytes() == (folder / "again" / path.name).read_bytes(), path.name
    text = (folder / "saved" / "generator.json").read_text()
    assert str(folder) not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defect": "rust"}, "defect 'rust' was not fitted; expected dent or scratch"),
        ({"mask": None}, "expected a normal image and a mask"),
        ({"mask": np.zeros((96, 112), bool)}, "the mask is empty"),
        ({"mask": np.ones((5, 5), bool)}, "expected the same size"),
    ],
)
def test_an_invalid_request_is_rejected(fitted, examples, change, message):
    _, generator, _ = fitted
    if not generator.capabilities.needs_mask and "mask" in change:
        pytest.skip("does not declare needs_mask")
    request = dataclasses.replace(_requests(examples, 1)[0], **change)
    with pytest.raises(InputError, match=message):
        list(generator.sample([request]))


def test_the_folder_of_another_method_is_rejected(fitted, tmp_path):
    name, _, _ = fitted
    with pytest.raises(InputError, match="expected a folder written by the finetune stage"):
        generator_class(name).load(tmp_path, _backbone(name))
    (tmp_path / "generator.json").write_text('{"generator": "other"}')
    with pytest.raises(InputError, match="was written by 'other'"):
        generator_class(name).load(tmp_path, _backbone(name))


def test_a_backbone_with_other_weights_is_rejected(fitted, examples):
    name, _, folder = fitted
    if not generator_capabilities(name).uses_backbone:
        pytest.skip("uses no backbone")
    backbone = _backbone(name)
    backbone.digest = "0" * 64
    with pytest.raises(InputError, match="other weights"):
        generator_class(name).load(folder / "saved", backbone)


def test_the_settings_of_another_method_are_rejected(fitted):
    name, _, _ = fitted
    with pytest.raises(TypeError, match=f"{name}: settings are GeneratorConfig; expected "):
        generator_class(name).create(registry.GeneratorConfig(), _backbone(name))


def test_a_missing_backbone_is_rejected(fitted):
    name, generator, folder = fitted
    if not generator_capabilities(name).uses_backbone:
        pytest.skip("uses no backbone")
    with pytest.raises(InputError, match=f"{name}: no backbone"):
        generator_class(name).create(generator.config, None)
    with pytest.raises(InputError, match=f"{name}: no backbone"):
        generator_class(name).load(folder / "saved", None)


def test_a_seed_depends_on_every_argument():
    arguments = (0, "p", "g", "d", 1)
    variants = [
        arguments,
        (1, "p", "g", "d", 1),
        (0, "q", "g", "d", 1),
        (0, "p", "h", "d", 1),
        (0, "p", "g", "e", 1),
        (0, "p", "g", "d", 2),
    ]
    seeds = {derive_seed(*variant) for variant in variants}
    assert len(seeds) == len(variants) and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "ab", "c", "d", 1) != derive_seed(0, "a", "bc", "d", 1)


def test_an_entry_point_registers_a_third_party_package(monkeypatch):
    entry = EntryPoint("third-party", "defect_core.generators.crop_paste", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    assert "third-party" in generator_names()
    assert generator_class("third-party").name == "crop-paste"
    assert generator_capabilities("third-party").keeps_background
