"""Protocols of papers, written into params.yaml."""

import pytest

from defect_core.errors import InputError
from defect_core.presets import NOT_SAID, PRESETS, apply_preset
from defect_core.project import Project
from defect_core.scaffold import init_project


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
    assert set(PRESETS) == set(NOT_SAID)


def test_a_preset_keeps_comments_and_other_keys_but_no_other_policy(project):
    file = project.path("params.yaml")
    file.write_text("# mine\nseed: 7\nsplit: {policy: half, max_train: 2}\nsegment: {learning_rate: 0.001}\n")
    apply_preset(project, "ddim-inversion")
    params = Project(project.root).params
    assert file.read_text().startswith("# mine\n") and params.seed == 7
    assert params.split.max_train is None and params.split.policy == "two_fold"
    assert params.segment.learning_rate == 0.001 and params.segment.steps == 12500


def test_an_unknown_protocol_changes_nothing(project):
    before = project.path("params.yaml").read_bytes()
    with pytest.raises(InputError, match="expected one of anomalydiffusion, cadiff"):
        apply_preset(project, "best")
    assert project.path("params.yaml").read_bytes() == before
