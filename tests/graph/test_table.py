"""The Stage table: its graph, its code lists, and the dvc.yaml rendered from it."""

import ast
from pathlib import Path

import pytest
import yaml

from defect_core.errors import InputError
from defect_core.generators.registry import generator_names
from defect_core.graph import dvcfile
from defect_core.graph.instances import code_root, find_instance, instances
from defect_core.graph.table import STAGES
from defect_core.project.params import Params
from defect_core.project.paths import Project

REPOSITORY = Path(__file__).resolve().parents[2]
# Modules that carry values and messages but decide no result; parameters are tracked by DVC itself.
CARRIERS = {
    "defect_core",
    "defect_core.errors",
    "defect_core.project.params",
    "defect_core.progress",
    "defect_core.project.paths",
    "defect_core.graph.table",
    "defect_core.graph.instances",
    "defect_core.stages",
    "defect_core.generators",
    "defect_core.generators.registry",
    "defect_core.data",
    "defect_core.backbones",
}


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


def test_every_input_is_written_by_a_stage_named_in_after_or_is_raw_material(params):
    writers = {}
    for cell in _cells(params):
        for path in (*cell.outputs, *cell.metrics):
            assert path not in writers, "two instances write one file"
            writers[path] = cell.stage.name
    for cell in _cells(params):
        for path in cell.inputs:
            near = {name for out, name in writers.items() if _overlap(out, path)}
            if cell.stage.name == "ingest":
                assert not near
            else:
                assert near and near <= set(cell.stage.after), (cell.address, path, near)


def test_optional_judges_leave_a_project_without_them_as_it_was(params):
    plain = params.model_copy(update={"segment_unified": None, "classify": None})
    for project in (plain, params):
        cells = [cell for stage in STAGES for cell in instances(stage, project)]
        judged = {cell.stage.name for cell in cells} & {"segment_unified", "classify"}
        (board,) = (cell for cell in cells if cell.stage.name == "leaderboard")
        extra = {"metrics/segment_unified", "metrics/classify"} & set(board.inputs)
        assert len(judged) == len(extra) == (0 if project is plain else 2)
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


def test_stages_stand_in_an_order_in_which_they_can_run():
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
def test_the_code_list_covers_what_the_stage_imports(cell):
    listed = [code_root() / path for path in cell.code]
    for path in listed:
        assert path.exists(), f"{cell.address} lists {path.name}, which does not exist"
    start = [f"defect_core.stages.{cell.stage.name}"]
    if "{code}" in cell.stage.code:
        package = cell.fields["code"].replace("/", ".")
        start += [f"{package}.config", f"{package}.generator"]
    for module in sorted(_reached(start)):
        file = _file(module)
        assert any(file == path or file.is_relative_to(path) for path in listed), f"{cell.address} imports {module}"


def _reached(start):
    todo, seen = list(start), set()
    while todo:
        module = todo.pop()
        if module in seen or module in CARRIERS:
            continue
        seen.add(module)
        for node in ast.walk(ast.parse(_file(module).read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            todo += [name for name in names if name.startswith("defect_core") and _file(name)]
    return seen


def _file(module):
    path = code_root() / module.replace(".", "/")
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def test_the_library_imports_neither_dagster_nor_dvc():
    for path in (code_root() / "defect_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("dagster", "dvc", "pipelines") for name in names), path


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


def test_names_that_would_collide_are_refused(tmp_path):
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({"products": ["a", "a-crop"], "sources": {"a": {"path": "x"}, "a-crop": {"path": "y"}}})
    )
    dvcfile.render(Project(tmp_path))  # different keys: fine


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
def test_a_wrong_instance_is_one_clear_line(params, name, axes, message):
    with pytest.raises(InputError) as caught:
        find_instance(name, params, **{"product": None, "generator": None, "arm": None, **axes})
    assert message in str(caught.value) and "\n" not in str(caught.value)
