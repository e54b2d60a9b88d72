"""Bulk synthesis: counts, manifest, the filter, and a run that was killed."""

import dataclasses
import json

import numpy as np
import pytest

from defect_core.data.files import folder_digest
from defect_core.data.manifest import manifest_rows
from defect_core.data.records import Record, load_image, load_mask, save_png, write_records
from defect_core.errors import InputError
from defect_core.generators.base import Example, SyntheticPair
from defect_core.generators.registry import generator_class, generator_config
from defect_core.project.paths import Project
from defect_core.project.synthesis import load_synthesis_job
from defect_core.synthesis.batches import synthesize
from defect_core.synthesis.filter import measure_pair
from defect_core.synthesis.requests import SynthesisPlan, batch_indices, make_request, regeneration_seed

PLAN = SynthesisPlan(
    product="plate",
    generator="crop-paste",
    base_seed=0,
    per_defect=5,
    batch_size=2,
    min_on_product=0.0,
    model_digest="m",
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
    synthesize(generator, PLAN, examples, tmp_path / "out")
    rows = manifest_rows(tmp_path / "out" / "manifest.parquet")
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


def test_a_mask_at_the_border_is_placed_on_images_of_its_shape():
    def good(height, width, number):
        return Example("plate", "good", np.full((height, width, 3), 90, np.uint8), None, f"good/{number}.png")

    normals = [good(40, 80, i) for i in range(40)] + [good(80, 44, 40 + i) for i in range(40)]
    wide = np.zeros((80, 40), bool)
    wide[30:50] = True
    whole = wide.copy()
    whole[:, [0, -1]] = False
    for mask, narrow in ((wide, True), (whole, False)):
        source = Example("plate", "dent", np.full((80, 40, 3), 30, np.uint8), mask, "dent/0.png")
        made = [make_request(PLAN, "dent", index, normals, [source])[0] for index in range(20)]
        shapes = {request.normal_image.shape[:2] for request in made}
        assert shapes == ({(80, 44)} if narrow else {(80, 44), (40, 80)})
        assert all(request.mask.any(0).all() for request in made) == narrow
        names = {make_request(PLAN, "dent", index, normals[:3], [source])[1] for index in range(20)}
        assert len(names) == 3  # Without a similar shape, all are used.


def test_each_defect_type_may_have_its_own_count(generator, examples, tmp_path):
    plan = PLAN.model_copy(update={"per_defect": {"dent": 1, "stain": 5}})
    synthesize(generator, plan, examples, tmp_path / "out")
    rows = manifest_rows(tmp_path / "out" / "manifest.parquet")
    assert {d: sum(r.accepted for r in rows if r.defect == d) for d in ("dent", "stain")} == {"dent": 1, "stain": 5}
    assert SynthesisPlan(**json.loads((tmp_path / "out" / "plan.json").read_text())) == plan
    assert [len(batch_indices(plan, defect, 0)) for defect in ("dent", "stain")] == [2, 2]
    assert list(batch_indices(plan, "stain", 9)) == [8, 9] and list(batch_indices(plan, "dent", 1)) == [0, 1]


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
        assert load_synthesis_job(Project(tmp_path), "plate", "crop-paste").plan.per_defect == wanted


def test_a_killed_run_ends_with_the_same_bytes(generator, examples, tmp_path):
    synthesize(generator, PLAN, examples, tmp_path / "whole")

    class Dies(type(generator)):
        calls = 0

        def sample(self, requests):
            Dies.calls += 1
            if Dies.calls == 4:
                raise KeyboardInterrupt
            yield from super().sample(requests)

    dying = Dies(generator.config, generator.defects)
    with pytest.raises(KeyboardInterrupt):
        synthesize(dying, PLAN, examples, tmp_path / "killed")
    Dies.calls = 10
    synthesize(dying, PLAN, examples, tmp_path / "killed")
    assert folder_digest(tmp_path / "killed") == folder_digest(tmp_path / "whole")
    assert Dies.calls < 16, "finished batches were sampled again"


def test_rejected_samples_are_recorded_with_the_reason_and_replaced(generator, examples, tmp_path):
    class Faint(type(generator)):
        def sample(self, requests):
            for pair, request in zip(super().sample(requests), requests, strict=True):
                faint = request.sample_id.endswith("1")
                yield dataclasses.replace(pair, image=request.normal_image) if faint else pair

    synthesize(Faint(generator.config, generator.defects), PLAN, examples, tmp_path / "out")
    rows = manifest_rows(tmp_path / "out" / "manifest.parquet")
    rejected = [row for row in rows if not row.accepted]
    assert {row.sample_id for row in rejected} == {"dent-00001", "stain-00001"}
    assert all("change inside the mask 0.0" in row.reject_reason and row.image is None for row in rejected)
    assert sum(row.accepted for row in rows) == 10


def test_the_largest_number_of_requests_ends_a_run_without_accepted_pairs(generator, examples, tmp_path):
    class Nothing(type(generator)):
        def sample(self, requests):
            for pair, request in zip(super().sample(requests), requests, strict=True):
                yield dataclasses.replace(pair, image=request.normal_image)

    synthesize(Nothing(generator.config, generator.defects), PLAN, examples, tmp_path / "out")
    rows = manifest_rows(tmp_path / "out" / "manifest.parquet")
    assert len(rows) == 20 and not any(row.accepted for row in rows)


def test_a_regeneration_has_another_seed_and_the_first_set_that_of_the_project():
    assert regeneration_seed(5, 0) == 5
    assert len({regeneration_seed(seed, number) for seed in (5, 6) for number in (0, 1, 2)}) == 6
    assert regeneration_seed(5, 1) == regeneration_seed(5, 1)


def test_quality_is_change_inside_minus_outside():
    normal = np.full((8, 8, 3), 100, np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[2:5, 2:5] = True
    image = normal.copy()
    image[mask] = 130
    measured = measure_pair(SyntheticPair("s", image, mask), normal, PLAN)
    assert measured.quality == 30 and measured.reason == ""
    assert measure_pair(SyntheticPair("s", image, mask & False), normal, PLAN).reason.startswith("mask of 0 px")


def test_a_product_without_normal_images_is_an_error(generator, examples, tmp_path):
    with pytest.raises(InputError, match="no normal training images"):
        synthesize(generator, PLAN, [e for e in examples if e.mask is not None], tmp_path / "out")
