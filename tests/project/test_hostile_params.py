"""params.yaml with values and structures that no settings can mean: one line each, and no other exception."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from defect_core.errors import InputError
from defect_core.project.params import load_params
from defect_core.project.params_file import parse_params
from defect_core.synthesis.requests import SynthesisPlan, regeneration_seed

ALIAS_BOMB = "\n".join(
    ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nsegment:\n  steps: 3\n  steps: 4\n", "line 4: the key 'steps' is also in line 3"),
        ("seed: 1\nseed: 1\n", "line 2: the key 'seed' is also in line 1"),
        ("a: &a [*a]\n", "an alias contains itself"),
        (ALIAS_BOMB, "more than 1000000 values"),
        ("[" * 10_000, "nested deeper"),
        ("{a: " * 10_000, "nested deeper"),
        ("!!python/object/apply:os.system [echo]\n", "not valid YAML"),
        ("seed: 0\n\x00", "not valid YAML"),
        ("? [1, 2]\n: 3\n", "not valid YAML"),
        ("seed: true\n", "seed: expected no true or false, found True"),
        ("seed: -1\n", "seed: input should be greater than or equal to 0"),
        ("seed: 2147483648\n", "seed: input should be less than or equal to 2147483647"),
        ("seed: 1e300\n", "seed: expected a finite number"),
        (f"segment: {{steps: {10**20}}}\n", "segment.steps: expected a finite number"),
        ("segment: {steps: .inf}\n", "segment.steps: expected a finite number"),
        ("segment: {learning_rate: .nan}\n", "segment.learning_rate: expected a finite number"),
        ("segment: {learning_rate: '-inf'}\n", "segment.learning_rate: expected a finite number"),
        ("segment: {seeds: [0, 1, 0]}\n", "segment.seeds: a seed is listed twice"),
        ("classify: {seeds: [-1]}\n", "classify.seeds.0: input should be greater than or equal to 0"),
        ("segmnt: {}\n", "segmnt: unknown key; did you mean 'segment'?"),
        ("segment: {stepz: 3}\n", "segment.stepz: unknown key; did you mean 'steps'?"),
        ("finetune: {sea: {}}\n", "generator 'sea' is unknown; did you mean 'seas'?"),
        ("finetune: {seas: {defect_prompt: 'a {x}'}}\n", "placeholder {x} is unknown; expected {product} or {defect}"),
        ("finetune: {seas: {defect_prompt: 'a {product'}}\n", "finetune.seas.defect_prompt: "),
        ("finetune: {seas: {normal_prompt: '{product.__class__}'}}\n", "placeholder {product.__class__} is unknown"),
        ("finetune: {seas: {normal_prompt: '{product:>9999999999}'}}\n", "placeholder {product:>9999999999} is"),
        ("finetune: {cadiff: {templates: ['a {context!r} {anomaly} {}']}}\n", "finetune.cadiff.templates.0: "),
    ],
)
def test_a_hostile_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_params(path)
    lines = str(caught.value).splitlines()
    assert any(message in line for line in lines) and all(line.startswith("params.yaml: ") for line in lines)
    assert max(map(len, lines)) < 400


def test_all_problems_are_named_at_once(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("seed: -1\nsegment: {steps: 0, stepz: 1}\nsplitt: {}\n")
    with pytest.raises(InputError) as caught:
        load_params(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 4
    assert all(field in text for field in ("seed: ", "segment.steps: ", "segment.stepz: ", "splitt: "))


def test_aliases_of_usual_size_are_read(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("finetune:\n  seas: &steps {steps: 3}\n  cadiff: *steps\n")
    params = load_params(path)
    assert params.finetune == {"seas": {"steps": 3}, "cadiff": {"steps": 3}}


def test_a_plan_has_a_derived_seed_of_63_bits():
    for regeneration in range(8):
        seed = regeneration_seed(0, regeneration)
        assert SynthesisPlan(product="p", generator="g", base_seed=seed, per_defect=1).base_seed == seed


def test_numbers_in_the_notation_of_scientists_are_read(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("segment: {learning_rate: 1e-3}\n")  # YAML 1.1 reads 1e-3 as text
    assert load_params(path).segment.learning_rate == pytest.approx(1e-3)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"#? \n\t0.e%@`"), max_size=60))
def test_any_text_gives_a_mapping_or_an_input_error(text):
    assert _problem(lambda: parse_params(text)).count("\n") == 0


_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    section=st.sampled_from(["seed", "products", "sources", "arms", "segment", "synthesize", "finetune", "split"]),
    value=_VALUES,
)
def test_any_value_of_a_section_is_read_or_refused(tmp_path_factory, section, value):
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    path.write_text(yaml.safe_dump({section: value}))
    assert all(line.startswith("params.yaml: ") for line in _problem(lambda: load_params(path)).splitlines())


def _problem(read):
    """Return the message of the InputError that `read` raises; empty if it raises none. Other errors pass through."""
    try:
        read()
    except InputError as error:
        return str(error)
    return ""
