"""Evaluation protocols of the papers, written into params.yaml."""

import numpy as np
import pytest

from defect_core.cli.protocols import DIFFERENCES, PROTOCOLS, apply_protocol
from defect_core.cli.scaffold import init_project
from defect_core.errors import InputError
from defect_core.evaluation.batches import compute_synthetic_fraction
from defect_core.evaluation.segmentation.data import Sample
from defect_core.evaluation.segmentation.measure import resolve_config
from defect_core.evaluation.segmentation.train import train_segmenter
from defect_core.project.paths import Project


@pytest.fixture
def project(tmp_path):
    init_project(tmp_path / "p")
    return Project(tmp_path / "p")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_writes_a_valid_file_with_its_keys(project, name):
    apply_protocol(project, name)
    params = Project(project.root).params
    for section, values in PROTOCOLS[name].items():
        for key, value in values.items():
            found = getattr(getattr(params, section), key)
            assert found == (tuple(value) if isinstance(value, list) else value)
        assert getattr(params, section) is not None  # An empty section switches its stage on.
    assert set(PROTOCOLS) == set(DIFFERENCES)


def test_each_protocol_has_the_values_of_its_paper(project):
    """Split, pairs per defect with 12 real ones, synthetic fraction of 8 real and 40 synthetic, image size, models."""
    found = {}
    for protocol in PROTOCOLS:
        fresh = init_project(project.root.parent / protocol)
        apply_protocol(fresh, protocol)
        params = Project(fresh.root).params
        fraction = compute_synthetic_fraction(params.segment.synthetic_fraction, 8, 40)
        models = [name for name in ("segment_unified", "classify") if getattr(params, name) is not None]
        found[protocol] = (
            params.split.policy,
            params.synthesize.target_count(12),
            fraction,
            params.segment.image_size,
            *models,
        )
    assert found == {
        "anomalydiffusion": ("first_third", 1000, 1.0, 256, "classify"),
        "cadiff": ("first_third", 1000, 1.0, 256, "classify"),
        "seas": ("first_third", 1000, 1.0, 256, "segment_unified"),
        "ddim-inversion": ("two_fold", 100, 40 / 48, 256),
        "defectdiffu": ("half", 24, 40 / 48, 512),
    }


@pytest.mark.parametrize("name", ["anomalydiffusion", "seas"])  # The others have the network of the first.
def test_the_segmenter_of_each_protocol_trains(project, name):
    apply_protocol(project, name)
    settings = Project(project.root).params.segment
    config = resolve_config(settings, []).model_copy(update={"image_size": 32, "steps": 1, "batch_size": 2})
    assert settings.steps * settings.batch_size == 200 * 500  # AnomalyDiffusion: 200 epochs of 500 images.
    sample = Sample(np.zeros((32, 32, 3), np.uint8), np.eye(32, dtype=bool))
    random = train_segmenter([sample], [sample], [sample], config, 0).model
    assert random.pretrained == (name == "seas")


def test_a_protocol_replaces_all_segmenter_settings_of_another(project):
    assert len({frozenset(preset["segment"]) for preset in PROTOCOLS.values()}) == 1
    apply_protocol(project, "seas")
    apply_protocol(project, "cadiff")
    params = Project(project.root).params
    assert (params.segment.architecture, params.segment.image_score) == ("unet", "max_of_mean")


def test_a_protocol_keeps_comments_and_other_keys_but_no_other_policy(project):
    file = project.path("params.yaml")
    file.write_text("# mine\nseed: 7\nsplit: {policy: half, max_train: 2}\nsegment: {validation_fraction: 0.1}\n")
    apply_protocol(project, "ddim-inversion")
    params = Project(project.root).params
    assert file.read_text().startswith("# mine\n") and params.seed == 7
    assert params.split.max_train is None and params.split.policy == "two_fold"
    assert params.segment.validation_fraction == 0.1 and params.segment.steps == 12500


def test_an_unknown_protocol_changes_nothing(project):
    before = project.path("params.yaml").read_bytes()
    with pytest.raises(InputError, match="expected one of anomalydiffusion, cadiff"):
        apply_protocol(project, "best")
    assert project.path("params.yaml").read_bytes() == before
