"""The example of a third-party generator, installed into a temporary folder and used through its entry point."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from defect_core.errors import InputError
from defect_core.generators.base import Example, SampleRequest
from defect_core.generators.registry import generator_capabilities, generator_class, generator_config, generator_names
from defect_core.synthesis.defect_generator import create_generator

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "third_party_generator"
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory):
    """Build a wheel as an installer does, and unpack it."""
    folder = tmp_path_factory.mktemp("third_party")
    shutil.copytree(EXAMPLE, folder / "source")
    command = [sys.executable, "-c", BUILD, str(folder)]
    subprocess.run(command, cwd=folder / "source", check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site-packages")
    return folder / "site-packages"


@pytest.fixture
def installed(site_packages, monkeypatch):
    monkeypatch.syspath_prepend(str(site_packages))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "stain_generator"]:
        del sys.modules[name]


def _examples():
    rng = np.random.default_rng(0)
    image = rng.integers(80, 160, (40, 50, 3), np.uint8)
    mask = np.zeros((40, 50), bool)
    mask[10:25, 12:30] = True
    return Example("plate", "good", image, None, "good/0.png"), Example("plate", "stain", image, mask, "stain/0.png")


def test_the_registry_finds_the_example_only_when_it_is_installed(site_packages):
    assert "stain" not in generator_names()
    with pytest.raises(InputError, match="generator 'stain' is unknown"):
        generator_class("stain")


@pytest.mark.usefixtures("installed")
def test_the_registry_finds_the_example_through_its_entry_point():
    assert generator_names()[-1] == "stain"
    assert generator_capabilities("stain").keeps_background
    with pytest.raises(
        InputError, match=r"stain\.dark: unknown key; did you mean 'darkness'\? expected one of blur, darkness"
    ):
        generator_config("stain", {"dark": 1})


@pytest.mark.usefixtures("installed")
def test_the_example_generates_pairs_through_the_python_api():
    normal, defective = _examples()
    generator = create_generator("stain", darkness=0.8).fit([normal, defective])
    pairs = generator.generate("stain", n=2, seed=3)
    assert [pair.metadata for pair in pairs] == [{"strength": 1.0}] * 2
    for pair in pairs:
        assert pair.mask.any() and (pair.image[~pair.mask] == normal.image[~pair.mask]).all()


@pytest.mark.usefixtures("installed")
def test_the_strength_changes_a_sample_and_loading_does_not(tmp_path):
    normal, defective = _examples()
    generator = generator_class("stain").create(generator_config("stain", {"darkness": 0.8}), None)
    generator.fit([normal, defective], tmp_path / "work", seed=0)
    requests = [
        SampleRequest(f"stain-{strength}", "plate", "stain", 5, normal.image, defective.mask, strength=strength)
        for strength in (0.5, 1.0)
    ]
    weak, strong = generator.sample(requests)
    for pair in (weak, strong):
        assert pair.image.dtype == np.uint8 and (pair.mask == defective.mask).all()
        assert (pair.image[~pair.mask] == normal.image[~pair.mask]).all()
    inside = defective.mask
    assert strong.image[inside].mean() < weak.image[inside].mean() < normal.image[inside].mean()
    generator.save(tmp_path / "saved")
    loaded = generator_class("stain").load(tmp_path / "saved", None)
    assert (next(loaded.sample(requests[1:])).image == strong.image).all()
