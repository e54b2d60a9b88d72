"""The release gate: what may replace a release, and that the old one stays as it is otherwise."""

import json
import shutil

import numpy as np
import pytest

from defect_core.data.files import folder_digest, write_json
from defect_core.data.manifest import ManifestRow, write_manifest
from defect_core.data.records import Record, save_png, write_records
from defect_core.errors import InputError
from defect_core.metrics.image_results import SCORES_FILE, ArmScores, save_arm_scores
from defect_core.project.paths import Project
from defect_core.stages import release
from defect_core.stages.release import run

PARAMS = """\
products: [bolt]
sources: {bolt: {layout: demo}}
generators: [crop-paste, disentangled-inversion]
arms: [real_only, crop-paste, disentangled-inversion, mix]
segment: {seeds: [0, 1]}
release: {margins: {escape: 0.09}}
"""
INSPECTION = {"targets": {"0.01": {"support": "measured", "threshold": [0.5, 0.5, 0.5], "escape": {"rate": 0.1}}}}


def _arm(mean, seeds=3, std=0.0005, images=60, noise=0.0005, seed=0):
    """Return an arm with equal `mean` of all scores of the gate (escapes: 1 - mean)."""
    rng = np.random.default_rng([seed, int(1e4 * mean)])
    label = np.arange(images) % 2 == 0
    value, resampled = {}, {}
    for name in ("pixel_ap", "pro", "image_auroc", "escape@0.01"):
        spread = rng.normal(size=seeds)
        spread = std * (spread - spread.mean()) / (spread.std(ddof=1) if seeds > 1 else 1)
        level = 1 - mean if name.startswith("escape") else mean
        value[name] = level + spread
        resampled[name] = value[name][:, None] + noise * rng.normal(size=(seeds, 100))
    return ArmScores(tuple(map(str, range(images))), label, tuple(range(seeds)), value, resampled)


def _content(mean, arm):
    return {"arm": arm, "mean": {"pixel_ap": mean}, "std": {"pixel_ap": 0.002}, "inspection": INSPECTION}


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
    for name, mean in scores.items():
        arm = name.replace("__", "-")
        write_json(project.path(f"metrics/segment/bolt/{arm}.json"), _content(mean, arm))
        save_arm_scores(_arm(mean), project.path(f"data/segment/bolt/{arm}") / SCORES_FILE)


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
    assert files == {"release.json", SCORES_FILE} | {
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
    assert "disentangled-inversion is worse than the last release: " in found["reason"]
    assert "-4.0 points against the last release" in found["reason"]
    # Within the margin of the last release the new set is released.
    _write_metrics(project, disentangled__inversion=0.498)
    assert _run(project)["decision"] == "promoted" and _released(project) != before


def test_a_mix_is_released_with_all_its_generators(project):
    _write_metrics(project, mix=0.9)
    assert _run(project)["released"] == "mix"
    assert {path.name for path in project.path("data/release/bolt").iterdir()} == {
        "crop-paste", "disentangled-inversion", "release.json", SCORES_FILE,
    }  # fmt: skip


def test_nothing_is_released_if_no_set_helps(project):
    _write_metrics(project, real_only=0.9)
    found = _run(project)
    assert (found["decision"], found["released"]) == ("kept", None) and "worse than real_only" in found["reason"]
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

    def measure_again(_, product, content, source):
        measured.append((product, list(content["sets"])))
        return release._Side(content | {"mean": {"pixel_ap": 0.9}}, _arm(0.90), source, True)

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


def test_many_releases_within_the_margin_cannot_drift_away_from_the_best(project):
    """Each set loses 0.4 points against the one before, which the margin of one point allows."""
    means = [0.5]
    for number in range(12):
        _write_set(project, "disentangled-inversion", 100 + number)
        _write_metrics(project, real_only=0.40, disentangled__inversion=means[-1])
        found = _run(project)
        if found["decision"] != "promoted":
            break
        means.append(means[-1] - 0.004)
    assert found["decision"] == "kept" and found["best_release"]["mean"]["pixel_ap"] == 0.5
    assert "the best release so far" in found["reason"] and len(means) > 2
    # Against the last release alone the set would have passed.
    assert {test["verdict"] for test in found["tests"] if test["against"] == "the last release"} == {"passed"}
    last = found["last_release"]["mean"]["pixel_ap"]
    assert 0.5 - 0.01 < last < 0.5
    # A better set replaces the best release, and the copy of it is no longer kept.
    assert project.path("data/release/bolt/best/disentangled-inversion/images/a.png").is_file()
    _write_set(project, "disentangled-inversion", 200)
    _write_metrics(project, disentangled__inversion=0.55)
    assert _run(project)["decision"] == "promoted" and not project.path("data/release/bolt/best").exists()


def test_without_escapes_the_gate_says_what_is_missing(project):
    reason = "2 defects; expected at least 4 to cross-fit thresholds"
    for arm, mean in (("real_only", 0.4), ("crop-paste", 0.45), ("disentangled-inversion", 0.5), ("mix", 0.42)):
        scores = _arm(mean)
        for part in (scores.value, scores.resampled):
            del part["escape@0.01"]
        save_arm_scores(scores, project.path(f"data/segment/bolt/{arm}") / SCORES_FILE)
        write_json(
            project.path(f"metrics/segment/bolt/{arm}.json"), _content(mean, arm) | {"inspection": {"reason": reason}}
        )
    found = _run(project)
    assert found["decision"] == "cannot be decided" and found["reason"].endswith(reason) and not found["released"]
    project.path("params.yaml").write_text(
        PARAMS.replace("margins: {escape: 0.09}", "scores: [pixel_ap, pro, image_auroc]")
    )
    assert _run(project)["decision"] == "promoted"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("release: {margin: 0}", "release.margin"),
        ("release: {scores: []}", "release.scores"),
        ("release: {margins: {frechet: 0.1}}", "release.margins"),
        ("release: {arm: real_only}", "release.arm: 'real_only' is no arm with synthetic pairs"),
        ("release: {arm: seas}", "release.arm: 'seas'"),
        ("release: {score: frechet}", "release.score"),
        ("release: {}\narms: [real_only]", "expected real_only and at least one other arm"),
    ],
)
def test_an_invalid_setting_is_an_error_of_one_line(tmp_path, change, message):
    text = PARAMS.replace("release: {margins: {escape: 0.09}}", change)
    if "arms: [real_only]" in change:
        text = text.replace("arms: [real_only, crop-paste, disentangled-inversion, mix]\n", "")
    tmp_path.joinpath("params.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        Project(tmp_path).params  # noqa: B018
    assert message in str(caught.value) and "\n" not in str(caught.value)
