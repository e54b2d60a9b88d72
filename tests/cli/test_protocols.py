"""Protocols of papers, written into params.yaml."""

from dataclasses import replace

import numpy as np
import pytest

from defect_core.cli.protocols import NOT_SAID, PRESETS, apply_preset
from defect_core.cli.scaffold import init_project
from defect_core.errors import InputError
from defect_core.evaluation.segmentation import Sample
from defect_core.evaluation.segmentation.data import synthetic_share
from defect_core.evaluation.segmentation.train import train_segmenter
from defect_core.project.paths import Project
from defect_core.stages.segment import segmenter_config


@pytest.fixture
def project(tmp_path):
    init_project(tmp_path / "p")
    return Project(tmp_path / "p")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_file_with_the_keys_it_names(project, name):
    apply_preset(project, name)
    params = Project(project.root).params
    for section, values in PRESETS[name].items():
        for key, value in values.items():
            found = getattr(getattr(params, section), key)
            assert found == (tuple(value) if isinstance(value, list) else value)
        assert getattr(params, section) is not None  # an empty section switches its stage on
    assert set(PRESETS) == set(NOT_SAID)


def test_each_protocol_is_the_papers(project):
    """Split, pairs per defect of 12 real ones, what the segmenter draws from 8 real and 40 synthetic, judges."""
    found = {}
    for name in PRESETS:
        fresh = init_project(project.root.parent / name)
        apply_preset(fresh, name)
        params = Project(fresh.root).params
        share = synthetic_share(params.segment.synthetic_fraction, 8, 40)
        judges = [judge for judge in ("segment_unified", "classify") if getattr(params, judge) is not None]
        found[name] = (params.split.policy, params.synthesize.wanted(12), share, params.segment.image_size, *judges)
    assert found == {
        "anomalydiffusion": ("first_third", 1000, 1.0, 256, "classify"),
        "cadiff": ("first_third", 1000, 1.0, 256, "classify"),
        "seas": ("first_third", 1000, 1.0, 256, "segment_unified"),
        "ddim-inversion": ("two_fold", 100, 40 / 48, 256),
        "defectdiffu": ("half", 24, 40 / 48, 512),
    }


@pytest.mark.parametrize("name", ["anomalydiffusion", "seas"])  # the others have the first one's network
def test_the_segmenter_of_each_protocol_trains(project, name):
    apply_preset(project, name)
    settings = Project(project.root).params.segment
    config = replace(segmenter_config(settings), image_size=32, steps=1, batch_size=2)
    assert settings.steps * settings.batch_size == 200 * 500  # AnomalyDiffusion: 200 epochs of 500 images
    sample = Sample(np.zeros((32, 32, 3), np.uint8), np.eye(32, dtype=bool))
    random = train_segmenter([sample], [sample], [sample], config, 0).model
    assert random.pretrained == (name == "seas")


def test_a_protocol_leaves_nothing_of_the_segmenter_of_another(project):
    assert len({frozenset(preset["segment"]) for preset in PRESETS.values()}) == 1
    apply_preset(project, "seas")
    apply_preset(project, "cadiff")
    params = Project(project.root).params
    assert (params.segment.architecture, params.segment.image_score) == ("unet", "max_of_mean")


def test_a_preset_keeps_comments_and_other_keys_but_no_other_policy(project):
    file = project.path("params.yaml")
    file.write_text("# mine\nseed: 7\nsplit: {policy: half, max_train: 2}\nsegment: {validation_fraction: 0.1}\n")
    apply_preset(project, "ddim-inversion")
    params = Project(project.root).params
    assert file.read_text().startswith("# mine\n") and params.seed == 7
    assert params.split.max_train is None and params.split.policy == "two_fold"
    assert params.segment.validation_fraction == 0.1 and params.segment.steps == 12500


def test_an_unknown_protocol_changes_nothing(project):
    before = project.path("params.yaml").read_bytes()
    with pytest.raises(InputError, match="expected one of anomalydiffusion, cadiff"):
        apply_preset(project, "best")
    assert project.path("params.yaml").read_bytes() == before
