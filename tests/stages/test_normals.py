"""The stage `normals`: generation of normal images, their manifest and scores, and resumption."""

import json

import numpy as np
import pytest

from defect_core.backbones import load_backbone
from defect_core.data.manifest import manifest_rows
from defect_core.data.records import Record, load_image, pixel_digest, save_png, write_records
from defect_core.errors import InputError
from defect_core.generators.base import Example
from defect_core.generators.registry import generator_class, generator_config
from defect_core.graph.instances import find_instance, instances
from defect_core.project.paths import Project
from defect_core.stages.normals import run
from defect_core.synthesis.normal_images import synthesize_normals

SIDE = 48


def _normals(seed, count, low=90):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(low, low + 60, (count, 6, 6, 1)).repeat(8, 1).repeat(8, 2).repeat(3, 3)
    return list((coarse + rng.normal(0, 3, coarse.shape)).clip(0, 255).astype(np.uint8))


class _FakeGenerator:
    """Its image is the reference, brightened by the seed."""

    name = "seas"

    def __init__(self):
        self.seeds = []

    def generate_normals(self, seeds, references):
        for seed, reference in zip(seeds, references, strict=True):
            self.seeds.append(seed)
            yield np.clip(reference.astype(int) + seed % 23 - 11, 0, 255).astype(np.uint8)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "params.yaml").write_text(
        "products: [bolt]\nsources: {bolt: {layout: demo}}\ngenerators: [crop-paste, seas]\narms: [real_only]\n"
        f"normals: {{count: 11}}\nscore: {{image_size: {SIDE}}}\n"
    )
    records = []
    for index, image in enumerate(_normals(0, 10)):
        side = "train" if index < 6 else "test"
        save_png(image, tmp_path / f"data/raw/bolt/good/{index}.png")
        records.append(Record("bolt", "good", f"good/{index}.png", None, side, pixel_digest(image), SIDE, SIDE))
    (tmp_path / "data/split").mkdir()
    write_records(records, tmp_path / "data/split/bolt.parquet")
    (tmp_path / "data/generator/bolt/seas").mkdir(parents=True)
    return Project(tmp_path)


def test_the_stage_has_an_instance_per_capable_generator_if_configured(project):
    stage = find_instance("normals", project.params, product="bolt", generator="seas", arm=None)
    assert [cell.key for cell in instances(stage.stage, project.params)] == ["bolt-seas"]
    assert stage.outputs == ["data/normals/bolt/seas"] and "data/generator/bolt/seas" in stage.inputs
    with pytest.raises(InputError, match="crop-paste lacks the capability generates_normals; expected one of seas"):
        find_instance("normals", project.params, product="bolt", generator="crop-paste")
    leaderboard = find_instance("leaderboard", project.params)
    assert {"metrics/normals", "data/normals"} <= set(leaderboard.inputs)
    path = project.path("params.yaml")
    path.write_text(path.read_text().replace(", seas]", "]"))
    with pytest.raises(InputError, match="normals: no generator in generators generates normal images"):
        Project(project.root).params  # noqa: B018


def _fit_seas(folder, work):
    """A SeaS with one training step."""
    quick = {"steps": 1, "mask_steps": 1, "batch_size": 2, "variants": 1, "sampling_steps": 3, "mask_layers": 1}
    seas = generator_class("seas").create(generator_config("seas", quick), load_backbone("embedded"))
    good, spot = _normals(0, 2), np.zeros((SIDE, SIDE), bool)
    spot[10:20, 10:20] = True
    examples = [Example("bolt", "good", image, None, "x") for image in good]
    seas.fit([*examples, Example("bolt", "dent", good[0], spot, "y")], work, seed=0)
    seas.save(folder)


def test_the_stage_writes_images_manifest_and_scores(project, tmp_path, monkeypatch):
    monkeypatch.delenv("DEFECTORY_WEIGHTS", raising=False)
    _fit_seas(project.path("data/generator/bolt/seas"), tmp_path / "work")
    run(project, "bolt", "seas")
    folder = project.path("data/normals/bolt/seas")
    rows = manifest_rows(folder / "manifest.parquet")
    assert len(rows) == 11 and len({row.seed for row in rows}) == 11
    assert {row.source_image for row in rows} <= {f"good/{i}.png" for i in range(6)}  # no test image
    assert {(row.defect, row.mask, row.accepted) for row in rows} == {("good", None, True)}
    loaded = generator_class("seas").load(project.path("data/generator/bolt/seas"), load_backbone("embedded"))
    sources = [load_image(project.path("data/raw/bolt") / row.source_image) for row in rows]
    again = list(loaded.generate_normals([row.seed for row in rows[:8]], sources[:8]))
    for row, image in zip(rows, again, strict=False):
        assert row.image_sha256 == pixel_digest(image)
    for row in rows:
        assert row.image_sha256 == pixel_digest(load_image(folder / row.image))
    found = json.loads(project.path("metrics/normals/bolt/seas.json").read_text())
    assert found["protocol"]["counts"] == {"training": 6, "unseen": 4, "generated": 11}
    assert {"kernel_lite0", "frechet_lite0"} <= set(found["scores"]) & set(found["halves"])
    assert str(project.root) not in json.dumps(found)


def test_an_interrupted_set_resumes_in_whole_batches_with_equal_files(tmp_path):
    good = [Example("bolt", "good", image, None, f"good/{i}.png") for i, image in enumerate(_normals(0, 5))]

    class Interrupted(_FakeGenerator):
        def generate_normals(self, seeds, references):
            for number, image in enumerate(super().generate_normals(seeds, references)):
                if len(self.seeds) > 10 and number:
                    raise KeyboardInterrupt
                yield image

    whole, again = _FakeGenerator(), _FakeGenerator()
    synthesize_normals(whole, "bolt", good, 14, 3, "x", tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        synthesize_normals(Interrupted(), "bolt", good, 14, 3, "x", tmp_path / "killed")
    synthesize_normals(again, "bolt", good, 14, 3, "x", tmp_path / "killed")
    assert whole.seeds[8:] == again.seeds  # the first batch of eight was complete
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "killed") for p in (tmp_path / "killed").rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()
