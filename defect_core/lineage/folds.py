"""The mean over the two folds of a `two_fold` split, each a revision of its own: every real defect is tested once."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from defect_core.errors import InputError
from defect_core.lineage.lock import recorded_params
from defect_core.lineage.snapshot import Snapshot, open_snapshot
from defect_core.metrics.spread import gain_over, over_seeds
from defect_core.project.arms import BASELINE_ARM
from defect_core.project.paths import Project

HEADLINE = {"classify": "accuracy"}  # elsewhere pixel AP
SHOWN = ("pixel_ap", "pixel_f1_max", "pro", "image_auroc")  # of a segmenter; the rest is in the data


def average_folds(project: Project, names: Sequence[str]) -> dict[str, Any]:
    """Average what two revisions, experiments or the working tree (`workspace`) measured, one per fold.

    A judge's scores are averaged over the folds seed by seed; mean and spread are then over the seeds, so the spread
    is not that between the folds, which stand beside it.

    Returns:
        `folds`: name, commit and fold of each side; `rows`: one per judge (`kind`), product and arm, best first:
        `mean`, `std`, `reasons` (see `metrics.spread.over_seeds`), `folds`, the mean of each fold by score, `gain` in
        the headline score over `real_only` with its `gain_spread`, `seeds`; `scores`: one per product and generator:
        `scores`, averages of the synthetic sets' scores that both folds have.

    Raises:
        InputError: an unknown revision, not one of each fold, settings that differ in more than the fold, or results
            that are not all of the settings beside them.
    """
    sides = sorted((open_snapshot(project, name) for name in names), key=_fold)
    _check(sides)
    judged = [path for path in sides[0].metrics if not path.startswith("metrics/score/")]
    rows = [_row(path, [side.metrics[path] for side in sides]) for path in judged]
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


def print_average(found: Mapping[str, Any]) -> None:
    """One table per judge and product: means over both folds, and the headline score of each."""
    from rich.markup import escape
    from rich.table import Table

    from defect_core.report.table import CLASSIFY_COLUMNS, SEGMENT_COLUMNS, gain, percent, table_console

    console = table_console()
    for kind, product in dict.fromkeys((row["kind"], row["product"]) for row in found["rows"]):
        own = [row for row in found["rows"] if (row["kind"], row["product"]) == (kind, product)]
        columns = CLASSIFY_COLUMNS if kind == "classify" else {name: SEGMENT_COLUMNS[name] for name in SHOWN}
        first = columns[_headline(own[0])]
        title = f"{escape(product)}: {kind}, mean of both folds, %, {own[0]['seeds']} seed(s)"
        table = Table(title=title, title_justify="left")
        table.add_column("arm", no_wrap=True)
        for label in ("gain", f"{first} by fold", *columns.values()):
            table.add_column(label, justify="right", no_wrap=True)
        notes: dict[str, None] = {}
        for row in own:
            parts = [percent({"mean": part, "std": {}}, _headline(row)) for part in row["folds"]]
            texts = [gain(row), *(percent(row, name) for name in columns)]
            notes |= {f"{row['arm']}: {text}": None for text in texts if ": " in text}
            short = [text.partition(":")[0] for text in texts]
            table.add_row(escape(row["arm"]), short[0], ", ".join(parts), *short[1:])
        console.print(table)
        for note in notes:
            console.print(f"  {note}", highlight=False, soft_wrap=True)


def _check(sides: Sequence[Snapshot]) -> None:
    """That the sides are the two folds of one protocol, run to the end."""
    for side in sides:
        policy = (side.params.get("split") or {}).get("policy")
        if policy != "two_fold":
            raise InputError(f"{side.name}: split.policy is {policy or 'first_third'}; expected two_fold")
    if [_fold(side) for side in sides] != [0, 1]:
        have = ", ".join(f"{side.name}: {_fold(side)}" for side in sides)
        raise InputError(f"one revision of each fold is needed, found split.fold {have}; expected 0 and 1")
    plain = [_without_fold(side.params) for side in sides]
    for key in sorted(plain[0].keys() | plain[1].keys()):
        if plain[0].get(key) != plain[1].get(key):
            raise InputError(
                f"{sides[0].name} and {sides[1].name}: {key} differs in params.yaml; expected only split.fold to"
            )
    for side, other in (sides, sides[::-1]):
        missing = sorted(other.metrics.keys() - side.metrics.keys())
        if missing or not side.metrics:
            what = missing[0] if missing else "metrics/"
            raise InputError(f"{side.name}: {what} is missing; expected a finished run (`defectory run`)")
        for product in side.params.get("products") or []:
            ran = recorded_params(side.lock, f"split@{product}").get("split", {}).get("fold", 0)
            if ran != _fold(side):
                raise InputError(
                    f"{side.name}: split@{product} last ran with fold {ran} and params.yaml asks for {_fold(side)}; "
                    "expected a finished run (`defectory run`)"
                )


def _row(path: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    _, kind, *products, arm = path.removesuffix(".json").split("/")
    seeds = [[seed.get("seed") for seed in part["per_seed"]] for part in parts]
    if seeds[0] != seeds[1]:
        raise InputError(f"{path}: made with seeds {seeds[0]} and {seeds[1]}; expected the same on both sides")
    pairs = zip(*(part["per_seed"] for part in parts), strict=True)
    mean, std, reasons = over_seeds([_fold_mean(pair) for pair in pairs])
    if not seeds[0]:  # nothing could be judged; each fold says why
        mean, std, reasons = (dict(parts[0][name]) for name in ("mean", "std", "reasons"))
    return {
        "kind": kind,
        "product": products[0] if products else "mean over products",
        "arm": arm,
        "mean": mean,
        "std": std,
        "reasons": reasons,
        "folds": [part["mean"] for part in parts],
        "seeds": len(seeds[0]),
    }


def _fold_mean(pair: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The scores of one seed, averaged over the folds; None, with a reason, where a fold has none."""
    found: dict[str, Any] = {"reasons": {}}
    for name in pair[0]:
        values = [seed.get(name) for seed in pair]
        if all(isinstance(value, float) for value in values):
            found[name] = fmean(values)
        elif None in values:
            found[name] = None
            why = [(seed.get("reasons") or {}).get(name) for seed in pair]
            found["reasons"][name] = next((reason for reason in why if reason), "not defined in one fold")
    return found


def _gain(row: Mapping[str, Any], base: Mapping[str, Any] | None) -> dict[str, Any]:
    if base is row:
        return {"gain": None, "gain_spread": None}
    gain, spread, why = gain_over(row, base, BASELINE_ARM, _headline(row))
    reasons = {**row["reasons"], "gain": why} if why else row["reasons"]
    return {"gain": gain, "gain_spread": spread, "reasons": reasons}


def _set_scores(path: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    _, _, product, generator = path.removesuffix(".json").split("/")
    pooled = [part["scores"]["pooled"] for part in parts]
    shared = {
        name: round(fmean(side[name] for side in pooled), 6)
        for name in pooled[0]
        if all(isinstance(side.get(name), int | float) for side in pooled)
    }
    return {"product": product, "generator": generator, "scores": shared}


def _headline(row: Mapping[str, Any]) -> str:
    return HEADLINE.get(row["kind"], "pixel_ap")


def _fold(side: Snapshot) -> int:
    return (side.params.get("split") or {}).get("fold", 0)


def _without_fold(params: Mapping[str, Any]) -> dict[str, Any]:
    split = {key: value for key, value in (params.get("split") or {}).items() if key != "fold"}
    return {**params, "split": split}
