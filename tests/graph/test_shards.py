"""Shards: whole batches, none in vain, the same bytes as one process; folders of killed workers are removed."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defect_core.data.files import folder_digest
from defect_core.generators.base import Example
from defect_core.generators.registry import generator_class, generator_config
from defect_core.graph.instances import find_instance
from defect_core.graph.shards import (
    collect_files,
    install_outputs,
    pack_inputs,
    split_into_shards,
    temporary_work_folder,
    write_files,
)
from defect_core.project.paths import Project
from defect_core.synthesis.batches import collect_batches, next_batches, sample_batches, synthesize
from defect_core.synthesis.requests import SynthesisPlan, defect_types

# Half of the pairs change too little, so that more than one round is needed.
PLAN = SynthesisPlan(
    product="plate",
    generator="crop-paste",
    base_seed=0,
    per_defect=9,
    batch_size=2,
    max_attempts=4.0,
    min_change=85.0,
    min_on_product=0.0,
    model_digest="m",
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
def test_shards_contain_every_batch_once_and_differ_by_at_most_one(numbers, shares):
    batches = [("dent", number) for number in numbers]
    shards = split_into_shards(batches, shares)
    assert sorted(batch for shard in shards for batch in shard) == sorted(batches)
    assert len(shards) == min(shares, len(batches))
    assert not shards or max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("shares", [1, 3])
def test_shards_write_the_bytes_of_one_process(generator, examples, tmp_path, shares):
    synthesize(generator, PLAN, examples, tmp_path / "whole")
    work, rounds, sampled = tmp_path / "work", 0, 0
    work.mkdir()
    defects = defect_types(PLAN, examples)
    while batches := next_batches(PLAN, defects, work):
        rounds += 1
        sampled += len(batches)
        for number, shard in reversed(list(enumerate(split_into_shards(batches, shares)))):
            sample_batches(generator, PLAN, examples, tmp_path / f"worker{rounds}-{number}", shard)
            write_files(collect_files(tmp_path / f"worker{rounds}-{number}"), work, last="batch-")
    assert rounds > 1, "the plan no longer rejects anything"
    assert sampled == len(list(work.glob("batch-*.json")))
    collect_batches(PLAN, defects, work)
    assert folder_digest(work) == folder_digest(tmp_path / "whole")


def test_only_a_missing_batch_is_sampled_again(generator, examples, tmp_path):
    defects = defect_types(PLAN, examples)
    while batches := next_batches(PLAN, defects, tmp_path):
        sample_batches(generator, PLAN, examples, tmp_path, batches)
    (tmp_path / "batch-stain-00001.json").unlink()
    assert next_batches(PLAN, defects, tmp_path) == [("stain", 1)]


def test_packed_inputs_are_the_declared_ones_and_outputs_replace_old_ones(tmp_path):
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
    install_outputs({"data/generator/bolt/crop-paste/new.bin": b"new"}, project, instance)
    assert collect_files(tmp_path / "data/generator/bolt") == {"crop-paste/new.bin": b"new"}


def test_the_folder_of_a_killed_worker_is_removed_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program = (
        "import os, signal\nfrom defect_core.graph.shards import temporary_work_folder\n"
        "with temporary_work_folder() as folder:\n    (folder / 'half').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run([sys.executable, "-c", program], env={"TMPDIR": str(tmp_path)}, check=False)
    assert died.returncode == -9 and len(list(tmp_path.iterdir())) == 1
    with temporary_work_folder() as one:
        (one / "half").touch()
        with temporary_work_folder() as other:
            assert set(tmp_path.iterdir()) == {one, other}
    assert not list(tmp_path.iterdir())
