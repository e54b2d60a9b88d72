"""`remove-product` and `rename-product` change settings, DVC's files, data and metrics together."""

import json
import subprocess
import sys

import pytest
from product_images import call, listing, write_images

from defect_core.cli import edit_products
from defect_core.cli.edit_products import product_paths
from defect_core.errors import InputError
from defect_core.graph.instances import instances
from defect_core.graph.local import child_environment
from defect_core.graph.table import STAGES
from defect_core.project.paths import Project

SETTINGS = """\
regenerations:
  plate: {crop-paste: 2}  # bad luck
  gear: {crop-paste: 1}
overrides:
  # the plate is large
  plate:
    crop-paste: {feather: 2}  # soft
"""


@pytest.fixture
def two_products(new_project, tmp_path, monkeypatch, capsys):
    """A project with the products plate and gear, whose first stages have run."""
    for number, name in enumerate(("plate", "gear")):
        source = write_images(tmp_path / name, start=100 * number)
        assert call(monkeypatch, capsys, "add-product", name, source)[0] == 0
    params = new_project / "params.yaml"
    params.write_text(params.read_text() + SETTINGS)
    assert call(monkeypatch, capsys, "sync")[0] == 0
    project = Project(new_project)
    command = [sys.executable, "-m", "dvc", "repro", "-q", "split"]
    subprocess.run(command, cwd=new_project, env=child_environment(project), check=True)
    for name in ("plate", "gear"):
        path = new_project / f"metrics/segment/{name}/real_only.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    return new_project


def _state(folder):
    return {
        name: content for name, content in listing(folder).items() if not name.startswith((".dvc/cache", ".defectory"))
    }


def test_a_removed_product_leaves_nothing(two_products, monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "remove-product", "plate", "--json")
    assert code == 0 and set(json.loads(out)["removed"]) >= {"data/raw/plate", "metrics/segment/plate"}
    left = [name for name in _state(two_products) if "plate" in name]
    assert left == []
    for name in ("params.yaml", "dvc.yaml", "dvc.lock", "code.json", "data/raw/.gitignore", "data/split/.gitignore"):
        text = (two_products / name).read_text()
        assert "gear" in text and "plate" not in text.replace("template", "").replace("the plate is", ""), name
    assert (two_products / "data/raw/gear").is_dir() and (two_products.parent / "plate/good/0.png").is_file()
    assert Project(two_products).params.regenerations == {"gear": {"crop-paste": 1}}


def test_the_last_product_can_be_removed(new_project, tmp_path, monkeypatch, capsys):
    call(monkeypatch, capsys, "add-product", "plate", write_images(tmp_path / "plate"))
    assert call(monkeypatch, capsys, "remove-product", "plate")[0] == 0
    assert Project(new_project).params.products == ()
    assert call(monkeypatch, capsys, "add-product", "plate", tmp_path / "plate")[0] == 0


def test_a_renamed_product_keeps_settings_comments_and_order(two_products, monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "rename-product", "plate", "0815")
    assert code == 0 and "data/raw/plate" in out
    params = Project(two_products).params
    assert params.products == ("0815", "gear") and params.sources["0815"].path == "../plate"
    assert params.regenerations == {"0815": {"crop-paste": 2}, "gear": {"crop-paste": 1}}
    assert params.overrides == {"0815": {"crop-paste": {"feather": 2}}}
    text = (two_products / "params.yaml").read_text()
    for comment in ("# Preset `demo`", "# bad luck", "# the plate is large", "# soft"):
        assert comment in text
    assert not (two_products / "data/raw/plate").exists() and (two_products / "data/raw/gear").exists()
    assert "@plate" not in (two_products / "dvc.lock").read_text()
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "split", "--json"],
        cwd=two_products,
        env=child_environment(Project(two_products)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(json.loads(status.stdout)) == {"split@0815"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["remove-product", "screw"], "product 'screw' is not in params.yaml; expected one of plate, gear"),
        (["rename-product", "screw", "bolt"], "product 'screw' is not in params.yaml"),
        (["rename-product", "plate", "gear"], "'gear' is already in params.yaml"),
        (["rename-product", "plate", "plate"], "is the name that it has"),
        (["rename-product", "plate", "a/b"], "is not a usable name"),
    ],
)
def test_a_wrong_name_changes_nothing(two_products, monkeypatch, capsys, arguments, message):
    before = _state(two_products)
    code, _, error = call(monkeypatch, capsys, *arguments)
    assert code == 2 and message in error and error.count("\n") == 1
    assert _state(two_products) == before


@pytest.mark.parametrize("arguments", [["remove-product", "plate"], ["rename-product", "plate", "bolt"]])
def test_a_failure_in_the_middle_restores_everything(two_products, monkeypatch, capsys, arguments):
    def fail(*_):
        raise InputError("DVC cannot read it")

    monkeypatch.setattr(edit_products, "check_read_back", fail)
    before = _state(two_products)
    assert call(monkeypatch, capsys, *arguments)[0] == 2
    assert _state(two_products) == before
    assert (two_products / ".defectory/sources/plate").is_symlink()


def test_a_product_that_lends_a_defect_is_not_removed(two_products, monkeypatch, capsys):
    params = two_products / "params.yaml"
    text = params.read_text().replace("generators: [crop-paste", "generators: [defectdiffu, crop-paste")
    params.write_text(text + "zero_shot: [{product: gear, defect: dent, from: plate}]\n")
    code, _, error = call(monkeypatch, capsys, "remove-product", "plate")
    assert code == 2 and "gear borrows a defect from 'plate'" in error


def test_the_paths_of_a_product_cover_all_its_outputs(two_products):
    paths = product_paths("plate")
    for stage in STAGES:
        for cell in instances(stage, Project(two_products).params):
            if cell.fields.get("product") == "plate":
                for output in (*cell.outputs, *cell.metrics):
                    assert any(output == path or output.startswith(f"{path}/") for path in paths), output
