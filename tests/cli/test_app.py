"""The command as a user calls it: a new project, and an error of one line for every wrong input."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import yaml

from defect_core.cli import app as cli
from defect_core.cli.scaffold import PRESETS, init_project
from defect_core.data.records import save_png
from defect_core.generators.registry import generator_capabilities, generator_config, generator_names
from defect_core.project.params import Params
from defect_core.project.paths import Project


def _call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["defectory", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    return ended.value.code or 0, captured.out, captured.err


def _images(folder, sizes=((40, 40),) * 4, masks=True):
    """A product in the `folder` layout: six normal images and one defect type with masks beside the images."""
    rng = np.random.default_rng(0)
    for number in range(6):
        save_png(rng.integers(80, 120, (40, 40, 3), np.uint8), folder / f"good/{number}.png")
    for number, size in enumerate(sizes):
        image, mask = rng.integers(80, 120, (*size, 3), np.uint8), np.zeros(size, np.uint8)
        mask[10:20, 10 + number : 20 + number] = 255
        image[mask > 0] = 250
        save_png(image, folder / f"dent/{number}.png")
        if masks:
            save_png(mask, folder / f"dent/{number}_mask.png")
    return folder


@pytest.fixture(scope="module")
def empty_project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("projects") / "one"
    init_project(folder)
    return folder


@pytest.fixture
def project(empty_project, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    shutil.copytree(empty_project, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DEFECTORY_PROJECT", raising=False)
    return folder


def test_init_creates_a_complete_project(empty_project):
    for name in ("params.yaml", "dvc.yaml", "workspace.yaml", "data/README.md", "metrics", ".dvc/config", ".dvcignore"):
        assert (empty_project / name).exists(), name
    assert Project(empty_project).params.products == ()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_names_its_cost(preset):
    text = (files("defect_core.cli") / "templates/presets" / f"{preset}.yaml").read_text()
    assert Params.model_validate(yaml.safe_load(text)).products == ()
    assert re.match(rf"# Preset `{preset}`: .*(minutes|hour)", text.splitlines()[0])


def test_the_full_preset_has_settings_of_every_diffusion_method_for_a_large_model():
    """The defaults are for the embedded models: their learning rates would ruin Stable Diffusion."""
    full = yaml.safe_load((files("defect_core.cli") / "templates/presets/full.yaml").read_text())["finetune"]
    assert set(full) == {name for name in generator_names() if generator_capabilities(name).uses_backbone} | {
        "crop-paste"
    }
    for name, settings in full.items():
        large, embedded = generator_config(name, settings), generator_config(name, {})
        if name in ("seas", "cadiff", "defectdiffu", "disentangled-inversion"):
            assert large.learning_rate < embedded.learning_rate / 10
    assert generator_config("anomaly-diffusion", full["anomaly-diffusion"]).tune_denoiser is False


def test_the_demo_preset_has_the_settings_of_the_demo():
    demo = yaml.safe_load((files("defect_core.cli") / "templates/presets/demo.yaml").read_text())
    repository = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    assert {**repository, "products": [], "sources": {}} == demo


def test_sync_tells_dvc_of_a_git_repository_created_after_init(project, monkeypatch, capsys):
    shutil.rmtree(project)
    init_project(project, with_git=False)
    monkeypatch.chdir(project)
    config = project / ".dvc/config"
    assert "no_scm" in config.read_text()
    assert _call(monkeypatch, capsys, "sync")[1] == "up to date\n"
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    assert _call(monkeypatch, capsys, "sync")[1] == ".dvc/config written\n"
    assert "no_scm" not in config.read_text() and "analytics = false" in config.read_text()
    assert _call(monkeypatch, capsys, "sync")[1] == "up to date\n"


def test_an_unknown_preset_is_an_error(tmp_path, monkeypatch, capsys):
    code, _, error = _call(monkeypatch, capsys, "init", tmp_path / "new", "--preset", "huge")
    assert code == 2 and "expected one of demo, laptop, full" in error and not (tmp_path / "new").exists()


def test_add_product_adds_a_product_and_keeps_comments(project, tmp_path, monkeypatch, capsys):
    source = _images(tmp_path / "plates")
    code, out, _ = _call(monkeypatch, capsys, "add-product", "plate", source)
    assert code == 0 and re.search(r"good +6 +4 +2", out) and re.search(r"dent +4 +1 +3", out)
    text = (project / "params.yaml").read_text()
    assert text.startswith("# Preset `laptop`") and str(tmp_path) not in text
    assert Project(project).params.sources["plate"].path == "../plates"
    assert "ingest --product" in (project / "dvc.yaml").read_text()
    code, _, error = _call(monkeypatch, capsys, "add-product", "plate", source)
    assert code == 2 and "already in params.yaml" in error


def _one_line(code, error):
    assert code == 2
    assert error.startswith("defectory: ") and error.count("\n") == 1, error


@pytest.mark.parametrize("name", ["a/b", "..", "a|b", "   ", "", "a b", "-x"])
def test_an_invalid_product_name_changes_nothing(project, tmp_path, monkeypatch, capsys, name):
    before = (project / "params.yaml").read_bytes(), (project / "dvc.yaml").read_bytes()
    code, _, error = _call(monkeypatch, capsys, "add-product", "--", name, _images(tmp_path / "plates"))
    _one_line(code, error)
    assert ((project / "params.yaml").read_bytes(), (project / "dvc.yaml").read_bytes()) == before
    assert not (project / "data/raw").exists()


def _unreadable(folder):
    (_images(folder) / "dent/1.png").write_bytes(b"no image")


def _missing_mask(folder):
    (_images(folder) / "dent/1_mask.png").unlink()


def _wrong_size(folder):
    save_png(np.full((30, 30), 255, np.uint8), _images(folder) / "dent/1_mask.png")


def _empty_mask(folder):
    save_png(np.zeros((40, 40), np.uint8), _images(folder) / "dent/1_mask.png")


def _too_few(folder):
    _images(folder, sizes=((40, 40),) * 2)


def _no_normal(folder):
    for path in (_images(folder) / "good").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_unreadable, "dent/1.png"),
        (_missing_mask, "dent/1.png"),
        (_wrong_size, "dent/1_mask.png"),
        (_empty_mask, "dent/1_mask.png"),
        (_too_few, "dent"),
        (_no_normal, "good"),
        (lambda folder: folder.mkdir(), "plates"),
        (lambda folder: None, "plates"),
    ],
)
def test_invalid_images_are_named_and_nothing_changes(project, tmp_path, monkeypatch, capsys, spoil, named):
    spoil(tmp_path / "plates")
    before = sorted(path for path in project.rglob("*") if ".defectory" not in path.parts)
    code, _, error = _call(monkeypatch, capsys, "add-product", "plate", tmp_path / "plates")
    _one_line(code, error)
    assert named in error
    assert sorted(path for path in project.rglob("*") if ".defectory" not in path.parts) == before
    assert not any((project / ".defectory").glob("*/*"))


def test_images_with_empty_masks_can_be_left_out_and_are_listed(project, tmp_path, monkeypatch, capsys):
    _empty_mask(tmp_path / "plates")
    code, out, _ = _call(monkeypatch, capsys, "add-product", "plate", tmp_path / "plates", "--empty-masks", "leave_out")
    assert code == 0 and re.search(r"dent +3", out) and "left out: 1" in out and "1.png" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layout", "coco"], "layout"),
        (["--option", "god=x"], "god"),
        (["--option", "good"], "expected KEY=VALUE"),
        (["--empty-masks", "drop"], "expected error or leave_out"),
    ],
)
def test_an_invalid_option_of_add_product_is_named(project, tmp_path, monkeypatch, capsys, arguments, message):
    code, _, error = _call(monkeypatch, capsys, "add-product", "plate", _images(tmp_path / "plates"), *arguments)
    _one_line(code, error)
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stage", "bake"], "stage 'bake' is unknown"),
        (["stage", "ingest"], "expected --product"),
        (["run", "--product", "plate"], "product 'plate' is not in params.yaml"),
        (["leaderboard"], "metrics/leaderboard.json"),
        (["score", "--real", "nowhere", "--generated", "nowhere"], "nowhere: not a folder"),
    ],
)
def test_a_wrong_command_is_an_error_of_one_line(project, monkeypatch, capsys, arguments, message):
    code, _, error = _call(monkeypatch, capsys, *arguments)
    _one_line(code, error)
    assert message in error


def test_outside_a_project_the_error_names_defectory_init(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEFECTORY_PROJECT", raising=False)
    code, _, error = _call(monkeypatch, capsys, "run")
    _one_line(code, error)
    assert "defectory init" in error


def test_a_stage_without_its_inputs_names_the_missing_one(project, tmp_path, monkeypatch, capsys):
    _call(monkeypatch, capsys, "add-product", "plate", _images(tmp_path / "plates"))
    code, _, error = _call(monkeypatch, capsys, "stage", "split", "--product", "plate")
    _one_line(code, error)
    assert "data/raw/plate: missing" in error


def test_run_reports_an_input_error_of_a_stage_that_dvc_ran(project, tmp_path, monkeypatch, capsys):
    source = _images(tmp_path / "plates")
    _call(monkeypatch, capsys, "add-product", "plate", source)
    (source / "dent/2.png").write_bytes(b"damaged")
    code, _, error = _call(monkeypatch, capsys, "run")
    assert code == 2 and "dent/2.png" in error.splitlines()[-1]
    assert not (project / "data/raw/plate").exists()


def test_a_regeneration_is_recorded_in_params_yaml(project, monkeypatch, capsys):
    text = (project / "params.yaml").read_text()
    text = text.replace("products: []", "products: [plate]").replace("sources: {}", "sources: {plate: {layout: demo}}")
    (project / "params.yaml").write_text(text)
    code, out, _ = _call(monkeypatch, capsys, "regenerate", "--generator", "crop-paste")
    assert code == 0 and out == "synthesize@plate-crop-paste: will be generated again\n"
    assert Project(project).params.regenerations == {"plate": {"crop-paste": 1}}
    assert "regeneration: regenerations.plate.crop-paste" in (project / "dvc.yaml").read_text()
    code, _, error = _call(monkeypatch, capsys, "regenerate", "--product", "screw")
    _one_line(code, error)
    assert "product 'screw' is not in params.yaml" in error


def test_missing_weights_are_an_error_of_one_line(project, tmp_path, monkeypatch, capsys):
    _call(monkeypatch, capsys, "add-product", "plate", _images(tmp_path / "plates"))
    text = (project / "params.yaml").read_text().replace("backbone: embedded", "backbone: ./no/such/folder")
    (project / "params.yaml").write_text(text)
    for stage in ("ingest", "split"):
        assert _call(monkeypatch, capsys, "stage", stage, "--product", "plate")[0] == 0
    code, _, error = _call(monkeypatch, capsys, "stage", "adapt", "--product", "plate")
    assert code == 2 and "no/such/folder" in error.splitlines()[-1]
    assert not (project / "data/generator").exists()


def test_version_is_that_of_the_package(monkeypatch, capsys):
    code, out, _ = _call(monkeypatch, capsys, "--version")
    assert (code, out) == (0, f"defectory {version('defectory')}\n")


def test_the_command_starts_without_heavy_packages():
    heavy = (
        "import sys, defect_core; from defect_core.cli import app; from defect_core.graph import dvcfile, local; "
        "print([m for m in ('torch', 'diffusers', 'dagster', 'dvc', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_doctor_prints_json(project, monkeypatch, capsys):
    code, out, _ = _call(monkeypatch, capsys, "doctor", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["dvc.yaml"].startswith("agrees") and Path(facts["project"]).name.startswith("0")
