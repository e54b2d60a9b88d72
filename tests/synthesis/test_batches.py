"""Bulk synthesis: counts, manifest, the filter, and a run that was killed."""

import dataclasses
import json

import numpy as np
import pytest

from defect_core.data.manifest import read_manifest
from defect_core.data.records import Record, load_image, load_mask, save_png, write_records
from defect_core.errors import InputError
from defect_core.generators.base import Example, SyntheticPair
from defect_core.generators.registry import generator_class, generator_config
from defect_core.project.paths import Project, folder_digest
from defect_core.stages.synthesize import load_synthesis_job
from defect_core.synthesis.batches import SynthesisPlan, batch_around, make_request, regeneration_seed, synthesize
from defect_core.synthesis.filter import measure_pair

RECIPE = SynthesisPlan(
    "plate", "crop-paste", 0, per_defect=5, batch_size=2, max_draws=2.0, min_change=2.0, min_area=4, model_digest="m"
)


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    made = [
        Example("plate", "good", rng.integers(90, 110, (64, 64, 3), np.uint8), None, f"good/{i}.png") for i in range(3)
    ]
    for defect, value in (("dent", 20), ("stain", 220)):
        for number in range(3):
            image = rng.integers(90, 110, (64, 64, 3), np.uint8)
            mask = np.zeros((64, 64), bool)
            mask[20 + number : 30, 20:32] = True
            image[mask] = value
            made.append(Example("plate", defect, image, mask, f"{defect}/{number}.png"))
    return made


@pytest.fixture
def generator(examples, tmp_path):
    made = generator_class("crop-paste").create(generator_config("crop-paste", {}), None)
    made.fit(examples, tmp_path / "work", 0)
    return made


def test_the_manifest_lists_exactly_the_accepted_files(generator, examples, tmp_path):
    synthesize(generator, RECIPE, examples, tmp_path / "out")
    rows = read_manifest(tmp_path / "out" / "manifest.parquet")
    accepted = [row for row in rows if row.accepted]
    assert {d: sum(r.defect == d for r in accepted) for d in ("dent", "stain")} == {"dent": 5, "stain": 5}
    files = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png")}
    assert files == {row.image for row in accepted} | {row.mask for row in accepted}
    names = {example.name: example for example in examples}
    for row in accepted:
        image, mask = load_image(tmp_path / "out" / row.image), load_mask(tmp_path / "out" / row.mask)
        assert mask.sum() == row.mask_area
        assert (image[~mask] == names[row.source_image].image[~mask]).all()
        assert names[row.source_mask].defect == row.defect
        assert row.change_outside == 0 and row.change_inside == row.quality > 2
        assert names[row.nearest_image].defect == row.defect and row.nearest_distance >= 0


def test_a_cut_mask_goes_onto_images_of_its_shape():
    def good(height, width, number):
        return Example("plate", "good", np.full((height, width, 3), 90, np.uint8), None, f"good/{number}.png")

    normals = [good(40, 80, i) for i in range(40)] + [good(80, 44, 40 + i) for i in range(40)]
    wide = np.zeros((80, 40), bool)
    wide[30:50] = True
    whole = wide.copy()
    whole[:, [0, -1]] = False
    for mask, narrow in ((wide, True), (whole, False)):
        source = Example("plate", "dent", np.full((80, 40, 3), 30, np.uint8), mask, "dent/0.png")
        made = [make_request(RECIPE, "dent", index, normals, [source])[0] for index in range(20)]
        shapes = {request.normal_image.shape[:2] for request in made}
        assert shapes == ({(80, 44)} if narrow else {(80, 44), (40, 80)})
        assert all(request.mask.any(0).all() for request in made) == narrow
        names = {make_request(RECIPE, "dent", index, normals[:3], [source])[1] for index in range(20)}
        assert len(names) == 3  # where none is alike, all will do


def test_each_defect_may_want_its_own_number(generator, examples, tmp_path):
    recipe = dataclasses.replace(RECIPE, per_defect={"dent": 1, "stain": 5})
    synthesize(generator, recipe, examples, tmp_path / "out")
    rows = read_manifest(tmp_path / "out" / "manifest.parquet")
    assert {d: sum(r.accepted for r in rows if r.defect == d) for d in ("dent", "stain")} == {"dent": 1, "stain": 5}
    assert SynthesisPlan(**json.loads((tmp_path / "out" / "recipe.json").read_text())) == recipe
    assert [len(batch_around(recipe, defect, 0)) for defect in ("dent", "stain")] == [2, 2]
    assert list(batch_around(recipe, "stain", 9)) == [8, 9] and list(batch_around(recipe, "dent", 1)) == [0, 1]


def test_a_multiple_counts_the_real_training_images_of_each_defect(tmp_path):
    rows = []
    for defect, split in (("good", "train"), *[("dent", "train")] * 2, *[("dent", "test")] * 4, ("stain", "train")):
        name = f"{defect}/{len(rows)}.png"
        mask = None if defect == "good" else f"masks/{name}"
        save_png(np.zeros((16, 16, 3), np.uint8), tmp_path / "data/raw/plate" / name)
        if mask:
            save_png(np.ones((16, 16), bool), tmp_path / "data/raw/plate" / mask)
        rows.append(Record("plate", defect, name, mask, split, name, 16, 16))
    (tmp_path / "data/split").mkdir()
    write_records(rows, tmp_path / "data/split/plate.parquet")
    for given, wanted in (("2x", {"dent": 4, "stain": 2}), (7, 7)):
        settings = {"products": ["plate"], "sources": {"plate": {"path": "x"}}, "synthesize": {"per_defect": given}}
        (tmp_path / "params.yaml").write_text(json.dumps(settings))
        assert load_synthesis_job(Project(tmp_path), "plate", "crop-paste").recipe.per_defect == wanted


def test_a_killed_run_ends_with_the_same_bytes(generator, examples, tmp_path):
    synthesize(generator, RECIPE, examples, tmp_path / "whole")

    class Dies(type(generator)):
        calls = 0

        def sample(self, requests):
            Dies.calls += 1
            if Dies.calls == 4:
                raise KeyboardInterrupt
            yield from super().sample(requests)

    dying = Dies(generator.config, generator.defects)
    with pytest.raises(KeyboardInterrupt):
        synthesize(dying, RECIPE, examples, tmp_path / "killed")
    Dies.calls = 10
    synthesize(dying, RECIPE, examples, tmp_path / "killed")
    assert folder_digest(tmp_path / "killed") == folder_digest(tmp_path / "whole")
    assert Dies.calls < 16, "finished batches were drawn again"


def test_rejected_draws_are_recorded_with_their_reason_and_drawn_anew(generator, examples, tmp_path):
    class Faint(type(generator)):
        def sample(self, requests):
            for pair, request in zip(super().sample(requests), requests, strict=True):
                faint = request.sample_id.endswith("1")
                yield dataclasses.replace(pair, image=request.normal_image) if faint else pair

    synthesize(Faint(generator.config, generator.defects), RECIPE, examples, tmp_path / "out")
    rows = read_manifest(tmp_path / "out" / "manifest.parquet")
    rejected = [row for row in rows if not row.accepted]
    assert {row.sample_id for row in rejected} == {"dent-00001", "stain-00001"}
    assert all("change inside the mask 0.0" in row.reject_reason and row.image is None for row in rejected)
    assert sum(row.accepted for row in rows) == 10


def test_the_budget_ends_a_hopeless_run(generator, examples, tmp_path):
    class Nothing(type(generator)):
        def sample(self, requests):
            for pair, request in zip(super().sample(requests), requests, strict=True):
                yield dataclasses.replace(pair, image=request.normal_image)

    synthesize(Nothing(generator.config, generator.defects), RECIPE, examples, tmp_path / "out")
    rows = read_manifest(tmp_path / "out" / "manifest.parquet")
    assert len(rows) == 20 and not any(row.accepted for row in rows)


def test_a_fresh_draw_has_another_seed_and_the_first_that_of_the_project():
    assert regeneration_seed(5, 0) == 5
    assert len({regeneration_seed(seed, draw) for seed in (5, 6) for draw in (0, 1, 2)}) == 6
    assert regeneration_seed(5, 1) == regeneration_seed(5, 1)


def test_quality_is_change_inside_minus_outside():
    normal = np.full((8, 8, 3), 100, np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[2:5, 2:5] = True
    image = normal.copy()
    image[mask] = 130
    seen = measure_pair(SyntheticPair("s", image, mask), normal, RECIPE)
    assert seen.quality == 30 and seen.reason == ""
    assert measure_pair(SyntheticPair("s", image, mask & False), normal, RECIPE).reason.startswith("mask of 0 px")


def test_without_good_images_there_is_nothing_to_draw_on(generator, examples, tmp_path):
    with pytest.raises(InputError, match="no good training images"):
        synthesize(generator, RECIPE, [e for e in examples if e.mask is not None], tmp_path / "out")
