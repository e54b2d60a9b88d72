"""Names and paths of every kind: what is written to dvc.yaml is what DVC reads, or the name is refused."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml

from defect_core.cli.scaffold import init_project
from defect_core.cli.transaction import edited_params, quoted
from defect_core.data.config import SOURCE_REMOTE, is_outside, source_input
from defect_core.data.records import check_name
from defect_core.errors import InputError
from defect_core.graph.dvcfile import sync
from defect_core.graph.instances import code_key
from defect_core.graph.local import child_environment
from defect_core.graph.read_back import ask_dvc, check_read_back
from defect_core.graph.yaml_text import emit_mapping, emit_text, escape_dvc
from defect_core.project.paths import Project, original_root

NAMES = [
    *("01", "0815", "4711", "1.10", "12e5", "1e3", "0x1F", "0o17", "1_000", "007", "1e-3"),
    *("null", "true", "False", "yes", "no", "on", "off", "y", "n", "nan", "None"),
    *("2024-11-30", "2024-11-30T10.00.00", "screw.v2", "a.b.c", "screw-", "_", "key", "item", "stages"),
]
SEARCHED = ["01", "1e3", "null", "2024-11-30", "screw.v2"]
PATHS = {
    "emoji": "images 😀/screw",
    "CJK": "图像/螺丝",
    "interpolation": "a${x}b",
    "interpolation of an item": "${item.product}",
    "comment": "day #1",
    "quotes": 'it\'s "here"',
    "braces": "{a}, [b]",
    "colon": "a: b",
    "spaces": " two  spaces ",
    "percent": "100%",
    "exclamation": "!tag",
    "asterisk": "*anchor",
    "ampersand": "&anchor",
    "dash": "- item",
    "number": "0815",
    "null": "null",
    "at": "@here",
    "backtick": "`x`",
    "dollar": "$HOME",
    "combining": "e\u0301tape",
    "right to left": "صور",
}


@pytest.fixture(scope="module")
def empty_project(tmp_path_factory):
    return init_project(tmp_path_factory.mktemp("projects") / "one").root


@pytest.fixture
def project(empty_project, tmp_path):
    shutil.copytree(empty_project, tmp_path / "project")
    return Project(tmp_path / "project")


def _add(project, name, path):
    """Add a product without a look at its images."""
    with edited_params(project) as content:
        content["products"] = [quoted(name)]
        content["sources"] = {quoted(name): {"path": quoted(path)} if path else {"layout": "demo"}}
    changed = Project(project.root)
    sync(changed)
    return changed


def _dvc(project, *arguments):
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=project.root, env=child_environment(project), capture_output=True, text=True)


@pytest.fixture(scope="module")
def project_of_all_kinds(empty_project):
    """A project with one product per name, and one per kind of path outside and inside the project."""
    root = empty_project.parent / "all"
    shutil.copytree(empty_project, root)
    sources = dict.fromkeys(NAMES)
    for number, path in enumerate(PATHS.values()):
        sources |= {f"outside{number}": f"../{path}", f"inside{number}": path}
        (root.parent / path).mkdir(parents=True)
        (root / path).mkdir(parents=True, exist_ok=True)
    with edited_params(Project(root)) as content:
        content["products"] = [quoted(name) for name in sources]
        content["generators"], content["arms"] = ["crop-paste"], ["real_only", "crop-paste"]
        del content["release"], content["adapt"], content["finetune"]["disentangled-inversion"]
        content["sources"] = {
            quoted(name): {"path": quoted(path)} if path else {"layout": "demo"} for name, path in sources.items()
        }
    project = Project(root)
    sync(project)
    return project, ask_dvc(project, [f"ingest@{name}" for name in SEARCHED])


@pytest.mark.parametrize("name", NAMES)
def test_dvc_reads_every_product_name_as_it_is_written(project_of_all_kinds, name):
    project, read = project_of_all_kinds
    assert check_name(name, "product") in project.params.products
    command = f"defectory stage ingest --product {name}"
    assert read["stages"][f"ingest@{name}"] == [command, ["data/README.md"], [f"data/raw/{name}"]]


@pytest.mark.parametrize("number", range(len(PATHS)), ids=PATHS.keys())
def test_dvc_reads_every_path_outside_the_project(project_of_all_kinds, number):
    project, read = project_of_all_kinds
    name, source = f"outside{number}", project.root.parent / list(PATHS.values())[number]
    assert read["stages"][f"ingest@{name}"][1] == [f"remote://{SOURCE_REMOTE}/{name}"]
    assert os.path.samefile(project.source_path(name), source)
    assert os.path.samefile(project.path(".defectory/sources") / name, source)


@pytest.mark.parametrize("number", range(len(PATHS)), ids=PATHS.keys())
def test_dvc_reads_every_path_inside_the_project(project_of_all_kinds, number):
    project, read = project_of_all_kinds
    path = list(PATHS.values())[number]
    assert read["stages"][f"ingest@inside{number}"][1] == [path]
    line = yaml.safe_load(project.path("dvc.yaml").read_text())["stages"]["ingest"]["foreach"][f"inside{number}"]
    assert line["source"] == escape_dvc(path)


@pytest.mark.parametrize("name", SEARCHED)
def test_dvc_finds_an_instance_by_its_address(project_of_all_kinds, name):
    assert project_of_all_kinds[1]["found"][f"ingest@{name}"] == [f"ingest@{name}"]


def test_names_that_are_numbers_in_one_version_of_yaml_stay_strings(project):
    """PyYAML reads YAML 1.1, DVC 1.2: `0815` is a number in the second only, `01` in the first."""
    from ruamel.yaml import YAML

    for name in NAMES:
        assert yaml.safe_load(emit_text(name)) == YAML(typ="safe").load(emit_text(name)) == name
        line = emit_mapping({"product": name})
        assert yaml.safe_load(line) == YAML(typ="safe").load(line) == {"product": name} and "\n" not in line


def test_a_product_with_a_dot_has_a_digest_of_its_code_that_dvc_finds(project):
    changed = _add(project, "screw.v2", None)
    assert code_key("ingest@screw.v2") == "ingest@screw~v2"
    found = _dvc(changed, "params", "diff", "--json", "--deps", "--all").stdout
    assert '"ingest@screw~v2"' in changed.path("code.json").read_text() and "ERROR" not in found
    assert _dvc(changed, "status", "ingest@screw.v2").returncode == 0


def test_a_read_back_that_differs_is_an_error(project):
    changed = _add(project, "plate", None)
    text = changed.path("dvc.yaml").read_text()
    changed.path("dvc.yaml").write_text(text.replace("{product: plate, source", "{product: gear, source"))
    with pytest.raises(
        InputError, match=r"dvc.yaml: DVC reads ingest@plate as 'defectory stage ingest --product gear'"
    ):
        check_read_back(changed)
    changed.path("dvc.yaml").write_text(
        text.replace("      plate: {product: plate, source", "      01: {product: a, b")
    )
    with pytest.raises(InputError, match=r"^dvc.yaml: [^\n]*$"):
        check_read_back(changed)


def test_a_stage_runs_in_a_temporary_workspace_with_a_source_outside(project, tmp_path):
    """The dependency is found by DVC, and the folder by the stage; no tracked file has an absolute path."""
    source = tmp_path / "images ${x}" / "plate"
    source.mkdir(parents=True)
    (source / "a.txt").write_text("a")
    changed = _add(project, "plate", "../images ${x}/plate")
    script = "import os; from defect_core.project.paths import Project; "
    script += "p = Project.find(); print(p.source_path('plate'), os.listdir(p.source_path('plate')))"
    text = changed.path("dvc.yaml").read_text().split("  # Divides")[0]
    text = text.replace(
        "cmd: defectory stage ingest --product ${item.product}",
        "cmd: python run.py && mkdir -p data/raw/plate && cp seen data/raw/plate",
    )
    (changed.root / "run.py").write_text(f"import sys\nsys.stdout = open('seen', 'w')\n{script}\n")
    changed.path("dvc.yaml").write_text(text)
    for command in (
        ["git", "config", "user.email", "a@example.com"],
        ["git", "config", "user.name", "a"],
        ["git", "add", "-A"],
        ["git", "commit", "-q", "-m", "Start"],
    ):
        subprocess.run(command, cwd=changed.root, check=True, capture_output=True)
    environment = {key: value for key, value in os.environ.items() if key != "DEFECTORY_PROJECT"}
    environment["PATH"] = child_environment(changed)["PATH"]
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "run", "--temp"],
        cwd=changed.root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tracked = subprocess.run(["git", "ls-files"], cwd=changed.root, capture_output=True, text=True).stdout.split()
    assert ".dvc/config.local" not in tracked
    assert not [name for name in tracked if str(tmp_path) in (changed.root / name).read_text()]


def test_the_root_of_a_temporary_workspace_is_that_of_its_project(tmp_path):
    root = tmp_path / "p"
    assert original_root(root) == root
    assert original_root(root / ".dvc/tmp/exps/standalone/tmpab12") == root
    assert original_root(root / ".dvc/tmp/exps/tmpab12/p") == root


@pytest.mark.parametrize(
    ("path", "tracked"),
    [
        (None, "data/README.md"),
        ("s3://bucket/plate", "data/source/plate.json"),
        ("images/plate", "images/plate"),
        ("../plate", f"remote://{SOURCE_REMOTE}/plate"),
        ("images/../../plate", f"remote://{SOURCE_REMOTE}/plate"),
        ("/images/plate", f"remote://{SOURCE_REMOTE}/plate"),
        ("..plate", "..plate"),
    ],
)
def test_what_dvc_tracks_of_a_source(path, tracked):
    assert source_input("plate", path) == tracked
    assert path is None or "://" in path or is_outside(path) == tracked.startswith("remote")


def test_links_follow_the_settings(project, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    _add(project, "plate", "../one")
    assert os.path.samefile(project.root / ".defectory/sources/plate", tmp_path / "one")
    changed = _add(project, "gear", "../two")
    assert os.listdir(project.root / ".defectory/sources") == ["gear"]
    assert sync(changed) == []
    config = changed.path(".dvc/config").read_text()
    assert config.count(SOURCE_REMOTE) == 1 and "url = ../.defectory/sources" in config
