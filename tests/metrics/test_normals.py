"""Generated good images: scored against real ones, drawn by the stage, resumed after a kill."""

import json

import numpy as np
import pytest

from defect_core.backbones import load_backbone
from defect_core.data.manifest import read_manifest
from defect_core.data.records import Record, load_image, pixel_digest, save_png, write_records
from defect_core.errors import InputError
from defect_core.generators.base import Example
from defect_core.generators.registry import generator_class, generator_config
from defect_core.graph.instances import find_instance, instances
from defect_core.metrics.frechet import kernel_distance
from defect_core.metrics.normal_images import score_normals
from defect_core.project.paths import Project
from defect_core.stages.normals import draw_set, run

SIDE = 48


def _good(seed, count, low=90):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(low, low + 60, (count, 6, 6, 1)).repeat(8, 1).repeat(8, 2).repeat(3, 3)
    return list((coarse + rng.normal(0, 3, coarse.shape)).clip(0, 255).astype(np.uint8))


def _score(training, unseen, made, **options):
    return score_normals(training, unseen, made, image_size=SIDE, real_networks=False, **options)


def test_images_of_the_same_kind_are_as_near_as_two_halves_and_others_are_not():
    train, test = _good(0, 12), _good(1, 8)
    same, other = _score(train, test, _good(2, 10)), _score(train, test, _good(3, 10, low=20))
    assert same["halves"] == other["halves"]
    assert same["scores"]["frechet_lite0"] < 1.5 * same["halves"]["frechet_lite0"]
    assert other["scores"]["frechet_lite0"] > 2 * same["halves"]["frechet_lite0"]
    assert other["scores"]["kernel_lite0"] > 10 * abs(same["halves"]["kernel_lite0"]) > 0
    assert same["scores"]["memorisation_copies"] == 0 and same["protocol"]["counts"] == {
        "training": 12,
        "unseen": 8,
        "generated": 10,
    }
    assert same == _score(train, test, _good(2, 10)) and json.loads(json.dumps(same, allow_nan=False)) == same
    assert set(same["missing"]) == {"fid", "kid"}
    copies = _score(train, test, train)
    assert copies["scores"]["memorisation_copies"] == 1 and copies["scores"]["memorisation_lite0"] == 0


def test_the_kernel_distance_is_that_of_the_whole_sets():
    from defect_core.metrics.features import Lite0Features

    train, made = _good(0, 8), _good(4, 8, low=60)
    rows = [Lite0Features().extract(np.stack(images)).pooled for images in (made, train)]
    expected = kernel_distance(*rows, seed=0).mean
    assert _score(train, [], made)["scores"]["kernel_lite0"] == pytest.approx(expected, rel=1e-4)


def test_few_images_leave_a_reason_and_none_are_refused():
    few = _score(_good(0, 2), _good(1, 1), _good(2, 5))
    assert "four real images" in few["missing"]["frechet_lite0"] and "kernel_lite0" in few["missing"]
    assert "fewer than two" in _score(_good(0, 6), [], _good(2, 1))["missing"]["kernel_lite0"]
    assert "two different" in _score(_good(0, 1) * 5, [], _good(2, 4))["missing"]["memorisation_lite0"]
    for sides in (([], _good(1, 4), _good(2, 4)), (_good(0, 4), [], [])):
        with pytest.raises(InputError, match="at least one of each"):
            _score(*sides)


class _Shader:
    """Stands where a generator stands: its image is the reference in the shade of the seed."""

    def __init__(self):
        self.asked = []

    def generate_normals(self, seeds, references):
        for seed, reference in zip(seeds, references, strict=True):
            self.asked.append(seed)
            yield np.clip(reference.astype(int) + seed % 23 - 11, 0, 255).astype(np.uint8)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "params.yaml").write_text(
        "products: [bolt]\nsources: {bolt: {layout: demo}}\ngenerators: [crop-paste, seas]\narms: [real_only]\n"
        f"normals: {{count: 11}}\nscore: {{image_size: {SIDE}}}\n"
    )
    records = []
    for index, image in enumerate(_good(0, 10)):
        side = "train" if index < 6 else "test"
        save_png(image, tmp_path / f"data/raw/bolt/good/{index}.png")
        records.append(Record("bolt", "good", f"good/{index}.png", None, side, pixel_digest(image), SIDE, SIDE))
    (tmp_path / "data/split").mkdir()
    write_records(records, tmp_path / "data/split/bolt.parquet")
    (tmp_path / "data/generator/bolt/seas").mkdir(parents=True)
    return Project(tmp_path)


def test_the_stage_is_for_generators_that_draw_good_images_and_only_where_asked_for(project):
    stage = find_instance("normals", project.params, product="bolt", generator="seas", arm=None)
    assert [cell.key for cell in instances(stage.stage, project.params)] == ["bolt-seas"]
    assert stage.outputs == ["data/normals/bolt/seas"] and "data/generator/bolt/seas" in stage.inputs
    with pytest.raises(InputError, match="crop-paste does not promise generates_normals; expected one of seas"):
        find_instance("normals", project.params, product="bolt", generator="crop-paste")
    board = find_instance("leaderboard", project.params)
    assert {"metrics/normals", "data/normals"} <= set(board.inputs)
    path = project.path("params.yaml")
    path.write_text(path.read_text().replace(", seas]", "]"))
    with pytest.raises(InputError, match="normals: no generator in generators draws normal images"):
        Project(project.root).params  # noqa: B018


def _fit_seas(folder, work):
    """A SeaS that has hardly learned: enough to draw."""
    quick = {"steps": 1, "mask_steps": 1, "batch_size": 2, "variants": 1, "sampling_steps": 3, "mask_layers": 1}
    seas = generator_class("seas").create(generator_config("seas", quick), load_backbone("embedded"))
    good, spot = _good(0, 2), np.zeros((SIDE, SIDE), bool)
    spot[10:20, 10:20] = True
    examples = [Example("bolt", "good", image, None, "x") for image in good]
    seas.fit([*examples, Example("bolt", "dent", good[0], spot, "y")], work, seed=0)
    seas.save(folder)


def test_the_stage_writes_images_manifest_and_scores(project, tmp_path, monkeypatch):
    monkeypatch.delenv("DEFECTORY_WEIGHTS", raising=False)
    _fit_seas(project.path("data/generator/bolt/seas"), tmp_path / "work")
    run(project, "bolt", "seas")
    folder = project.path("data/normals/bolt/seas")
    rows = read_manifest(folder / "manifest.parquet")
    assert len(rows) == 11 and len({row.seed for row in rows}) == 11
    assert {row.source_image for row in rows} <= {f"good/{i}.png" for i in range(6)}  # none that tests
    assert {(row.defect, row.mask, row.accepted) for row in rows} == {("good", None, True)}
    loaded = generator_class("seas").load(project.path("data/generator/bolt/seas"), load_backbone("embedded"))
    sources = [load_image(project.path("data/raw/bolt") / row.source_image) for row in rows]
    again = list(loaded.generate_normals([row.seed for row in rows[:8]], sources[:8]))  # the manifest says all
    for row, image in zip(rows, again, strict=False):
        assert row.image_sha256 == pixel_digest(image)
    for row in rows:
        assert row.image_sha256 == pixel_digest(load_image(folder / row.image))
    found = json.loads(project.path("metrics/normals/bolt/seas.json").read_text())
    assert found["protocol"]["counts"] == {"training": 6, "unseen": 4, "generated": 11}
    assert {"kernel_lite0", "frechet_lite0"} <= set(found["scores"]) & set(found["halves"])
    assert str(project.root) not in json.dumps(found)


def test_a_killed_set_goes_on_in_whole_batches_and_ends_the_same(tmp_path):
    good = [Example("bolt", "good", image, None, f"good/{i}.png") for i, image in enumerate(_good(0, 5))]

    class Dies(_Shader):
        def generate_normals(self, seeds, references):
            for number, image in enumerate(super().generate_normals(seeds, references)):
                if len(self.asked) > 10 and number:
                    raise KeyboardInterrupt
                yield image

    whole, again = _Shader(), _Shader()
    draw_set(whole, "bolt", "seas", good, 14, 3, "x", tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        draw_set(Dies(), "bolt", "seas", good, 14, 3, "x", tmp_path / "killed")
    draw_set(again, "bolt", "seas", good, 14, 3, "x", tmp_path / "killed")
    assert whole.asked[8:] == again.asked  # the first batch of eight stood
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "killed") for p in (tmp_path / "killed").rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()
