"""Generators that are trained on all products, and zero-shot defects."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from defect_core.data.manifest import manifest_rows
from defect_core.errors import InputError
from defect_core.generators.base import Example, SyntheticPair
from defect_core.graph.instances import active_stages, find_instance, instances, stage_named
from defect_core.project import synthesis
from defect_core.project.params import Params, load_params
from defect_core.report.leaderboard import make_leaderboard
from defect_core.report.table import print_leaderboard
from defect_core.stages import finetune_catalogue, score
from defect_core.synthesis.batches import synthesize
from defect_core.synthesis.requests import SynthesisPlan

TEXT = """\
products: [bolt, nut]
sources: {bolt: {layout: demo}, nut: {layout: demo}}
generators: [crop-paste, defectdiffu]
arms: [real_only, crop-paste, defectdiffu]
"""
ZERO_SHOT = "zero_shot: [{product: bolt, defect: snag, from: nut}]\n"


def _load(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    return load_params(tmp_path / "params.yaml")


def _example(product, defect, grey=40):
    image, mask = np.full((32, 32, 3), 120, np.uint8), None
    if defect != "good":
        mask = np.zeros((32, 32), bool)
        mask[8:16, 8:16] = True
        image[mask] = grey
    return Example(product, defect, image, mask, f"{product}/{defect}.png")


def test_a_generator_is_trained_on_each_product_or_on_all_of_them(tmp_path):
    params = _load(tmp_path, TEXT)
    cells = {cell.address: cell for stage in active_stages(params) for cell in instances(stage, params)}
    trainings = {name: cell.outputs for name, cell in cells.items() if name.startswith("finetune")}
    assert trainings == {
        "finetune@bolt-crop-paste": ["data/generator/bolt/crop-paste"],
        "finetune@nut-crop-paste": ["data/generator/nut/crop-paste"],
        "finetune_catalogue@defectdiffu": ["data/generator/catalogue/defectdiffu"],
    }
    for product in ("bolt", "nut"):
        assert "data/generator/catalogue/defectdiffu" in cells[f"synthesize@{product}-defectdiffu"].inputs
    assert params.generator_folder("nut", "defectdiffu") == "data/generator/catalogue/defectdiffu"


def test_the_setting_scope_trains_anomaly_diffusion_on_each_product_or_on_all(tmp_path):
    text = TEXT.replace("defectdiffu", "anomaly-diffusion") + "overrides: {}\n"
    for scope, weights in (("product", "nut"), ("catalogue", "catalogue")):
        params = _load(tmp_path, text + f"finetune: {{anomaly-diffusion: {{scope: {scope}, paste: false}}}}\n")
        cells = {cell.address: cell for stage in active_stages(params) for cell in instances(stage, params)}
        assert ("finetune_catalogue@anomaly-diffusion" in cells) == (scope == "catalogue")
        assert ("finetune@nut-anomaly-diffusion" in cells) == (scope == "product")
        folder = f"data/generator/{weights}/anomaly-diffusion"
        assert folder in cells["synthesize@nut-anomaly-diffusion"].inputs
        assert params.generator_folder("nut", "anomaly-diffusion") == folder
        assert not params.capabilities("anomaly-diffusion").keeps_background
    wrong = text.replace("overrides: {}\n", "overrides: {nut: {anomaly-diffusion: {steps: 3}}}\n")
    wrong += "finetune: {anomaly-diffusion: {scope: catalogue}}\n"
    with pytest.raises(InputError, match=r"overrides.nut.anomaly-diffusion: is trained on all products at once"):
        _load(tmp_path, wrong)


def test_without_a_catalogue_generator_its_stage_does_not_exist():
    assert "finetune_catalogue" not in [stage.name for stage in active_stages(Params(generators=("crop-paste",)))]
    with pytest.raises(InputError, match=r"not in params\.yaml|no such instance"):
        find_instance("finetune_catalogue", Params(generators=("crop-paste",)), generator="defectdiffu")


def test_only_a_set_with_a_zero_shot_defect_reads_other_products(tmp_path):
    params = _load(tmp_path, TEXT + ZERO_SHOT)
    reads = {cell.key: cell.inputs[:2] for cell in instances(stage_named("synthesize"), params)}
    own = {p: [f"data/raw/{p}", f"data/split/{p}.parquet"] for p in ("bolt", "nut")}
    assert reads == {
        "bolt-crop-paste": own["bolt"],
        "bolt-defectdiffu": ["data/raw", "data/split"],
        "nut-crop-paste": own["nut"],
        "nut-defectdiffu": own["nut"],
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{product: screw, defect: snag, from: nut}", "zero_shot: product: no product 'screw'"),
        ("{product: bolt, defect: snag, from: screw}", "zero_shot: from: no product 'screw'"),
        ("{product: bolt, defect: snag, from: bolt}", "bolt lends to itself"),
        ("{product: bolt, defect: snag}", "zero_shot.0.from"),
        (
            "{product: bolt, defect: a, from: nut}, {product: bolt, defect: a, from: nut}",
            "a defect is listed twice for one product",
        ),
    ],
)
def test_a_wrong_zero_shot_entry_is_an_error_of_one_line(tmp_path, entry, message):
    with pytest.raises(InputError, match=message) as caught:
        _load(tmp_path, TEXT + f"zero_shot: [{entry}]\n")
    assert "\n" not in str(caught.value)


def test_overrides_of_a_catalogue_generator_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"overrides\.nut\.defectdiffu: is trained on all products at once"):
        _load(tmp_path, TEXT + "overrides: {nut: {defectdiffu: {steps: 3}}}\n")


def test_zero_shot_needs_a_generator_with_this_capability(tmp_path):
    text = TEXT.replace("crop-paste, defectdiffu", "crop-paste")
    with pytest.raises(InputError, match="no generator in generators can do this"):
        _load(tmp_path, text.replace(", crop-paste, defectdiffu]", "]") + ZERO_SHOT)


class _Painter:
    """A generator that paints the requested mask white."""

    def sample(self, requests):
        for request in requests:
            image = request.normal_image.copy()
            image[request.mask] = 255
            yield SyntheticPair(request.sample_id, image, request.mask, metadata={"strength": 1.5})


PLAN = SynthesisPlan(
    product="bolt", generator="defectdiffu", base_seed=0, per_defect=2, batch_size=2, max_attempts=2.0,
    min_change=1.0, min_area=1, model_digest="x", min_on_product=0.0,
)  # fmt: skip


def test_a_zero_shot_defect_is_generated_on_images_of_the_product(tmp_path):
    examples = [_example("bolt", "good"), _example("bolt", "dent"), _example("nut", "snag"), _example("nut", "good", 9)]
    synthesize(_Painter(), PLAN, examples, tmp_path)
    rows = manifest_rows(tmp_path / "manifest.parquet")
    sources = {(row.product, row.defect, row.source_product, row.source_mask) for row in rows}
    assert sources == {("bolt", "dent", "bolt", "bolt/dent.png"), ("bolt", "snag", "nut", "nut/snag.png")}
    assert {row.source_image for row in rows} == {"bolt/good.png"}
    assert {row.strength for row in rows} == {1.5}
    assert sum(row.defect == "snag" for row in rows) == 2


def test_a_product_without_defects_can_have_a_zero_shot_defect(tmp_path):
    synthesize(_Painter(), PLAN, [_example("bolt", "good"), _example("nut", "snag")], tmp_path)
    assert {row.defect for row in manifest_rows(tmp_path / "manifest.parquet")} == {"snag"}


def _project(tmp_path, text=TEXT + ZERO_SHOT):
    return SimpleNamespace(params=_load(tmp_path, text), path=lambda part: tmp_path / part, state=tmp_path / "state")


def test_examples_of_the_zero_shot_defect_are_borrowed(tmp_path, monkeypatch):
    available = {"nut": [_example("nut", "snag"), _example("nut", "cut"), _example("nut", "good")]}
    monkeypatch.setattr(synthesis, "load_examples", lambda project, product, split: available[product])
    borrow = synthesis._borrowed_examples
    project = _project(tmp_path)
    assert [e.defect for e in borrow(project, "bolt", "defectdiffu", {"dent", "good"})] == ["snag"]
    assert borrow(project, "bolt", "crop-paste", {"dent"}) == [] == borrow(project, "nut", "defectdiffu", {"snag"})
    with pytest.raises(InputError, match="bolt has training examples of 'snag' itself"):
        borrow(project, "bolt", "defectdiffu", {"snag"})
    available["nut"].pop(0)
    with pytest.raises(InputError, match="nut has no training example of 'snag'"):
        borrow(project, "bolt", "defectdiffu", {"dent"})


@pytest.mark.parametrize("has_real", [True, False])
def test_a_zero_shot_defect_is_scored_alone_against_real_ones(tmp_path, monkeypatch, has_real):
    examples = [_example("bolt", "good"), _example("bolt", "dent"), _example("nut", "snag")]
    folder = tmp_path / "data/synthetic/bolt/defectdiffu"
    synthesize(_Painter(), PLAN, examples, folder)
    real = [_example("bolt", "snag")] if has_real else []
    splits = {"train": examples[:2], "test": [_example("bolt", "dent"), *real]}
    scored = []

    def score_sets(*sets_and_options):
        scored.append(tuple(set(sets.images) for sets in sets_and_options[:3]))
        return {"protocol": {}, "scores": {"pooled": {"frechet_lite0": 1.0}, "defects": {}}, "missing": {}}

    monkeypatch.setattr(score, "load_examples", lambda project, product, split: splits[split])
    monkeypatch.setattr(score, "score_sets", score_sets)
    score.run(_project(tmp_path), "bolt", "defectdiffu")
    result = json.loads((tmp_path / "metrics/score/bolt/defectdiffu.json").read_text())
    assert scored[0][:2] == ({"dent"}, {"dent"})
    entry = result["zero_shot"]["snag"]
    assert (entry["from"], entry["generated"]) == ("nut", 2)
    assert scored[1:] == ([({"snag"}, {"snag"}, {"snag"})] if has_real else [])
    assert bool(entry["scores"]) == has_real


def test_the_catalogue_stage_trains_on_all_products(tmp_path, monkeypatch):
    arguments = {}

    class Fake:
        @classmethod
        def create(cls, config, backbone):
            arguments["backbone"] = backbone
            return cls()

        def fit(self, examples, work_dir, seed):
            arguments["products"] = [example.product for example in examples]
            work_dir.mkdir(parents=True)

        def save(self, folder):
            (folder / "weights").write_text("x")

    from defect_core.project.paths import Project

    (tmp_path / "params.yaml").write_text(TEXT)
    for product in ("bolt", "nut"):
        (tmp_path / "data/raw" / product).mkdir(parents=True)
    monkeypatch.setattr(finetune_catalogue, "generator_class", lambda name: Fake)
    monkeypatch.setattr(finetune_catalogue, "open_project_backbone", lambda project: SimpleNamespace(digest="d"))
    monkeypatch.setattr(
        finetune_catalogue, "load_examples", lambda project, product, split: [_example(product, "good")]
    )
    finetune_catalogue.run(Project(tmp_path), "defectdiffu")
    assert arguments["products"] == ["bolt", "nut"] and arguments["backbone"].digest == "d"
    assert (tmp_path / "data/generator/catalogue/defectdiffu/weights").is_file()
    assert not list((tmp_path / ".defectory").rglob("checkpoints/*"))


def test_the_leaderboard_has_a_row_for_every_zero_shot_defect(tmp_path, capsys):
    project = _project(tmp_path)
    for product in ("bolt", "nut"):
        for arm in project.params.arms:
            mean = {"pixel_ap": 0.5}
            segmented = {"product": product, "arm": arm, "mean": mean, "std": {}, "protocol": {"seeds": 1}}
            _write(tmp_path / f"metrics/segment/{product}/{arm}.json", segmented)
            scored = {"scores": {"pooled": {}}, "acceptance": {"acceptance_rate": 1.0}}
            if (product, arm) == ("bolt", "defectdiffu"):
                entry = {"from": "nut", "generated": 7, "scores": {"frechet_lite0": 3.25}, "missing": {}}
                scored["zero_shot"] = {"snag": entry}
            _write(tmp_path / f"metrics/score/{product}/{arm}.json", scored)
    leaderboard = make_leaderboard(project)
    (row,) = leaderboard["zero_shot"]
    assert (row["product"], row["arm"], row["defect"], row["from"]) == ("bolt", "defectdiffu", "snag", "nut")
    assert len(leaderboard["rows"]) == 6
    print_leaderboard(leaderboard)
    shown = capsys.readouterr().out
    assert "transferred" in shown and "snag" in shown and "3.25" in shown


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
