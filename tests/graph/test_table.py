"""The stage table: its graph, the code of each stage, and the dvc.yaml rendered from it."""

import ast
from pathlib import Path

import grimp
import pytest
import yaml

from defect_core.errors import InputError
from defect_core.generators.registry import generator_names
from defect_core.graph import dvcfile
from defect_core.graph.code import CARRIERS, code_root, stage_code
from defect_core.graph.instances import find_instance, instances, stage_named
from defect_core.graph.table import STAGES
from defect_core.project.params import Params
from defect_core.project.paths import Project

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def params():
    return Params(
        products=("a", "b"),
        sources={"a": {"path": "x"}, "b": {"layout": "demo"}},
        generators=("crop-paste", "defectdiffu", "disentangled-inversion"),
        zero_shot=({"product": "a", "defect": "dent", "from": "b"},),
        arms=("real_only", "crop-paste", "crop-paste-at-25", "mix"),
        adapt={},
        release={},
        segment_unified={},
        classify={},
    )


def _cells(params):
    return [cell for stage in STAGES for cell in instances(stage, params)]


def test_every_input_is_written_by_a_stage_named_in_after(params):
    writers = {}
    for cell in _cells(params):
        for path in (*cell.outputs, *cell.metrics):
            assert path not in writers, "two instances write the same file"
            writers[path] = cell.stage.name
    for cell in _cells(params):
        for path in cell.inputs:
            sources = {name for out, name in writers.items() if _overlap(out, path)}
            if cell.stage.name == "ingest":
                assert not sources
            else:
                assert sources and sources <= set(cell.stage.after), (cell.address, path, sources)


def test_optional_stages_leave_other_stages_as_they_are(params):
    plain = params.model_copy(update={"segment_unified": None, "classify": None})
    for project in (plain, params):
        cells = [cell for stage in STAGES for cell in instances(stage, project)]
        optional = {cell.stage.name for cell in cells} & {"segment_unified", "classify"}
        (leaderboard,) = (cell for cell in cells if cell.stage.name == "leaderboard")
        extra = {"metrics/segment_unified", "metrics/classify"} & set(leaderboard.inputs)
        assert len(optional) == len(extra) == (0 if project is plain else 2)
    assert {c.address: c.inputs for s in STAGES for c in instances(s, plain) if s.name != "leaderboard"}.items() <= {
        c.address: c.inputs for s in STAGES for c in instances(s, params)
    }.items()


def test_an_arm_of_a_sweep_reads_the_set_of_its_generator(params):
    cell = find_instance("segment", params, product="a", arm="crop-paste-at-25", generator=None)
    assert cell.inputs[-1] == "data/synthetic/a/crop-paste" and cell.outputs == ["data/segment/a/crop-paste-at-25"]
    unified = find_instance("segment_unified", params, product=None, arm="crop-paste-at-25", generator=None)
    assert unified.inputs[2:] == ["data/synthetic/a/crop-paste", "data/synthetic/b/crop-paste"]


def _overlap(one, other):
    return Path(one).is_relative_to(other) or Path(other).is_relative_to(one)


def test_stages_are_in_an_order_in_which_they_can_run():
    seen = set()
    for stage in STAGES:
        assert set(stage.after) <= seen
        seen.add(stage.name)


@pytest.mark.parametrize(
    "cell",
    _cells(
        Params(
            products=("a",),
            sources={"a": {"layout": "demo"}},
            generators=generator_names(),
            adapt={},
            normals={},
            detect={},
            release={},
        )
    ),
    ids=lambda cell: cell.address,
)
def test_the_computed_code_covers_what_a_stage_imports(cell, imports):
    listed = [code_root() / path for path in cell.code]
    assert all(path.exists() for path in listed)
    start = [f"defect_core.stages.{cell.stage.name}"]
    if cell.stage.runs_generator:
        package = cell.fields["code"].replace("/", ".")
        start += [f"{package}.config", f"{package}.generator"]
    for module in set(start) | set().union(*(imports.find_upstream_modules(module) for module in start)):
        file = (code_root() / module.replace(".", "/")).with_suffix(".py")
        if file.is_file():  # A package contains no code.
            assert any(file == path or file.is_relative_to(path) for path in listed), f"{cell.address} imports {module}"


@pytest.fixture(scope="module")
def imports():
    """The import graph of the library by another implementation, without the modules that decide no result."""
    graph = grimp.build_graph("defect_core", exclude_type_checking_imports=True, cache_dir=None)
    for module in [*CARRIERS, *(name for name in graph.modules if name.startswith("defect_core.cli"))]:
        graph.remove_module(module)
    return graph


def test_stages_depend_on_no_code_that_they_do_not_use():
    assert not [path for path in stage_code(stage_named("split")) if "generators/" in path or "metrics" in path]
    assert not [path for path in stage_code(stage_named("segment")) if "backbones" in path or "diffusion" in path]
    assert not [
        path for path in stage_code(stage_named("finetune"), "seas") if "evaluation" in path or "cadiff" in path
    ]


def test_packages_contain_no_code():
    for path in (code_root() / "defect_core").rglob("__init__.py"):
        for node in ast.parse(path.read_text()).body:
            allowed = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign, ast.If)
            assert isinstance(node, allowed), f"{path}: {type(node).__name__}; expected imports only"


def test_this_repository_is_a_project_whose_dvc_yaml_agrees_with_the_table():
    project = Project(REPOSITORY)
    assert project.path("dvc.yaml").read_text(encoding="utf-8") == dvcfile.render(project)


def test_dvc_yaml_names_every_instance_with_its_paths(params, tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    stages = yaml.safe_load(dvcfile.render(Project(tmp_path)))["stages"]
    for cell in _cells(params):
        block = stages[cell.stage.name]
        body = block["do"] if cell.stage.grid else block
        fields = block["foreach"][cell.key] if cell.stage.grid else {}
        filled = [_fill(path, fields) for path in body["deps"]]
        assert filled == cell.inputs, cell.address
        outs = [next(iter(out)) if isinstance(out, dict) else out for out in body.get("outs", [])]
        assert [_fill(path, fields) for path in outs] == cell.outputs
        assert f"defectory stage {cell.stage.name}" in body["cmd"]


def _fill(text, fields):
    for name, value in fields.items():
        text = text.replace(f"${{item.{name}}}", value)
    return text


def test_similar_names_have_different_keys(tmp_path):
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({"products": ["a", "a-crop"], "sources": {"a": {"path": "x"}, "a-crop": {"path": "y"}}})
    )
    dvcfile.render(Project(tmp_path))


@pytest.mark.parametrize(
    ("name", "axes", "message"),
    [
        ("bake", {}, "stage 'bake' is unknown; expected one of ingest"),
        ("ingest", {}, "expected --product"),
        ("ingest", {"product": "c"}, "product 'c' is not in params.yaml"),
        ("ingest", {"product": "a", "arm": "mix"}, "has no arm"),
        ("segment", {"product": "a", "arm": "seas"}, "arm 'seas' is not in params.yaml"),
    ],
)
def test_an_unknown_instance_is_an_error_of_one_line(params, name, axes, message):
    with pytest.raises(InputError) as caught:
        find_instance(name, params, **{"product": None, "generator": None, "arm": None, **axes})
    assert message in str(caught.value) and "\n" not in str(caught.value)
