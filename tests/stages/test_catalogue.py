"""Generators fitted on the whole catalogue, and defects carried over to products that have none of them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from defect_core.data.manifest import manifest_rows
from defect_core.errors import InputError
from defect_core.generators.base import Example, SyntheticPair
from defect_core.generators.registry import generator_folder
from defect_core.graph.instances import active_stages, find_instance, instances, stage_named
from defect_core.project.params import Params, load_params
from defect_core.report.leaderboard import make_leaderboard
from defect_core.report.table import print_leaderboard
from defect_core.stages import finetune_catalogue, score
from defect_core.stages import synthesize as synthesize_step
from defect_core.synthesis.batches import SynthesisPlan, synthesize

TEXT = """\
products: [bolt, nut]
sources: {bolt: {layout: demo}, nut: {layout: demo}}
generators: [crop-paste, defectdiffu]
arms: [real_only, crop-paste, defectdiffu]
"""
WISH = "zero_shot: [{product: bolt, defect: snag, from: nut}]\n"


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


def test_a_generator_is_fitted_on_each_product_or_on_all_of_them(tmp_path):
    params = _load(tmp_path, TEXT)
    cells = {cell.address: cell for stage in active_stages(params) for cell in instances(stage, params)}
    fits = {name: cell.outputs for name, cell in cells.items() if name.startswith("finetune")}
    assert fits == {
        "finetune@bolt-crop-paste": ["data/generator/bolt/crop-paste"],
        "finetune@nut-crop-paste": ["data/generator/nut/crop-paste"],
        "finetune_catalogue@defectdiffu": ["data/generator/catalogue/defectdiffu"],
    }
    for product in ("bolt", "nut"):
        assert "data/generator/catalogue/defectdiffu" in cells[f"synthesize@{product}-defectdiffu"].inputs
    assert generator_folder("nut", "defectdiffu") == "data/generator/catalogue/defectdiffu"


def test_without_such_a_generator_there_is_no_such_stage():
    assert "finetune_catalogue" not in [stage.name for stage in active_stages(Params(generators=("crop-paste",)))]
    with pytest.raises(InputError, match="not in params.yaml|no such instance"):
        find_instance("finetune_catalogue", Params(generators=("crop-paste",)), generator="defectdiffu")


def test_only_a_set_that_borrows_reads_other_products(tmp_path):
    params = _load(tmp_path, TEXT + WISH)
    reads = {cell.key: cell.inputs[:2] for cell in instances(stage_named("synthesize"), params)}
    own = {p: [f"data/raw/{p}", f"data/split/{p}.parquet"] for p in ("bolt", "nut")}
    assert reads == {
        "bolt-crop-paste": own["bolt"],
        "bolt-defectdiffu": ["data/raw", "data/split"],
        "nut-crop-paste": own["nut"],
        "nut-defectdiffu": own["nut"],
    }


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ("{product: screw, defect: snag, from: nut}", "zero_shot: product: no product 'screw'"),
        ("{product: bolt, defect: snag, from: screw}", "zero_shot: from: no product 'screw'"),
        ("{product: bolt, defect: snag, from: bolt}", "bolt lends to itself"),
        ("{product: bolt, defect: snag}", "zero_shot.0.from"),
        ("{product: bolt, defect: a, from: nut}, {product: bolt, defect: a, from: nut}", "asked for twice"),
    ],
)
def test_a_wrong_wish_is_one_clear_line(tmp_path, wish, message):
    with pytest.raises(InputError, match=message) as caught:
        _load(tmp_path, TEXT + f"zero_shot: [{wish}]\n")
    assert "\n" not in str(caught.value)


def test_settings_for_one_product_of_what_is_fitted_on_all_are_refused(tmp_path):
    with pytest.raises(InputError, match="overrides.nut.defectdiffu: is fitted on all products at once"):
        _load(tmp_path, TEXT + "overrides: {nut: {defectdiffu: {steps: 3}}}\n")


def test_a_wish_needs_a_generator_that_can(tmp_path):
    text = TEXT.replace("crop-paste, defectdiffu", "crop-paste")
    with pytest.raises(InputError, match="no generator in generators can do this"):
        _load(tmp_path, text.replace(", crop-paste, defectdiffu]", "]") + WISH)


class _Painter:
    """A generator that paints the requested mask white."""

    def sample(self, requests):
        for request in requests:
            image = request.normal_image.copy()
            image[request.mask] = 255
            yield SyntheticPair(request.sample_id, image, request.mask, facts={"strength": 1.5})


def _recipe(**changes):
    recipe = {"product": "bolt", "generator": "defectdiffu", "base_seed": 0, "per_defect": 2, "batch_size": 2}
    recipe |= {"max_attempts": 2.0, "min_change": 1.0, "min_area": 1, "model_digest": "x"}
    return SynthesisPlan(**{**recipe, **changes})


def test_a_carried_defect_has_its_own_rows_and_is_drawn_on_the_products_own_images(tmp_path):
    examples = [_example("bolt", "good"), _example("bolt", "dent"), _example("nut", "snag"), _example("nut", "good", 9)]
    synthesize(_Painter(), _recipe(), examples, tmp_path)
    rows = manifest_rows(tmp_path / "manifest.parquet")
    found = {(row.product, row.defect, row.source_product, row.source_mask) for row in rows}
    assert found == {("bolt", "dent", "bolt", "bolt/dent.png"), ("bolt", "snag", "nut", "nut/snag.png")}
    assert {row.source_image for row in rows} == {"bolt/good.png"}
    assert {row.strength for row in rows} == {1.5}
    assert sum(row.defect == "snag" for row in rows) == 2


def test_a_product_without_any_defect_can_be_given_one(tmp_path):
    synthesize(_Painter(), _recipe(), [_example("bolt", "good"), _example("nut", "snag")], tmp_path)
    assert {row.defect for row in manifest_rows(tmp_path / "manifest.parquet")} == {"snag"}


def _project(tmp_path, text=TEXT + WISH):
    return SimpleNamespace(params=_load(tmp_path, text), path=lambda part: tmp_path / part, state=tmp_path / "state")


def test_the_lenders_examples_of_the_asked_defect_are_taken(tmp_path, monkeypatch):
    held = {"nut": [_example("nut", "snag"), _example("nut", "cut"), _example("nut", "good")]}
    monkeypatch.setattr(synthesize_step, "load_examples", lambda project, product, side: held[product])
    take = synthesize_step.borrowed_examples
    project = _project(tmp_path)
    assert [e.defect for e in take(project, "bolt", "defectdiffu", {"dent", "good"})] == ["snag"]
    assert take(project, "bolt", "crop-paste", {"dent"}) == [] == take(project, "nut", "defectdiffu", {"snag"})
    with pytest.raises(InputError, match="bolt has training examples of 'snag' itself"):
        take(project, "bolt", "defectdiffu", {"snag"})
    held["nut"].pop(0)
    with pytest.raises(InputError, match="nut has no training example of 'snag'"):
        take(project, "bolt", "defectdiffu", {"dent"})


@pytest.mark.parametrize("seen", [True, False])
def test_a_carried_defect_is_scored_on_its_own_and_only_against_real_ones(tmp_path, monkeypatch, seen):
    examples = [_example("bolt", "good"), _example("bolt", "dent"), _example("nut", "snag")]
    folder = tmp_path / "data/synthetic/bolt/defectdiffu"
    synthesize(_Painter(), _recipe(), examples, folder)
    sides = {"train": examples[:2], "test": [_example("bolt", "dent"), *([_example("bolt", "snag")] if seen else [])]}
    asked = []

    def score_sets(*sets_and_options):
        asked.append(tuple(set(sets.images) for sets in sets_and_options[:3]))
        return {"protocol": {}, "scores": {"pooled": {"frechet_lite0": 1.0}, "defects": {}}, "missing": {}}

    monkeypatch.setattr(score, "load_examples", lambda project, product, side: sides[side])
    monkeypatch.setattr(score, "score_sets", score_sets)
    score.run(_project(tmp_path), "bolt", "defectdiffu")
    result = json.loads((tmp_path / "metrics/score/bolt/defectdiffu.json").read_text())
    assert asked[0][:2] == ({"dent"}, {"dent"})
    carried = result["zero_shot"]["snag"]
    assert (carried["from"], carried["generated"]) == ("nut", 2)
    assert asked[1:] == ([({"snag"}, {"snag"}, {"snag"})] if seen else [])
    assert bool(carried["scores"]) == seen


def test_the_catalogue_fit_sees_all_products_and_leaves_no_checkpoint(tmp_path, monkeypatch):
    seen = {}

    class Fake:
        @classmethod
        def create(cls, config, backbone):
            seen["backbone"] = backbone
            return cls()

        def fit(self, examples, work_dir, seed):
            seen["products"] = [example.product for example in examples]
            work_dir.mkdir(parents=True)

        def save(self, folder):
            (folder / "weights").write_text("x")

    from defect_core.project.paths import Project

    (tmp_path / "params.yaml").write_text(TEXT)
    for product in ("bolt", "nut"):
        (tmp_path / "data/raw" / product).mkdir(parents=True)
    monkeypatch.setattr(finetune_catalogue, "generator_class", lambda name: Fake)
    monkeypatch.setattr(finetune_catalogue, "open_project_backbone", lambda project: SimpleNamespace(digest="d"))
    monkeypatch.setattr(finetune_catalogue, "load_examples", lambda project, product, side: [_example(product, "good")])
    finetune_catalogue.run(Project(tmp_path), "defectdiffu")
    assert seen["products"] == ["bolt", "nut"] and seen["backbone"].digest == "d"
    assert (tmp_path / "data/generator/catalogue/defectdiffu/weights").is_file()
    assert not list((tmp_path / ".defectory").rglob("checkpoints/*"))


def test_the_leaderboard_has_a_row_for_every_carried_defect(tmp_path, capsys):
    project = _project(tmp_path)
    for product in ("bolt", "nut"):
        for arm in project.params.arms:
            mean = {"pixel_ap": 0.5}
            segmented = {"product": product, "arm": arm, "mean": mean, "std": {}, "protocol": {"seeds": 1}}
            _write(tmp_path / f"metrics/segment/{product}/{arm}.json", segmented)
            scored = {"scores": {"pooled": {}}, "acceptance": {"acceptance_rate": 1.0}}
            if (product, arm) == ("bolt", "defectdiffu"):
                carried = {"from": "nut", "generated": 7, "scores": {"frechet_lite0": 3.25}, "missing": {}}
                scored["zero_shot"] = {"snag": carried}
            _write(tmp_path / f"metrics/score/{product}/{arm}.json", scored)
    board = make_leaderboard(project)
    (row,) = board["zero_shot"]
    assert (row["product"], row["arm"], row["defect"], row["from"]) == ("bolt", "defectdiffu", "snag", "nut")
    assert len(board["rows"]) == 6
    print_leaderboard(board)
    shown = capsys.readouterr().out
    assert "carried over" in shown and "snag" in shown and "3.25" in shown


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
