"""Mean over the two folds of a `two_fold` split, so that every real defect is tested once. Each fold is a revision."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from defect_core.errors import InputError
from defect_core.lineage.lock import recorded_params
from defect_core.lineage.snapshot import Snapshot, open_snapshot
from defect_core.metrics.spread import gain_over, over_seeds
from defect_core.project.arms import BASELINE_ARM
from defect_core.project.paths import Project
from defect_core.report.leaderboard import MEAN_OVER_PRODUCTS

_CLASSIFIER = "classify"
_SEGMENTER_COLUMNS = ("pixel_ap", "pixel_f1_max", "pro", "image_auroc")


def average_folds(project: Project, names: Sequence[str]) -> dict[str, Any]:
    """Average the scores of two revisions, DVC experiments or the working tree (`workspace`), one per fold.

    The scores of a downstream model are averaged over the folds for each seed. Mean and standard deviation are then
    over the seeds, so the latter does not contain the difference between the folds.

    Args:
        project: has both revisions.
        names: the two revisions, in any order.

    Returns:
        `folds`: `name`, `commit` and `fold` of each revision.
        `rows`: one per downstream model (`kind`), product and arm, best first: `mean`, `std`, `reasons` (see
        `metrics.spread.over_seeds`), `folds` (mean scores of each fold), `gain` over `real_only` in pixel AP or
        accuracy with its `gain_spread`, `seeds` (their number).
        `scores`: one per product and generator: `scores` of the synthetic set that both folds have, averaged.

    Raises:
        InputError: a revision does not exist, the folds are not 0 and 1, other settings differ, or a run is not
            finished.
    """
    sides = sorted((open_snapshot(project, name) for name in names), key=_fold)
    _check(sides)
    paths = [path for path in sides[0].metrics if not path.startswith("metrics/score/")]
    rows = [_row(path, [side.metrics[path] for side in sides]) for path in paths]
    base = {(row["kind"], row["product"]): row for row in rows if row["arm"] == BASELINE_ARM}
    for row in rows:
        row |= _gain(row, base.get((row["kind"], row["product"])))
    rows.sort(key=lambda row: (row["kind"], row["product"], -(row["mean"].get(_headline(row)) or 0)))
    return {
        "folds": [{"name": side.name, "commit": side.commit, "fold": _fold(side)} for side in sides],
        "rows": rows,
        "scores": [
            _set_scores(path, [side.metrics[path] for side in sides])
            for path in sides[0].metrics
            if path.startswith("metrics/score/")
        ],
    }


def print_average(average: Mapping[str, Any]) -> None:
    """Print one table per downstream model and product: means over both folds, and pixel AP or accuracy of each.

    Args:
        average: see `average_folds`.
    """
    from rich.markup import escape
    from rich.table import Table

    from defect_core.report.table import (
        CLASSIFY_COLUMNS,
        SEGMENT_COLUMNS,
        format_gain,
        format_score,
        make_console,
        print_notes,
    )

    console = make_console()
    for kind, product in dict.fromkeys((row["kind"], row["product"]) for row in average["rows"]):
        own = [row for row in average["rows"] if (row["kind"], row["product"]) == (kind, product)]
        columns = (
            CLASSIFY_COLUMNS if kind == _CLASSIFIER else {name: SEGMENT_COLUMNS[name] for name in _SEGMENTER_COLUMNS}
        )
        first = columns[_headline(own[0])]
        title = f"{escape(product)}: {kind}, mean of both folds, %, {own[0]['seeds']} seed(s)"
        table = Table(title=title, title_justify="left")
        table.add_column("arm", no_wrap=True)
        for label in ("gain", f"{first} by fold", *columns.values()):
            table.add_column(label, justify="right", no_wrap=True)
        notes = []
        for row in own:
            parts = [format_score({"mean": part, "std": {}}, _headline(row)) for part in row["folds"]]
            texts = [format_gain(row), *(format_score(row, name) for name in columns)]
            notes += [f"{row['arm']}: {text}" for text in texts if ": " in text]
            short = [text.partition(":")[0] for text in texts]
            table.add_row(escape(row["arm"]), short[0], ", ".join(parts), *short[1:])
        console.print(table)
        print_notes(console, notes)


def _check(sides: Sequence[Snapshot]) -> None:
    """Raise InputError unless the revisions are finished runs of the two folds of one protocol."""
    _check_settings(sides)
    for side, other in (sides, sides[::-1]):
        missing = sorted(other.metrics.keys() - side.metrics.keys())
        if missing or not side.metrics:
            what = missing[0] if missing else "metrics/"
            raise InputError(f"{side.name}: {what} is missing; expected a finished run (`defectory run`)")
        for product in side.params.get("products") or []:
            ran = recorded_params(side.lock, f"split@{product}").get("split", {}).get("fold", 0)
            if ran != _fold(side):
                raise InputError(
                    f"{side.name}: split@{product} last ran with fold {ran}; params.yaml has split.fold {_fold(side)}; "
                    "expected a finished run (`defectory run`)"
                )


def _check_settings(sides: Sequence[Snapshot]) -> None:
    for side in sides:
        policy = (side.params.get("split") or {}).get("policy")
        if policy != "two_fold":
            raise InputError(f"{side.name}: params.yaml: split.policy is {policy or 'first_third'}; expected two_fold")
    if [_fold(side) for side in sides] != [0, 1]:
        folds = ", ".join(f"{side.name}: {_fold(side)}" for side in sides)
        raise InputError(f"params.yaml: split.fold is {folds}; expected one revision with 0 and one with 1")
    one, other = (_without_fold(side.params) for side in sides)
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key):
            raise InputError(
                f"{sides[0].name} and {sides[1].name}: params.yaml: {key} differs; expected only split.fold to differ"
            )


def _row(path: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    _, kind, *products, arm = path.removesuffix(".json").split("/")
    seeds = [[seed.get("seed") for seed in part["per_seed"]] for part in parts]
    if seeds[0] != seeds[1]:
        raise InputError(f"{path}: the seeds are {seeds[0]} and {seeds[1]}; expected equal seeds in both revisions")
    pairs = zip(*(part["per_seed"] for part in parts), strict=True)
    mean, std, reasons = over_seeds([_fold_mean(pair) for pair in pairs])
    if not seeds[0]:  # No seed has scores; the file has the reasons.
        mean, std, reasons = (dict(parts[0][name]) for name in ("mean", "std", "reasons"))
    return {
        "kind": kind,
        "product": products[0] if products else MEAN_OVER_PRODUCTS,
        "arm": arm,
        "mean": mean,
        "std": std,
        "reasons": reasons,
        "folds": [part["mean"] for part in parts],
        "seeds": len(seeds[0]),
    }


def _fold_mean(pair: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the scores of one seed, averaged over the folds; None, with a reason, where a fold has none."""
    scores: dict[str, Any] = {"reasons": {}}
    for name in pair[0]:
        values = [seed.get(name) for seed in pair]
        numbers = [value for value in values if isinstance(value, float)]
        if len(numbers) == len(values):
            scores[name] = fmean(numbers)
        elif None in values:
            scores[name] = None
            reasons = [(seed.get("reasons") or {}).get(name) for seed in pair]
            scores["reasons"][name] = next((reason for reason in reasons if reason), "not defined in one fold")
    return scores


def _gain(row: Mapping[str, Any], base: Mapping[str, Any] | None) -> dict[str, Any]:
    if base is row:
        return {"gain": None, "gain_spread": None}
    gain, spread, why = gain_over(row, base, BASELINE_ARM, _headline(row))
    reasons = {**row["reasons"], "gain": why} if why else row["reasons"]
    return {"gain": gain, "gain_spread": spread, "reasons": reasons}


def _set_scores(path: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    _, _, product, generator = path.removesuffix(".json").split("/")
    pooled = [part["scores"]["pooled"] for part in parts]
    averages = {
        name: round(fmean(side[name] for side in pooled), 6)
        for name in pooled[0]
        if all(isinstance(side.get(name), int | float) for side in pooled)
    }
    return {"product": product, "generator": generator, "scores": averages}


def _headline(row: Mapping[str, Any]) -> str:
    """Return the score of the gain and of the order of the arms."""
    return "accuracy" if row["kind"] == _CLASSIFIER else "pixel_ap"


def _fold(side: Snapshot) -> int:
    return (side.params.get("split") or {}).get("fold", 0)


def _without_fold(params: Mapping[str, Any]) -> dict[str, Any]:
    split = {key: value for key, value in (params.get("split") or {}).items() if key != "fold"}
    return {**params, "split": split}
