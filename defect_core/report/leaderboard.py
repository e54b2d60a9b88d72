"""The leaderboard as data: what every judge says of every arm, collected from the metrics."""

import json
from collections.abc import Mapping
from typing import Any

from defect_core.errors import InputError
from defect_core.metrics.spread import gain_over
from defect_core.project.arms import BASELINE_ARM
from defect_core.project.paths import Project
from defect_core.report.prediction import predict_gain

OVER_PRODUCTS = "mean over products"

Row = dict[str, Any]


def make_leaderboard(project: Project) -> dict[str, Any]:
    """Collect all metrics of a project.

    Returns:
        `rows`, one per product and arm, best pixel AP first within a product: `base` and `share` (which arm it is a
        point of a sweep of, and the synthetic part of its defect places), `mean` and `std` of the segmenter's scores
        over its seeds, their `interval` over test images, `reasons` for each mean that is None, `best_on_validation`
        (the same four of the best models on the validation slice, or None), `gain` in pixel AP over `real_only` with
        its `gain_spread` (see `metrics.spread.gain_over`), `scores` of the arm's synthetic set with `missing`, the
        reasons for those that it lacks (None for arms that are no generator), `protocol`.
        `unified`, the same rows of the one segmenter over all products, for each product and for the mean over them;
        `classify`, the same of the classifier, gain in accuracy, with `classes` and `confusion` (sums over the seeds);
        both are empty where params.yaml asks for none. `zero_shot`, one per defect that a generator carried over to a
        product without examples of it: `product`, `arm`, `defect`, `from`, `generated`, `scores`. `prediction`: how
        well each image score ranks the gains (see `prediction.predict_gain`).
    """
    rows: list[Row] = []
    carried: list[dict[str, Any]] = []
    for product in project.params.products:
        found = {arm: _read(project, f"metrics/segment/{product}/{arm}.json") for arm in project.params.arms}
        for row in _rows(project, product, found, "pixel_ap"):
            arm = row["arm"]
            scores = _read(project, f"metrics/score/{product}/{arm}.json") if arm in project.params.generators else None
            row["scores"] = scores and scores["scores"]["pooled"]
            row["missing"] = (scores or {}).get("missing", {})
            row["acceptance_rate"] = scores and scores["acceptance"]["acceptance_rate"]
            rows.append(row)
            for defect, facts in sorted(((scores or {}).get("zero_shot") or {}).items()):
                carried.append({"product": product, "arm": arm, "defect": defect, **facts})
    return {
        "rows": rows,
        "unified": _unified(project) if project.params.segment_unified is not None else [],
        "classify": _classify(project) if project.params.classify is not None else [],
        "zero_shot": carried,
        "prediction": predict_gain(rows, project.params.seed),
    }


def read_leaderboard(project: Project) -> dict[str, Any]:
    """The last written leaderboard. Raises InputError when there is none."""
    path = project.path("metrics/leaderboard.json")
    if not path.is_file():
        raise InputError("metrics/leaderboard.json: not there yet; `defectory run` makes it")
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(project: Project, product: str, found: Mapping[str, dict[str, Any]], score: str) -> list[Row]:
    """Rows of one judge on one product, the best `score` first.

    Args:
        found: by arm what the judge wrote.
        score: the one that gains are in.
    """
    base = found.get(BASELINE_ARM)
    rows = []
    for name, entry in found.items():
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
                "share": entry["protocol"].get("synthetic_share"),
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
    found = {arm: _read(project, f"metrics/segment_unified/{arm}.json") for arm in project.params.arms}
    rows = []
    for product in (OVER_PRODUCTS, *project.params.products):
        parts = {}
        for arm, entry in found.items():
            part = entry if product == OVER_PRODUCTS else entry["products"][product]
            best = entry.get("best_on_validation")
            if best is not None:
                best = best if product == OVER_PRODUCTS else best["products"][product]
            protocol = {**entry["protocol"], **part["protocol"]}
            parts[arm] = {**part, "arm": arm, "best_on_validation": best, "protocol": protocol}
        rows += _rows(project, product, parts, "pixel_ap")
    return rows


def _classify(project: Project) -> list[Row]:
    rows = []
    for product in project.params.products:
        found = {arm: _read(project, f"metrics/classify/{product}/{arm}.json") for arm in project.params.arms}
        for row in _rows(project, product, found, "accuracy"):
            entry = found[row["arm"]]
            tables = [seed["confusion"] for seed in entry["per_seed"]]
            row["classes"] = entry["classes"]
            row["confusion"] = [[sum(cell) for cell in zip(*line, strict=True)] for line in zip(*tables, strict=True)]
            rows.append(row)
    return rows


def _read(project: Project, relative: str) -> dict[str, Any]:
    path = project.path(relative)
    if not path.is_file():
        raise InputError(f"{relative}: missing; run the stage that writes it (`defectory run`)")
    return json.loads(path.read_text(encoding="utf-8"))
