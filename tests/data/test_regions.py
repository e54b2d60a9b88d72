"""Where defects may be placed: regions, rules of rotation and scale, and placement like the real examples."""

import hashlib
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import ndimage

from defect_core.data.demo import render_demo_image
from defect_core.data.foreground import estimate_pose
from defect_core.data.layouts import ingest_source
from defect_core.data.placement import place_defect
from defect_core.data.placement_rules import Scene, place_by_rule
from defect_core.data.placement_settings import PlacementRule, rule_for, rules_of
from defect_core.data.records import record_rows, write_records
from defect_core.data.regions import load_named_region, load_region, region_outline
from defect_core.errors import InputError
from defect_core.generators.base import Example, SyntheticPair
from defect_core.graph.instances import find_instance
from defect_core.project.params import load_params
from defect_core.project.paths import Project
from defect_core.project.synthesis import load_synthesis_job
from defect_core.synthesis.filter import measure_pair
from defect_core.synthesis.requests import SynthesisPlan, make_request


def _disc(height, width, centre, radius):
    row, column = np.mgrid[:height, :width]
    return (row - centre[0]) ** 2 + (column - centre[1]) ** 2 <= radius**2


def _box(size, top, left, bottom, right):
    region = np.zeros(size, bool)
    region[top:bottom, left:right] = True
    return region


def _demo(name, number):
    return render_demo_image(name, "train/good", 0, number).image


def _plate(angle=0.0, shift=(0, 0), seed=0):
    """Return an image of a wedge on a dark background, turned by `angle` degrees, and where it is."""
    row, column = np.mgrid[:120, :160] - np.array([60 + shift[0], 80 + shift[1]])[:, None, None]
    turn = np.deg2rad(angle)
    along, across = column * np.cos(turn) + row * np.sin(turn), row * np.cos(turn) - column * np.sin(turn)
    on = (np.abs(along) < 45) & (np.abs(across) < 10 + 0.2 * (along + 45))
    noise = np.random.default_rng(seed).normal(0, 3, (120, 160, 3))
    return np.clip(np.where(on[..., None], 190, 40) + noise, 0, 255).astype(np.uint8), on


def _angle(matrix):
    return float(np.rad2deg(np.arctan2(matrix[1, 0], matrix[0, 0])))


# Placements of the version without rules: sha256 over masks and warped images of 12 seeds.
DIGESTS = {
    "object": "e56eabb7b2a8f14750333d2d9e4b83ae96ea1cb3c8209278a6670b847cd812bb",
    "texture": "688bb16c5a7092ae03e66f1802204a7a821983ad115f406e1fc1897ea375f27a",
    "border": "078ec02b2a76c325e8c3182b14c3e888decc5e2b27f9f2bfc0aae2ab61a34ae7",
    "crop": "57f5abd00e0189ab0ffcff61fdeaf47856f1aad0c4113b67aa88fc74546c1b35",
}


@pytest.mark.parametrize("case", DIGESTS)
def test_placements_without_rules_are_those_of_earlier_versions(case):
    rng = np.random.default_rng(0)
    noise = rng.integers(90, 110, (90, 60, 3), dtype=np.uint8)
    source, mask, target = {
        "object": lambda: (_demo("flange", 0), _disc(128, 128, (30, 64), 6), _demo("flange", 1)),
        "texture": lambda: (_demo("weave", 0), _disc(128, 128, (40, 50), 8), _demo("weave", 1)),
        "border": lambda: (noise, _disc(90, 60, (0, 30), 9), rng.integers(90, 110, (120, 80, 3), dtype=np.uint8)),
        "crop": lambda: (_demo("weave", 0), _disc(128, 128, (60, 60), 20), _demo("weave", 2)[:50, :40].copy()),
    }[case]()
    digest = hashlib.sha256()
    for seed in range(12):
        placed = place_defect(source, mask, target, np.random.default_rng(seed))
        digest.update(np.packbits(placed.mask).tobytes())
        digest.update(placed.warped.tobytes())
    assert digest.hexdigest() == DIGESTS[case]
    # A request without a rule and without a region uses the same placement.
    example, normal = Example("p", "dent", source, mask, "d"), Example("p", "good", target, None, "n")
    plan = SynthesisPlan(product="p", generator="g", base_seed=5, per_defect=1)
    request, _ = make_request(plan, "dent", 0, [normal], [example])
    rng = np.random.default_rng(request.seed)
    rng.integers(1), rng.integers(1)
    assert case == "border" or np.array_equal(request.mask, place_defect(source, mask, target, rng).mask)


@pytest.mark.parametrize("product", ["flange", "weave"])
@pytest.mark.parametrize("mode", ["anywhere", "like_examples"])
@pytest.mark.parametrize("box", [(20, 40, 60, 90), (86, 70, 112, 100), (0, 0, 128, 30)])
def test_no_pixel_of_a_mask_is_outside_its_region(product, mode, box):
    source = Scene.of(_demo(product, 0), ndimage.rotate(_box((128, 128), 30, 60, 34, 74), 30, reshape=False, order=0))
    target, region = Scene.of(_demo(product, 1)), _box((128, 128), *box)
    places = set()
    for seed in range(12):
        placed = place_by_rule(source, target, np.random.default_rng(seed), PlacementRule(mode=mode), region)
        assert placed.mask.any() and not (placed.mask & ~region).any()
        assert np.array_equal(placed.warped[~placed.valid], target.image[~placed.valid])
        places.add(tuple(np.argwhere(placed.mask).mean(0).round()))
    assert len(places) > 5


@pytest.mark.parametrize("rotation", [0, 15, 90])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 0.6), (1.0, 1.5)])
def test_rotation_and_scale_keep_their_limits(rotation, scale):
    source = Scene.of(_demo("weave", 0), _box((128, 128), 40, 40, 46, 60))
    rule = PlacementRule(rotation=rotation, scale=scale)
    angles = []
    target = Scene.of(_demo("weave", 1))
    for seed in range(15):
        placed = place_by_rule(source, target, np.random.default_rng(seed), rule)
        zoom = np.sqrt(np.linalg.det(placed.matrix[:, :2]))  # a mirrored placement has a negative determinant
        assert scale[0] - 1e-6 <= zoom <= scale[1] + 1e-6
        angles.append(_angle(placed.matrix))
    assert np.abs(angles).max() <= rotation + 1e-6
    assert np.ptp(angles) >= rotation  # the limit is used


def test_rotation_is_relative_to_the_product():
    source = Scene.of(_plate()[0], _box((120, 160), 56, 60, 60, 76))
    for turn in (35, 150, -80):
        target = Scene.of(_plate(turn, seed=1)[0])
        for seed in range(8):
            placed = place_by_rule(source, target, np.random.default_rng(seed), PlacementRule(rotation=5))
            assert abs((_angle(placed.matrix) - turn + 180) % 360 - 180) < 8


def test_a_region_that_just_fits_is_found_and_a_smaller_one_is_refused():
    mask = _disc(128, 128, (30, 64), 6)
    source, target = Scene.of(_demo("flange", 0), mask), Scene.of(_demo("flange", 1))
    rule = PlacementRule(scale=(1.0, 1.0), rotation=0)
    for seed in range(5):
        fits = place_by_rule(source, target, np.random.default_rng(seed), rule, _box((128, 128), 60, 20, 73, 33))
        assert fits is not None and np.array_equal(fits.mask, np.roll(mask, (36, -38), (0, 1)))
        assert (
            place_by_rule(source, target, np.random.default_rng(seed), rule, _box((128, 128), 60, 20, 72, 33)) is None
        )
    assert place_by_rule(source, target, np.random.default_rng(0), rule, np.zeros((128, 128), bool)) is None


def test_masks_cut_by_the_border_stay_there_and_in_the_region():
    source = Scene.of(_demo("weave", 0), _disc(128, 128, (0, 40), 9))
    region = _box((128, 128), 0, 60, 14, 128)
    for seed in range(10):
        for mode in ("anywhere", "like_examples"):
            rule = PlacementRule(mode=mode, rotation=0)
            placed = place_by_rule(source, Scene.of(_demo("weave", 1)), np.random.default_rng(seed), rule, region)
            if placed is None:  # like the examples: far from the region
                assert mode == "like_examples"
                continue
            assert placed.mask[0].any() and not (placed.mask & ~region).any()


def test_like_examples_follows_positions_and_angles_on_the_product():
    """The examples have scratches at the wide end, at 30 degrees to the axis; targets are turned and shifted."""
    rng = np.random.default_rng(0)
    examples = []
    for number in range(6):
        scratch = np.zeros((120, 160), bool)
        along = np.linspace(-7, 7, 60)
        x, y = 110 + rng.normal(0, 2) + along * np.cos(np.pi / 6), 62 + rng.normal(0, 2) + along * np.sin(np.pi / 6)
        scratch[y.round().astype(int), x.round().astype(int)] = True
        examples.append(Scene.of(_plate(seed=number)[0], ndimage.binary_dilation(scratch)))
    for turn, shift in ((0, (0, 0)), (90, (3, -10)), (200, (-4, 8))):
        image, _ = _plate(turn, shift, seed=9)
        positions, axes = [], []
        for seed in range(30):
            placed = place_by_rule(
                examples[seed % 6],
                Scene.of(image),
                np.random.default_rng(seed),
                PlacementRule(mode="like_examples"),
                examples=examples,
            )
            positions.append(np.argwhere(placed.mask).mean(0)[::-1] - [80 + shift[1], 60 + shift[0]])
            axes.append(estimate_pose(placed.mask).angle)
        back = np.deg2rad(-turn)
        rotation = np.array([[np.cos(back), -np.sin(back)], [np.sin(back), np.cos(back)]])
        middle = (np.array(positions) @ rotation.T).mean(0)
        assert np.abs(middle - [30, 2]).max() < 4
        deviation = (np.rad2deg(axes) - turn - 30 + 90) % 180 - 90
        assert abs(deviation.mean()) < 5 and np.abs(deviation).max() < 25
    anywhere = [
        np.argwhere(place_by_rule(examples[0], examples[1], np.random.default_rng(seed)).mask).mean(0)
        for seed in range(30)
    ]
    assert np.std(anywhere, axis=0).max() > 12  # without the mode, positions are spread over the product


def test_rules_are_found_by_product_and_defect_type_and_checked(tmp_path):
    def load(placement):
        text = {"products": ["a", "b"], "sources": {"a": {"path": "x"}, "b": {"path": "y"}}, "placement": placement}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(text))
        return load_params(tmp_path / "params.yaml")

    section = load({"a": {"cut": {"rotation": 15, "scale": [0.9, 1.1]}, "dent": "like_examples"}}).placement
    assert rule_for(rules_of(section, "a"), "cut") == PlacementRule(rotation=15, scale=(0.9, 1.1))
    assert rule_for(rules_of(section, "a"), "dent").mode == "like_examples"
    assert rule_for(rules_of(section, "b"), "cut") is None
    section = load({"a": "like_examples", "*": {"cut": {"rotation": 3}}}).placement
    assert rule_for(rules_of(section, "a"), "other").mode == "like_examples"
    assert rule_for(rules_of(section, "b"), "cut").rotation == 3
    assert rule_for(rules_of(load("like_examples").placement, "b"), "x").mode == "like_examples"
    for wrong, message in (
        ({"c": {"cut": "anywhere"}}, "placement.c: no such product"),
        ({"a": {"cut": {"scale": [1.2, 0.8]}}}, "placement.a.cut.scale: expected two positive numbers"),
        ({"a": {"cut": {"region": "../x.png"}}}, "placement.a.cut.region: expected a picture below roi/"),
        ({"a": {"cut": "somewhere"}}, "placement.a.cut: expected anywhere or like_examples"),
        ({"a": {"cut": {"rotate": 3}}}, "placement.a.cut.rotate: unknown key"),
    ):
        with pytest.raises(InputError, match=message.replace(".", r"\.")):
            load(wrong)


def test_the_stage_depends_on_the_rules_of_its_product(tmp_path):
    def params_of(placement):
        text = {"products": ["a", "b"], "sources": {"a": {"path": "x"}, "b": {"path": "y"}}, "placement": placement}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(text))
        params = load_params(tmp_path / "params.yaml")
        found = find_instance("synthesize", params, product="a", generator="crop-paste")
        return found.fill(found.stage.params)

    assert "placement.a" in params_of({"a": "like_examples"})
    assert not any("placement" in key for key in params_of({"b": "like_examples"}))
    assert "placement" in params_of("like_examples")


@pytest.fixture
def source(tmp_path):
    """A product with 4 normal and 6 defect images, a region per image and a named region."""
    rng = np.random.default_rng(0)
    root = tmp_path / "source"

    def write(name, pixels):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)

    for number in range(4):
        write(f"good/n{number}.png", rng.integers(90, 110, (64, 80, 3), np.uint8))
        write(f"roi/n{number}.png", _box((64, 80), 0, 0, 64, 40 + number).astype(np.uint8) * 255)
    for number in range(6):
        image, mask = rng.integers(90, 110, (64, 80, 3), np.uint8), _box((64, 80), 30, 50, 38, 56 + number)
        image[mask] = 200
        write(f"cut/c{number}.png", image)
        write(f"masks/cut/c{number}.png", mask.astype(np.uint8) * 255)
    write("roi/top.bmp", _box((64, 80), 0, 0, 24, 80).astype(np.uint8) * 255)
    return root


def _project(tmp_path, placement):
    text = {"products": ["p"], "sources": {"p": {"path": "source"}}, "placement": placement}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(text))
    records = record_rows(tmp_path / "data/raw/p/records.parquet")
    (tmp_path / "data/split").mkdir(exist_ok=True)
    divided = [type(r)(**{**vars(r), "split": "train"}) for r in records]
    write_records(divided, tmp_path / "data/split/p.parquet")
    (tmp_path / "data/generator/p/crop-paste").mkdir(parents=True, exist_ok=True)
    return Project(tmp_path)


def test_regions_go_from_the_source_to_the_requests(tmp_path, source):
    raw = tmp_path / "data/raw/p"
    ingest_source(source, "p", raw, options={"roi": "roi"})
    records = record_rows(raw / "records.parquet")
    assert len(records) == 10 and not any("roi" in record.source for record in records)
    for record in records:
        region = load_region(raw, record)
        if record.defect == "good":
            assert region.sum() == 64 * (40 + int(record.source[-5]))
        else:
            assert region is None
    assert load_named_region(raw, "roi/top.bmp", (64, 80)).sum() == 24 * 80

    project = _project(tmp_path, {"p": {"cut": {"region": "roi/top.png", "rotation": 10}}})
    job = load_synthesis_job(project, "p", "crop-paste")
    assert json.loads(json.dumps(job.plan.model_dump()))["placement"]["cut"]["region"] == "roi/top.png"
    assert SynthesisPlan.model_validate_json(json.dumps(job.plan.model_dump())) == job.plan
    normals = [example for example in job.examples if example.mask is None]
    cuts = [example for example in job.examples if example.mask is not None]
    for index in range(12):
        request, name = make_request(job.plan, "cut", index, normals, cuts)
        width = next(40 + int(record.source[-5]) for record in records if record.image == name)
        allowed = _box((64, 80), 0, 0, 24, width)
        assert np.array_equal(request.allowed, allowed) and not (request.mask & ~allowed).any()
        grown = ndimage.binary_dilation(request.mask, iterations=30)
        image = np.where(grown[..., None], 255, request.normal_image).astype(np.uint8)
        measured = measure_pair(SyntheticPair("s", image, grown), request.normal_image, job.plan, None, request.allowed)
        assert measured.reason.startswith("part of the mask outside its region")


def test_impossible_regions_and_wrong_rules_are_one_line(tmp_path, source):
    raw = tmp_path / "data/raw/p"
    Image.fromarray(_box((64, 80), 2, 2, 5, 5).astype(np.uint8) * 255).save(source / "roi/tiny.png")
    Image.fromarray(_box((64, 80), 2, 60, 60, 70).astype(np.uint8) * 255).save(source / "roi/right.png")
    ingest_source(source, "p", raw, options={"roi": "roi"})
    job = load_synthesis_job(_project(tmp_path, {"p": {"cut": {"region": "roi/tiny.png"}}}), "p", "crop-paste")
    normals = [example for example in job.examples if example.mask is None]
    cuts = [example for example in job.examples if example.mask is not None]
    with pytest.raises(InputError, match=r"^params\.yaml: placement\.p\.cut: no mask of an example fits .*larger"):
        make_request(job.plan, "cut", 0, normals, cuts)
    for placement, message in (
        ({"cut": {"region": "roi/right.png"}}, r"roi/right\.png and the region of images/.* have no pixel in common"),
        ({"cut": {"region": "roi/none.png"}}, r"roi/none\.png is not in .*found roi/"),
        ({"dent": "like_examples"}, r"placement\.p\.dent: no such defect type; expected one of cut"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_synthesis_job(_project(tmp_path, {"p": placement}), "p", "crop-paste")
        assert "\n" not in str(caught.value)


def test_one_picture_for_the_product_and_problems_of_regions(tmp_path, source):
    raw = tmp_path / "data/raw/p"
    Image.fromarray(_box((128, 160), 0, 0, 64, 160).astype(np.uint8) * 255).save(source / "area.png")
    for each in (source / "roi").iterdir():
        each.unlink()
    (source / "roi").rmdir()
    ingest_source(source, "p", raw, options={"roi": "area.png"})
    for record in record_rows(raw / "records.parquet"):
        assert np.array_equal(load_region(raw, record), _box((64, 80), 0, 0, 32, 80))
    Image.fromarray(np.zeros((64, 80), np.uint8)).save(source / "area.png")
    with pytest.raises(InputError, match=r"area\.png: the region has no white pixel"):
        ingest_source(source, "p", raw, options={"roi": "area.png"})
    with pytest.raises(InputError, match=r"options\.roi"):
        ingest_source(source, "p", raw, options={"roi": "missing"})


def test_a_normal_image_without_a_region_is_a_problem(tmp_path, source):
    (source / "roi/n2.png").unlink()
    Image.fromarray(np.full((9, 9), 255, np.uint8)).save(source / "roi/n1.png")
    with pytest.raises(InputError) as caught:
        ingest_source(source, "p", tmp_path / "data/raw/p", options={"roi": "roi"})
    text = str(caught.value)
    assert "roi/n1.png: 9x9 pixels, its image 80x64" in text
    assert "1 normal image(s) without a region, the first is good/n2.png" in text and "product.png" in text


def test_the_outline_follows_the_region_and_not_the_image_border():
    region = _box((20, 30), 5, 0, 15, 12)
    outline = region_outline(region)
    expected = region.copy()
    expected[6:14, 0:11] = False
    assert np.array_equal(outline, expected)
    assert not region_outline(np.ones((9, 9), bool)).any()
    assert region_outline(region, width=2).sum() > outline.sum()
