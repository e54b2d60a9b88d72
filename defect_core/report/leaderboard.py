"""The leaderboard: scores of every downstream model for every arm, collected from the metrics of a project."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from defect_core.data.guarded import read_json
from defect_core.errors import InputError
from defect_core.metrics.spread import gain_over
from defect_core.project.arms import BASELINE_ARM
from defect_core.project.paths import Project
from defect_core.report.inspection import inspection_columns
from defect_core.report.prediction import predict_gain

if TYPE_CHECKING:
    import pandas as pd

MEAN_OVER_PRODUCTS = "mean over products"
LEADERBOARD_FILE = "metrics/leaderboard.json"
_NAMES = ("model", "product", "arm", "base")
_COUNTS = ("synthetic_pairs", "seeds")
# downstream models, and where their rows are in the leaderboard
_MODELS = {"segment": "rows", "segment_unified": "unified", "classify": "classify"}

# one row of `make_leaderboard`
Row = dict[str, Any]


def make_leaderboard(project: Project) -> dict[str, Any]:
    """Collect all metrics of a project.

    A row has `product`, `arm`, `base` (the arm without its sweep fraction), `share` (synthetic fraction of the defect
    slots of a batch), `mean` and `std` of the scores over the seeds, their `interval` over resampled test images,
    `reasons` for each mean that is None, `best_on_validation` (the same four of the best models on the validation
    images, or None), `gain` over `real_only` with its `gain_spread` (see `metrics.spread.gain_over`) and `protocol`.

    Returns:
        `rows`: one per product and arm, best pixel AP first within a product; the segmenter. They also have `scores` of
        the arm's synthetic set (None for arms that are no generator), reasons for the `missing` ones,
        `acceptance_rate`, and `inspection` (see docs/inspection.md).
        `unified`: rows of the segmenter of all products, for the mean over products and for each product.
        `classify`: rows of the classifier; the gain is in accuracy. They also have `classes` and `confusion`, summed
        over the seeds. `unified` and `classify` are empty where params.yaml has no such section.
        `zero_shot`: one entry per defect generated on a product without examples of it: `product`, `arm`, `defect`,
        `from`, `generated`, `scores`.
        `prediction`: see `predict_gain`.

    Raises:
        InputError: a metrics file is missing.
    """
    rows: list[Row] = []
    zero_shot: list[dict[str, Any]] = []
    for product in project.params.products:
        results = {arm: _read(project, f"metrics/segment/{product}/{arm}.json") for arm in project.params.arms}
        for row in _rows(project, product, results, "pixel_ap"):
            arm = row["arm"]
            scores = _read(project, f"metrics/score/{product}/{arm}.json") if arm in project.params.generators else None
            row["scores"] = scores and scores["scores"]["pooled"]
            row["missing"] = (scores or {}).get("missing", {})
            row["acceptance_rate"] = scores and scores["acceptance"]["acceptance_rate"]
            figures = results[arm].get("inspection")
            row["inspection"] = figures and {name: part for name, part in figures.items() if name != "images"}
            rows.append(row)
            for defect, entry in sorted(((scores or {}).get("zero_shot") or {}).items()):
                zero_shot.append({"product": product, "arm": arm, "defect": defect, **entry})
    return {
        "rows": rows,
        "unified": _unified(project) if project.params.segment_unified is not None else [],
        "classify": _classify(project) if project.params.classify is not None else [],
        "zero_shot": zero_shot,
        "prediction": predict_gain(rows, project.params.seed),
    }


def read_leaderboard(project: Project) -> "pd.DataFrame":
    """Return the last leaderboard of a project as a frame, see `leaderboard_frame`.

    Raises:
        InputError: the project has no leaderboard yet.
    """
    return leaderboard_frame(load_leaderboard(project))


def leaderboard_frame(leaderboard: Mapping[str, Any]) -> "pd.DataFrame":
    """Return a leaderboard as a frame with one row per downstream model, product and arm.

    Args:
        leaderboard: see `make_leaderboard`.

    Returns:
        `model` (`segment`, `segment_unified` or `classify`), `product`, `arm`, `base`, `synthetic_fraction`,
        `synthetic_pairs`, `seeds`, `gain`, `gain_spread`; for each score `NAME`, `NAME_std`, `NAME_low`, `NAME_high`
        (95 % interval) and `NAME_best_on_validation`; for each overkill target T in percent `support_at_T` and
        `escape_at_T`, `overkill_at_T`, `region_recall_at_T`, with `_low` and `_high`, and `false_regions_at_T`;
        `acceptance_rate`; `set_NAME` for each score of the synthetic set. Scores and gains are fractions,
        undefined ones are NaN.
    """
    import pandas as pd

    records = [_record(model, row) for model, key in _MODELS.items() for row in leaderboard.get(key) or []]
    names = list(dict.fromkeys(name for record in records for name in record))
    ordered = sorted(names, key=lambda name: (name == "acceptance_rate") + 2 * name.startswith("set_"))
    frame = pd.DataFrame(records, columns=ordered)
    texts = {name for name in ordered if name in _NAMES or name.startswith("support_at_")}
    types = {name: "Int64" if name in _COUNTS else "float64" for name in ordered if name not in texts}
    return frame.astype(types)


def load_leaderboard(project: Project) -> dict[str, Any]:
    """Return the content of `metrics/leaderboard.json`, see `make_leaderboard`.

    Raises:
        InputError: the project has no leaderboard yet.
    """
    return _read(project, LEADERBOARD_FILE)


def _record(model: str, row: Row) -> dict[str, Any]:
    protocol, best = row["protocol"], row["best_on_validation"] or {"mean": {}}
    record = {"model": model, **{name: row[name] for name in ("product", "arm", "base")}}
    record |= {
        "synthetic_fraction": row["share"],
        "synthetic_pairs": protocol.get("synthetic"),
        "seeds": protocol.get("seeds"),
    }
    record |= {name: row[name] for name in ("gain", "gain_spread")}
    for name, value in row["mean"].items():
        low, high = row["interval"].get(name) or (None, None)
        record |= {name: value, f"{name}_std": row["std"].get(name), f"{name}_low": low, f"{name}_high": high}
        record[f"{name}_best_on_validation"] = best["mean"].get(name)
    record |= inspection_columns(row.get("inspection"))
    record["acceptance_rate"] = row.get("acceptance_rate")
    return record | {f"set_{name}": value for name, value in (row.get("scores") or {}).items()}


def _rows(project: Project, product: str, results: Mapping[str, dict[str, Any]], score: str) -> list[Row]:
    """Return the rows of one downstream model on one product, the best `score` first.

    Args:
        project: names the arms.
        product: its name, or `MEAN_OVER_PRODUCTS`.
        results: content of the model's metrics file by arm.
        score: name of the score of the gain.
    """
    base = results.get(BASELINE_ARM)
    rows = []
    for name, entry in results.items():
        arm = project.params.arm(name)
        reasons = dict(entry.get("reasons", {}))
        gain = spread = None
        if name != BASELINE_ARM:
            gain, spread, why = gain_over(entry, base, BASELINE_ARM, score)
            reasons |= {"gain": why} if why else {}
        best = entry.get("best_on_validation")
        parts = ("mean", "std", "interval", "reasons")
        rows.append(
            {
                "product": product,
                "arm": name,
                "base": arm.base,
                "share": entry["protocol"].get("synthetic_fraction"),
                "mean": entry["mean"],
                "std": entry["std"],
                "interval": entry.get("interval", {}),
                "reasons": reasons,
                "best_on_validation": best and {part: best[part] for part in parts},
                "gain": gain,
                "gain_spread": spread,
                "protocol": entry["protocol"],
            }
        )
    return sorted(rows, key=lambda row: -(row["mean"].get(score) or 0))


def _unified(project: Project) -> list[Row]:
    results = {arm: _read(project, f"metrics/segment_unified/{arm}.json") for arm in project.params.arms}
    rows = []
    for product in (MEAN_OVER_PRODUCTS, *project.params.products):
        of_product = {arm: _unified_result(arm, result, product) for arm, result in results.items()}
        rows += _rows(project, product, of_product, "pixel_ap")
    return rows


def _unified_result(arm: str, result: dict[str, Any], product: str) -> dict[str, Any]:
    """Return the part of a result of the unified segmenter that belongs to one product, or to the mean over all."""
    best = result.get("best_on_validation")
    if product == MEAN_OVER_PRODUCTS:
        return {**result, "arm": arm, "best_on_validation": best}
    part = result["products"][product]
    protocol = {**result["protocol"], **part["protocol"]}
    return {**part, "arm": arm, "best_on_validation": best and best["products"][product], "protocol": protocol}


def _classify(project: Project) -> list[Row]:
    rows = []
    for product in project.params.products:
        results = {arm: _read(project, f"metrics/classify/{product}/{arm}.json") for arm in project.params.arms}
        for row in _rows(project, product, results, "accuracy"):
            result = results[row["arm"]]
            row["classes"] = result["classes"]
            row["confusion"] = _sum_tables([seed["confusion"] for seed in result["per_seed"]])
            rows.append(row)
    return rows


def _sum_tables(tables: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    return [[sum(cell) for cell in zip(*line, strict=True)] for line in zip(*tables, strict=True)]


def _read(project: Project, relative: str) -> dict[str, Any]:
    path = project.path(relative)
    if not path.is_file():
        raise InputError(f"{relative} is missing; expected a finished run; run `defectory run`")
    return read_json(path)
