"""`preview`: pairs of every defect type in one picture, from the source or from ingested images."""

import json

import numpy as np
import pytest
from PIL import Image
from product_images import call, listing, write_images

from defect_core.cli.preview import _load_sample, preview_product
from defect_core.cli.source_examples import crop_around, load_source_examples, spread
from defect_core.data.config import SourceConfig
from defect_core.generators.base import Example
from defect_core.project.paths import Project


@pytest.fixture
def product(new_project, tmp_path, monkeypatch, capsys):
    source = write_images(tmp_path / "plates", defects=(("dent", 4), ("cut", 4)))
    assert call(monkeypatch, capsys, "add-product", "plate", source)[0] == 0
    return new_project


def test_a_dozen_pairs_of_every_type_before_anything_has_run(product, monkeypatch, capsys):
    before = listing(product)
    code, out, _ = call(monkeypatch, capsys, "preview", "plate", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["pairs"] == {"cut": 12, "dent": 12} and facts["seconds"]["preset demo"] > 0
    after = listing(product)
    assert set(after) - set(before) == {facts["sheet"]}
    with Image.open(product / facts["sheet"]) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (4 * 18 + 2 * 160 + 2 * 322, 6 * 162 - 2, 3)
    assert (pixels == (255, 0, 170)).all(axis=2).any()


def test_ingested_images_are_used_if_there_are_some(product, monkeypatch, capsys):
    assert call(monkeypatch, capsys, "stage", "ingest", "--product", "plate")[0] == 0
    (product.parent / "plates").rename(product.parent / "elsewhere")
    assert preview_product(Project(product), "plate", 2).pairs == {"cut": 2, "dent": 2}


def test_a_time_limit_leaves_one_pair_of_every_type(product):
    found = preview_product(Project(product), "plate", 12, limit=0)
    assert found.pairs == {"cut": 1, "dent": 1} and not found.is_complete


def test_the_demo_can_be_previewed(new_project, monkeypatch, capsys):
    assert call(monkeypatch, capsys, "add-product", "weave", "demo")[0] == 0
    code, out, _ = call(monkeypatch, capsys, "preview", "weave", "--per-defect", "1")
    assert code == 0 and "1 pairs of" in out


def test_an_unknown_product_is_an_error_of_one_line(new_project, monkeypatch, capsys):
    code, _, error = call(monkeypatch, capsys, "preview", "screw")
    assert code == 2 and "product 'screw' is not in params.yaml" in error and error.count("\n") == 1


def test_a_crop_contains_the_whole_mask_in_the_middle():
    mask = np.zeros((300, 400), bool)
    mask[100:140, 200:220] = True
    image, cropped = crop_around(Example("p", "dent", np.zeros((300, 400, 3), np.uint8), mask, "x"))
    assert image.shape == (100, 100, 3) and cropped.sum() == mask.sum()
    rows, columns = np.nonzero(cropped)
    assert abs(rows.mean() - 50) < 2 and abs(columns.mean() - 50) < 2


def test_a_crop_of_a_normal_image_is_all_of_it():
    image, mask = crop_around(Example("p", "good", np.zeros((30, 40, 3), np.uint8), None, "x"))
    assert image.shape == (30, 40, 3) and mask is None


def test_examples_are_spread_over_the_source_and_reduced(tmp_path):
    source = write_images(tmp_path / "web", size=(3000, 2400), normals=2, spot=2)
    examples, images, defect_images = load_source_examples(source, "web", "auto", SourceConfig(path="x"), 1, 2)
    assert (images, defect_images) == (6, 4)
    assert [example.defect for example in examples] == ["good", "dent", "dent"]
    assert all(max(example.image.shape) == 2048 for example in examples)
    assert all(example.mask is None or example.mask.any() for example in examples)
    assert spread(range(100), 3) == [0, 50, 99] and spread([1, 2], 3) == [1, 2]


def test_regions_of_the_source_hold_before_and_after_it_is_ingested(new_project, tmp_path, monkeypatch, capsys):
    source = write_images(tmp_path / "plates", defects=(("dent", 4),))
    first = next(source.glob("good/*"))
    with Image.open(first) as image:
        width, height = image.size
    left = np.zeros((height, width), np.uint8)
    left[:, : width // 2] = 255
    own = np.full_like(left, 255)
    own[: height // 4] = 0
    (source / "roi/good").mkdir(parents=True)
    Image.fromarray(left).save(source / "roi/product.png")
    Image.fromarray(own).save(source / "roi/good" / first.name)
    assert call(monkeypatch, capsys, "add-product", "plate", source, "-o", "roi=roi")[0] == 0
    project = Project(new_project)

    def regions():
        sample = _load_sample(project, "plate")
        return [example.regions["*"] for example in sample.examples if example.mask is None], sample.examples

    before, examples = regions()
    assert not any(region[:, width // 2 :].any() for region in before)
    at = next(
        i for i, example in enumerate(e for e in examples if e.mask is None) if example.name == f"good/{first.name}"
    )
    assert not before[at][: height // 4].any() and before[at][-1, 0]
    assert call(monkeypatch, capsys, "stage", "ingest", "--product", "plate")[0] == 0
    after, _ = regions()
    assert sorted(map(bytes, before)) == sorted(map(bytes, after))


def test_a_region_that_cannot_be_used_is_named_by_the_preview(new_project, tmp_path, monkeypatch, capsys):
    source = write_images(tmp_path / "plates", defects=(("dent", 4),))
    Image.fromarray(np.full((40, 40), 255, np.uint8)).save(source / "roi.png")
    assert call(monkeypatch, capsys, "add-product", "plate", source, "-o", "roi=roi.png")[0] == 0
    (source / "roi.png").write_bytes(b"no picture")
    code, _, error = call(monkeypatch, capsys, "preview", "plate")
    assert code == 2 and "roi.png: not a readable" in error
