"""Shards: whole batches, none drawn for nothing, the same bytes as one process; folders of killed workers go."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defect_core.generators.base import Example
from defect_core.generators.registry import generator_class, generator_config
from defect_core.graph.instances import find_instance
from defect_core.graph.shards import collect, deal, deliver, pack_inputs, scratch, write_files
from defect_core.project.paths import Project, folder_digest
from defect_core.synthesis.batches import SynthesisPlan, defects_of, gather, next_batches, sample_batches, synthesize

# half of the pairs change too little, so that more rounds than one are needed
RECIPE = SynthesisPlan(
    "plate", "crop-paste", 0, per_defect=9, batch_size=2, max_draws=4.0, min_change=85.0, min_area=4, model_digest="m"
)


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    made = [
        Example("plate", "good", rng.integers(90, 110, (48, 48, 3), np.uint8), None, f"good/{i}.png") for i in range(3)
    ]
    for defect in ("dent", "stain"):
        for number, grey in enumerate((10, 60)):
            image = rng.integers(90, 110, (48, 48, 3), np.uint8)
            mask = np.zeros((48, 48), bool)
            mask[20 + number : 30, 20:32] = True
            image[mask] = grey
            made.append(Example("plate", defect, image, mask, f"{defect}/{number}.png"))
    return made


@pytest.fixture(scope="module")
def generator(examples, tmp_path_factory):
    made = generator_class("crop-paste").create(generator_config("crop-paste", {}), None)
    made.fit(examples, tmp_path_factory.mktemp("work"), 0)
    return made


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 8))
def test_a_deal_keeps_every_batch_once_in_even_shares(numbers, shares):
    batches = [("dent", number) for number in numbers]
    dealt = deal(batches, shares)
    assert sorted(batch for shard in dealt for batch in shard) == sorted(batches)
    assert len(dealt) == min(shares, len(batches))
    assert not dealt or max(map(len, dealt)) - min(map(len, dealt)) <= 1


@pytest.mark.parametrize("shares", [1, 3])
def test_shards_make_the_bytes_of_one_process(generator, examples, tmp_path, shares):
    synthesize(generator, RECIPE, examples, tmp_path / "whole")
    work, rounds, drawn = tmp_path / "work", 0, 0
    work.mkdir()
    defects = defects_of(RECIPE, examples)
    while batches := next_batches(RECIPE, defects, work):
        rounds += 1
        drawn += len(batches)
        for number, shard in reversed(list(enumerate(deal(batches, shares)))):
            sample_batches(generator, RECIPE, examples, tmp_path / f"worker{rounds}-{number}", shard)
            write_files(collect(tmp_path / f"worker{rounds}-{number}"), work, last="batch-")
    assert rounds > 1, "the recipe no longer rejects anything"
    assert drawn == len(list(work.glob("batch-*.json")))
    gather(RECIPE, defects, work)
    assert folder_digest(work) == folder_digest(tmp_path / "whole")


def test_a_lost_batch_is_asked_for_again_and_no_other(generator, examples, tmp_path):
    defects = defects_of(RECIPE, examples)
    while batches := next_batches(RECIPE, defects, tmp_path):
        sample_batches(generator, RECIPE, examples, tmp_path, batches)
    (tmp_path / "batch-stain-00001.json").unlink()
    assert next_batches(RECIPE, defects, tmp_path) == [("stain", 1)]


def test_an_instance_packs_what_it_is_declared_to_read_and_what_comes_back_replaces_the_old(tmp_path):
    (tmp_path / "params.yaml").write_text("products: [bolt]\nsources: {bolt: {layout: demo}}\nbackbone: net\n")
    names = ["data/raw/bolt/records.parquet", "data/raw/bolt/good/0.png", "data/split/bolt.parquet", "net/config.json"]
    for name in [*names, "data/raw/nut/records.parquet", "data/generator/bolt/crop-paste/old.bin"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    project = Project(tmp_path)
    instance = find_instance("finetune", project.params, product="bolt", generator="crop-paste")
    packed = pack_inputs(project, instance)
    assert set(packed) == {"params.yaml", *names}
    assert packed[names[0]] == names[0].encode()
    deliver({"data/generator/bolt/crop-paste/new.bin": b"new"}, project, instance)
    assert collect(tmp_path / "data/generator/bolt") == {"crop-paste/new.bin": b"new"}


def test_the_folder_of_a_killed_worker_goes_and_that_of_a_living_one_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program = (
        "import os, signal\nfrom defect_core.graph.shards import scratch\n"
        "with scratch() as folder:\n    (folder / 'half').touch()\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run([sys.executable, "-c", program], env={"TMPDIR": str(tmp_path)}, check=False)
    assert died.returncode == -9 and len(list(tmp_path.iterdir())) == 1
    with scratch() as one:
        (one / "half").touch()
        with scratch() as other:
            assert set(tmp_path.iterdir()) == {one, other}
    assert not list(tmp_path.iterdir())
