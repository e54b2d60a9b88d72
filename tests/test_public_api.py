"""The Python API: a method is created, fitted, used, saved and loaded in a few lines."""

import subprocess
import sys

import numpy as np
import pytest

import defect_core as dc
from defect_core.cli.scaffold import init_project


def _example(defect, index, shape=(48, 48)):
    rng = np.random.default_rng([index, len(defect)])
    image, mask = rng.integers(90, 110, (*shape, 3), np.uint8), None
    if defect != "good":
        mask = np.zeros(shape, bool)
        mask[20 + index : 30, 20:32] = True
        image[mask] = 20
    return dc.Example("plate", defect, image, mask, f"{defect}/{index}.png")


@pytest.fixture
def generator():
    examples = [_example(defect, index) for defect in ("good", "dent", "stain") for index in range(3)]
    return dc.create_generator("crop-paste").fit(examples)


def test_importing_the_package_is_fast_and_imports_no_torch():
    program = (
        "import time; start = time.perf_counter(); import sys, defect_core; seconds = time.perf_counter() - start; "
        "assert seconds < 0.3, seconds; assert 'torch' not in sys.modules; print(sorted(defect_core.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in ("load_backbone", "create_generator", "read_examples", "open_project"))


def test_the_same_arguments_give_the_same_pairs_whatever_their_number(generator):
    assert generator.defects == ["dent", "stain"]
    four, two = generator.generate("dent", n=4, seed=1), generator.generate("dent", n=2, seed=1, batch_size=1)
    for one, other in zip(four, two, strict=False):
        assert (one.image == other.image).all() and (one.mask == other.mask).all()
    assert any(
        (one.image != other.image).any()
        for one, other in zip(four, generator.generate("dent", n=4, seed=2), strict=True)
    )


def test_given_normal_images_and_masks_are_used(generator):
    normal, mask = np.full((60, 80, 3), 100, np.uint8), np.zeros((60, 80), bool)
    mask[10:20, 30:45] = True
    (placed,) = generator.generate("dent", [normal], seed=3)
    assert placed.image.shape == normal.shape and (placed.image[~placed.mask] == 100).all() and placed.mask.any()


def test_a_saved_generator_gives_the_same_pairs(generator, tmp_path):
    generator.save(tmp_path / "saved")
    loaded = dc.load_generator(tmp_path / "saved")
    for one, other in zip(generator.generate("stain", n=3), loaded.generate("stain", n=3), strict=True):
        assert (one.image == other.image).all() and (one.mask == other.mask).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: dc.create_generator("paint"), "generator 'paint' is unknown"),
        (lambda _: dc.create_generator("seas"), "expected a backbone"),
        (lambda _: dc.create_generator("crop-paste", feathr=1), "unknown key"),
        (lambda g: g.generate("scratch"), "found 'scratch'; expected dent, stain"),
        (lambda g: g.generate("dent", []), "normal_images: empty"),
        (
            lambda g: g.generate("dent", n=2, masks=[np.ones((48, 48), bool)]),
            "masks: found 1; expected one per pair, 2",
        ),
        (lambda _: dc.load_generator("nowhere"), r"has no generator\.json"),
        (lambda _: dc.read_examples("nowhere"), "nowhere"),
    ],
)
def test_a_wrong_argument_is_named(generator, call, message):
    with pytest.raises(dc.InputError, match=message):
        call(generator)


def test_a_project_names_what_it_lacks(tmp_path):
    init_project(tmp_path / "factory")
    project = dc.open_project(tmp_path / "factory")
    with pytest.raises(dc.InputError, match=r"product 'screw' is not in params\.yaml"):
        project.load_generator("screw", "seas")
