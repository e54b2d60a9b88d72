"""params.yaml: every error is one line that names the field and what is expected."""

import pytest
import yaml

from defect_core.errors import InputError
from defect_core.project.params import load_params

GOOD = {"products": ["a"], "sources": {"a": {"path": "x"}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sed": 1}, "sed: unknown key"),
        ({"seed": "many"}, "seed: input should be a valid integer"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
        (
            {"split": {"policy": "thirds"}},
            "split.policy: input should be 'first_third', 'half', 'two_fold' or 'stable'",
        ),
        ({"synthesize": {"per_defects": 3}}, "synthesize.per_defects: unknown key"),
        ({"segment": {"seeds": []}}, "segment.seeds: tuple should have at least 1 item"),
        ({"segment": {"seeds": ["x"]}}, "segment.seeds.0"),
        ({"generators": ["paint"]}, "generators: generator 'paint' is unknown; expected one of "),
        ({"generators": ["crop-paste", "crop-paste"]}, "generators: a name is listed twice"),
        ({"arms": ["real"]}, "arms: unknown arm 'real'; expected real_only"),
        ({"arms": ["crop-paste-at-0"]}, "arms: unknown arm 'crop-paste-at-0'; expected"),
        ({"arms": ["seas-at-50"]}, "arms: unknown arm 'seas-at-50'"),
        ({"synthesize": {"per_defect": 0}}, "synthesize.per_defect: expected a number of at least 1, or a multiple"),
        ({"synthesize": {"per_defect": "x2"}}, "multiple of the real count such as 2x, found 'x2'"),
        ({"synthesize": {"per_defect": "0x"}}, "synthesize.per_defect: expected"),
        ({"synthesize": {"per_defect": True}}, "synthesize.per_defect: expected"),
        ({"segment": {"synthetic_fraction": 1.5}}, "segment.synthetic_fraction: expected a number from 0 to 1, or aut"),
        ({"segment": {"synthetic_fraction": "all"}}, "segment.synthetic_fraction: expected a number from 0 to 1"),
        (
            {"classify": {"synthetic_fraction": "auto"}},
            "classify.synthetic_fraction: expected a number from 0 to 1, or p",
        ),
        ({"segment": {"image_score": "mean"}}, "segment.image_score"),
        ({"segment_unified": {"steps": 0}}, "segment_unified.steps"),
        ({"classify": {"seeds": []}}, "classify.seeds"),
        ({"classify": {"architecture": "vit"}}, "classify.architecture: input should be 'resnet34'"),
        ({"classify": {"view": "box"}}, "classify.view"),
        ({"finetune": {"crop-paste": {"steps": 3}}}, "finetune.crop-paste.steps: unknown key; expected one of feather"),
        ({"finetune": {"disentangled-inversion": {"steps": 0}}}, "finetune.disentangled-inversion.steps"),
        ({"overrides": {"b": {}}}, "overrides.b: no such product"),
        ({"overrides": {"a": {"seas": {}}}}, "overrides.a.seas: no such generator"),
        ({"overrides": {"a": {"crop-paste": {"steps": 3}}}}, "overrides.a.crop-paste.steps: unknown key"),
        ({"regenerations": {"a": {"crop-paste": -1}}}, "regenerations.a.crop-paste"),
        ({"products": ["a", "b"]}, "sources.b: missing"),
        ({"products": []}, "products: 'a' has a source but is not listed"),
        ({"products": ["a/b"], "sources": {"a/b": {}}}, "products"),
        ({"products": [".."], "sources": {"..": {}}}, "products"),
        ({"products": ["a|b"], "sources": {"a|b": {}}}, "products"),
        ({"products": ["  "], "sources": {"  ": {}}}, "products"),
        ({"sources": {"a": {"path": 3}}}, "sources.a.path"),
    ],
)
def test_an_invalid_field_is_named(tmp_path, change, message):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **change}))
    with pytest.raises(InputError) as caught:
        load_params(path)
    text = str(caught.value)
    assert message in text and all(line.startswith("params.yaml: ") for line in text.splitlines())


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("- a", "expected a mapping")])
def test_a_file_that_is_no_mapping_is_an_error(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_params(path)


def test_a_missing_file_says_how_to_create_one(tmp_path):
    with pytest.raises(InputError, match="defectory init"):
        load_params(tmp_path / "params.yaml")


def test_an_empty_file_gives_the_defaults(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("")
    assert load_params(path).generators == ("crop-paste", "disentangled-inversion")


def test_an_override_replaces_the_settings_of_all_products(tmp_path):
    path = tmp_path / "params.yaml"
    content = {
        **GOOD,
        "finetune": {"crop-paste": {"feather": 2, "match_colour": 0}},
        "overrides": {"a": {"crop-paste": {"feather": 4}}},
    }
    path.write_text(yaml.safe_dump(content))
    params = load_params(path)
    assert params.generator_settings("crop-paste", "a").feather == 4
    assert not params.generator_settings("crop-paste", "a").match_colour
    assert params.generator_settings("crop-paste", "b").feather == params.generator_settings("crop-paste").feather == 2


def test_a_count_may_be_a_multiple_of_the_real_one(tmp_path):
    path = tmp_path / "params.yaml"
    counts = {}
    for value in (7, "2x", "0.5x"):
        path.write_text(yaml.safe_dump({**GOOD, "synthesize": {"per_defect": value}}))
        counts[value] = [load_params(path).synthesize.target_count(real) for real in (1, 3, 10)]
    assert counts == {7: [7, 7, 7], "2x": [2, 6, 20], "0.5x": [1, 2, 5]}
