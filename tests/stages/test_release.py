"""The release gate: what may replace a release, and that the old one stays as it is otherwise."""

import json
import shutil

import numpy as np
import pytest

from defect_core.data.files import folder_digest
from defect_core.data.manifest import ManifestRow, write_manifest
from defect_core.data.records import Record, save_png, write_records
from defect_core.errors import InputError
from defect_core.evaluation.release import decide
from defect_core.project.paths import Project
from defect_core.stages import release
from defect_core.stages.release import run

PARAMS = """\
products: [bolt]
sources: {bolt: {layout: demo}}
generators: [crop-paste, disentangled-inversion]
arms: [real_only, crop-paste, disentangled-inversion, mix]
segment: {seeds: [0, 1]}
release: {}
"""


def _entry(mean, std=0.02, arm="x"):
    return {"arm": arm, "mean": {"pixel_ap": mean}, "std": {"pixel_ap": std}}


@pytest.mark.parametrize(
    ("candidate", "last", "baseline", "promoted", "message"),
    [
        (0.50, 0.50, 0.50, True, "not worse than the last release"),
        (0.60, None, 0.50, True, "the first release"),
        (0.48, 0.50, 0.40, True, "not worse"),  # Lower, but within 0.0283.
        (0.46, 0.50, 0.40, False, "worse than 0.5000 with the last release"),
        (0.50, 0.50, 0.54, False, "worse than 0.5400 with real_only"),
        (0.30, None, 0.50, False, "with real_only"),
        (None, None, 0.50, False, "has no pixel_ap"),
        (0.50, 0.50, None, True, "not worse"),
    ],
)
def test_a_candidate_worse_than_the_joint_spread_is_not_promoted(candidate, last, baseline, promoted, message):
    decision = decide(_entry(candidate), last and _entry(last), _entry(baseline), "pixel_ap", "real_only")
    assert decision[0] is promoted and message in decision[1]


def test_with_one_seed_any_decrease_counts():
    assert not decide(_entry(0.4999, None), _entry(0.5, None), _entry(0.1, None), "pixel_ap", "real_only")[0]
    assert decide(_entry(0.5, None), _entry(0.5, None), _entry(0.5, None), "pixel_ap", "real_only")[0]


def _write_set(project, generator, grey):
    folder = project.path(f"data/synthetic/bolt/{generator}")
    save_png(np.full((8, 8, 3), grey, np.uint8), folder / "images/a.png")
    save_png(np.ones((8, 8), bool), folder / "masks/a.png")
    row = ManifestRow(
        sample_id="a", product="bolt", defect="dent", image="images/a.png", mask="masks/a.png", generator=generator,
        seed=1, source_image=None, source_mask=None, prompt=None, strength=None, mask_area=64, quality=1.0,
        accepted=True, reject_reason=None, model_digest=None, image_sha256=None,
    )  # fmt: skip
    write_manifest([row], folder / "manifest.parquet")


def _write_metrics(project, **scores):
    for arm, mean in scores.items():
        path = project.path(f"metrics/segment/bolt/{arm.replace('__', '-')}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_entry(mean, arm=arm.replace("__", "-"))))


@pytest.fixture
def project(tmp_path, monkeypatch):
    tmp_path.joinpath("params.yaml").write_text(PARAMS)
    project = Project(tmp_path)
    _write_set(project, "crop-paste", 10)
    _write_set(project, "disentangled-inversion", 20)
    project.path("data/raw/bolt").mkdir(parents=True)
    write_records([Record("bolt", "good", "a.png", None, "train", "0", 8, 8)], project.path("data/split/bolt.parquet"))
    _write_metrics(project, real_only=0.40, crop__paste=0.45, disentangled__inversion=0.50, mix=0.42)
    monkeypatch.setattr(release, "_measure_again", lambda *_: pytest.fail("nothing needs to be measured again"))
    return project


def _run(project):
    run(Project(project.root), "bolt")
    return json.loads(project.path("metrics/release/bolt.json").read_text())


def _released(project):
    return folder_digest(project.path("data/release/bolt"))


def test_the_best_arm_is_released_with_its_files(project):
    found = _run(project)
    assert (found["decision"], found["released"]) == ("promoted", "disentangled-inversion")
    files = {p.relative_to(project.path("data/release/bolt")).as_posix() for p in _files(project)}
    assert files == {"release.json"} | {
        f"disentangled-inversion/{name}" for name in ("images/a.png", "masks/a.png", "manifest.parquet")
    }


def _files(project):
    return [path for path in project.path("data/release/bolt").rglob("*") if path.is_file()]


def test_a_worse_set_leaves_the_old_release_untouched_and_says_why(project):
    _run(project)
    before = _released(project)
    _write_set(project, "disentangled-inversion", 99)
    _write_metrics(project, real_only=0.40, crop__paste=0.45, disentangled__inversion=0.46, mix=0.42)
    found = _run(project)
    assert _released(project) == before
    assert (found["decision"], found["released"]) == ("kept", "disentangled-inversion")
    assert "0.4600 with disentangled-inversion is worse than 0.5000 with the last release" in found["reason"]
    # Within the spread of the last release the new set is released.
    _write_metrics(project, disentangled__inversion=0.49)
    assert _run(project)["decision"] == "promoted" and _released(project) != before


def test_a_mix_is_released_with_all_its_generators(project):
    _write_metrics(project, mix=0.9)
    assert _run(project)["released"] == "mix"
    assert {path.name for path in project.path("data/release/bolt").iterdir()} == {
        "crop-paste", "disentangled-inversion", "release.json",
    }  # fmt: skip


def test_nothing_is_released_if_no_set_helps(project):
    _write_metrics(project, real_only=0.9)
    found = _run(project)
    assert (found["decision"], found["released"]) == ("kept", None) and "real_only" in found["reason"]
    assert [path.name for path in _files(project)] == ["release.json"]
    _write_metrics(project, real_only=0.4)
    assert _run(project)["decision"] == "promoted"


def test_a_second_run_changes_nothing(project):
    _run(project)
    before = _released(project)
    found = _run(project)
    assert _released(project) == before and found["reason"].endswith("already released")


def test_a_release_of_another_protocol_is_measured_again(project, monkeypatch):
    _run(project)
    before = _released(project)
    _write_set(project, "disentangled-inversion", 99)
    _write_metrics(project, real_only=0.70, crop__paste=0.75, disentangled__inversion=0.80, mix=0.72)
    project.path("params.yaml").write_text(PARAMS.replace("[0, 1]", "[0, 1], steps: 900"))
    measured = []

    def measure_again(_, product, last):
        measured.append((product, list(last["sets"])))
        return _entry(0.90)

    monkeypatch.setattr(release, "_measure_again", measure_again)
    found = _run(project)
    assert measured == [("bolt", ["disentangled-inversion"])]
    assert found["decision"] == "kept" and found["measured_again"] and _released(project) == before
    assert found["last_release"]["mean"]["pixel_ap"] == 0.90


def test_a_missing_release_is_never_replaced(project):
    _run(project)
    shutil.rmtree(project.path("data/release/bolt"))
    with pytest.raises(InputError, match="restore it with `dvc checkout` or `dvc pull`"):
        _run(project)
    assert not project.path("data/release/bolt").exists()


def test_a_run_killed_between_two_moves_keeps_the_old_release(project, monkeypatch):
    _run(project)
    before = _released(project)
    _write_set(project, "disentangled-inversion", 99)
    real, calls = shutil.move, []

    def move(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(source, target)

    monkeypatch.setattr(release.shutil, "move", move)
    with pytest.raises(KeyboardInterrupt):
        _run(project)
    assert not project.path("data/release/bolt").exists()
    _write_metrics(project, disentangled__inversion=0.41, crop__paste=0.405)  # The new set is too bad.
    assert _run(project)["decision"] == "kept" and _released(project) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("release: {arm: real_only}", "release.arm: 'real_only' is no arm with synthetic pairs"),
        ("release: {arm: seas}", "release.arm: 'seas'"),
        ("release: {score: frechet}", "release.score"),
        ("release: {}\narms: [real_only]", "expected real_only and at least one other arm"),
    ],
)
def test_an_invalid_setting_is_an_error_of_one_line(tmp_path, change, message):
    text = PARAMS.replace("release: {}", change)
    if "arms: [real_only]" in change:
        text = text.replace("arms: [real_only, crop-paste, disentangled-inversion, mix]\n", "")
    tmp_path.joinpath("params.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        Project(tmp_path).params  # noqa: B018
    assert message in str(caught.value) and "\n" not in str(caught.value)
