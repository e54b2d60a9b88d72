"""release: the release gate, into `data/release/<product>`, with its decision in `metrics/release/`.

DVC keeps the outputs of this stage in place before a run (`persist`). So the last release is there for the comparison,
and it stays, byte for byte, if the gate does not promote the set that is offered.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defect_core.data.files import folder_digest, write_json
from defect_core.errors import InputError
from defect_core.evaluation.release import KEPT, PROMOTED, Decision, decide
from defect_core.evaluation.release_config import ReleaseConfig
from defect_core.graph.code import code_digest
from defect_core.graph.instances import find_instance
from defect_core.metrics.image_results import SCORES_FILE, ArmScores, load_arm_scores, save_arm_scores
from defect_core.project.arm_data import load_arm_data
from defect_core.project.arms import BASELINE_ARM, parse_arm
from defect_core.project.device import default_device
from defect_core.project.paths import Project, synthetic_folder

RELEASE_FILE = "release.json"
BEST_FOLDER = "best"
LAST, BEST = "the last release", "the best release so far"


@dataclass(frozen=True)
class _Side:
    """One side of a comparison.

    Attributes:
        content: `arm`, `mean`, `std`; of a release also `sets`, `protocol` and `backbone`.
        scores: by seed, on the test images and their resamples.
        folder: of the arm or of the release.
        is_measured_again: whether a release was measured again under the present protocol.
    """

    content: dict[str, Any]
    scores: ArmScores
    folder: Path
    is_measured_again: bool = False


def run(project: Project, product: str) -> None:
    """Run the stage for one product."""
    config = project.params.release
    if config is None:
        raise InputError("params.yaml: release: missing; the stage release needs this section")
    last = read_release(project, product)
    protocol = _protocol(project, product)
    candidate, offered = _candidate(project, product, config, protocol)
    baseline = _read_arm(project, product, BASELINE_ARM)
    references = {BASELINE_ARM: baseline}
    references |= _read_references(project, product, last, candidate, baseline)
    if last and last["sets"] == candidate.content["sets"]:
        decision = Decision(KEPT, "the set that is offered is the one already released", "", 1.0)
    else:
        scores = {name: reference.scores for name, reference in references.items()}
        missing = _missing_escapes(candidate.content, config)
        decision = decide(candidate.content["arm"], candidate.scores, scores, config, offered, missing)
    is_promoted = decision.verdict == PROMOTED
    if is_promoted or last is None:
        best = references.get(BEST, references.get(LAST))
        _write_release(project, product, candidate if is_promoted else None, best, config.score)
    reference = references.get(LAST)
    released = candidate if is_promoted else reference
    write_json(
        project.path(f"metrics/release/{product}.json"),
        {
            "product": product,
            **decision.to_json(),
            "released": candidate.content["arm"] if is_promoted else (last or {}).get("arm"),
            "candidate": _summary(candidate, config),
            "last_release": reference and _summary(reference, config),
            "best_release": (BEST in references and _summary(references[BEST], config)) or None,
            "measured_again": any(reference.is_measured_again for reference in references.values()),
            "real_only": _summary(baseline, config),
            "mean": released.content["mean"] if released else {},
        },
    )


def read_release(project: Project, product: str) -> dict[str, Any] | None:
    """Return what is released; None if nothing is.

    Returns:
        `arm`, `sets` (digest by generator), `mean`, `std`, `protocol`, `backbone`.

    Raises:
        InputError: the last decision names a release whose files are missing.
    """
    target, old = project.path(f"data/release/{product}"), _old_release(project, product)
    if old.exists():
        # A run was killed between moving the old release away and moving the new one to its place.
        if target.exists():
            shutil.rmtree(old)
        else:
            shutil.move(old, target)
    path, record = target / RELEASE_FILE, project.path(f"metrics/release/{product}.json")
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if content["arm"] else None
    if record.is_file() and json.loads(record.read_text(encoding="utf-8"))["released"]:
        raise InputError(
            f"data/release/{product}: missing, although metrics/release/{product}.json names a release; restore it "
            "with `dvc checkout` or `dvc pull`, or delete that file to start again"
        )
    return None


def _read_references(
    project: Project, product: str, last: dict[str, Any] | None, candidate: "_Side", baseline: "_Side"
) -> dict[str, "_Side"]:
    """Return the last release, and the best release so far if it is another one.

    Scores on other images, settings or code cannot be compared: such a release is measured again.
    """
    references = {}
    folder = project.path(f"data/release/{product}")
    for name, source in ((LAST, folder), (BEST, folder / BEST_FOLDER)):
        content = json.loads((source / RELEASE_FILE).read_text(encoding="utf-8")) if last and source.is_dir() else None
        if content is None:
            continue
        side = None
        if content["protocol"] == candidate.content["protocol"] and (source / SCORES_FILE).is_file():
            side = _Side(content, load_arm_scores(source / SCORES_FILE), source)
        if side is None or not side.scores.has_images_of(baseline.scores):
            # The set that is offered again needs no test, and so no second training.
            if last and last["sets"] == candidate.content["sets"]:
                side = _Side(content, candidate.scores, source)
            else:
                side = _measure_again(project, product, content | {"protocol": candidate.content["protocol"]}, source)
        references[name] = side
    return references


def _measure_again(project: Project, product: str, content: dict[str, Any], source: Path) -> "_Side":
    """Return a release with its scores under the present protocol."""
    from defect_core.evaluation.segmentation.measure import collect_arm_scores, measure_segmenter, resolve_config

    params, tables = project.params, []
    data, records = load_arm_data(project, product, [source / generator for generator in content["sets"]])
    fraction = parse_arm(content["arm"], tuple(content["sets"])).fraction
    config = resolve_config(params.segment, data.defect_types, fraction)
    label = f"{product} {source.name} release"

    def collect(*seed: Any) -> None:
        tables.append(seed[-1].tables)

    measured = measure_segmenter(data, config, params.seed, label, default_device(), collect)
    scores = collect_arm_scores([record.image for record in records], tables, measured, params.seed)
    return _Side(content | {name: measured[name] for name in ("mean", "std")}, scores, source, True)


def _candidate(project: Project, product: str, config: ReleaseConfig, protocol: dict[str, str]) -> tuple["_Side", int]:
    """Return the arm that is offered, with the digests of its synthetic sets, and the number of arms to choose from."""
    params = project.params
    offered = [arm for arm in params.arms if arm != BASELINE_ARM] if config.arm == "best" else [config.arm]
    sides = [_read_arm(project, product, arm) for arm in offered]
    best = max(sides, key=lambda side: side.content["mean"].get(config.score) or 0.0)
    generators = params.arm(best.content["arm"]).generators
    content = best.content | {
        "sets": {name: folder_digest(project.path(synthetic_folder(product, name))) for name in generators},
        "protocol": protocol,
        "backbone": params.backbone,
    }
    return _Side(content, best.scores, best.folder), len(offered)


def _read_arm(project: Project, product: str, arm: str) -> "_Side":
    """Return the results of the stage segment for one arm."""
    path = project.path(f"metrics/segment/{product}/{arm}.json")
    if not path.is_file():
        raise InputError(f"metrics/segment/{product}/{arm}.json: missing; run the stage segment first")
    content = json.loads(path.read_text(encoding="utf-8"))
    folder = project.path(f"data/segment/{product}/{arm}")
    return _Side(content, load_arm_scores(folder / SCORES_FILE), folder)


def _write_release(project: Project, product: str, candidate: "_Side | None", best: "_Side | None", score: str) -> None:
    """Write a complete release; without a candidate an empty one, because DVC expects the folder.

    The best release so far is kept beside the candidate unless the candidate is the best. Otherwise many releases, each
    within the margin of the one before, could lose more than the margin together.
    """
    target, old = project.path(f"data/release/{product}"), _old_release(project, product)
    new = old.with_name(f"{product}.new")
    shutil.rmtree(new, ignore_errors=True)
    if candidate is None:
        write_json(new / RELEASE_FILE, {"arm": None, "sets": {}})
    else:
        sets = {name: project.path(synthetic_folder(product, name)) for name in candidate.content["sets"]}
        _write_side(candidate, sets, new)
        if best is not None and (best.content["mean"].get(score) or 0) > (candidate.content["mean"].get(score) or 0):
            _write_side(best, {name: best.folder / name for name in best.content["sets"]}, new / BEST_FOLDER)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.move(target, old)
    shutil.move(new, target)
    shutil.rmtree(old, ignore_errors=True)


def _write_side(side: "_Side", sets: dict[str, Path], folder: Path) -> None:
    """Write the synthetic sets, the scores and the record of one release into a new folder."""
    for generator, source in sets.items():
        shutil.copytree(source, folder / generator)
    save_arm_scores(side.scores, folder / SCORES_FILE)
    names = ("arm", "sets", "mean", "std", "protocol", "backbone")
    write_json(folder / RELEASE_FILE, {name: side.content[name] for name in names})


def _old_release(project: Project, product: str) -> Path:
    return project.state / "release" / product


def _protocol(project: Project, product: str) -> dict[str, str]:
    """Return digests of what comparable scores share: real images, split, settings and code of the segmenter."""
    params = project.params
    settings = {"segment": params.segment.model_dump(mode="json"), "seed": params.seed}
    instance = find_instance("segment", params, product=product, arm=BASELINE_ARM)
    return {
        "raw": folder_digest(project.path(f"data/raw/{product}")),
        "split": hashlib.sha256(project.path(f"data/split/{product}.parquet").read_bytes()).hexdigest(),
        "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "code": code_digest(instance.code),
    }


def _missing_escapes(content: dict[str, Any], config: ReleaseConfig) -> dict[str, str]:
    """Return why the segmenter has no threshold for the escapes; empty if it has one."""
    inspection: dict[str, Any] = content.get("inspection") or {"reason": "the stage segment has measured none"}
    targets = inspection.get("targets") or {}
    entry = targets.get(f"{config.overkill:g}")
    if entry is None and targets:
        return {"escape": f"release.overkill is {config.overkill:g}; expected one of {', '.join(targets)}"}
    reason = (entry or inspection).get("note") or inspection.get("reason") or "no threshold"
    return {"escape": reason} if not (entry or {}).get("threshold") else {}


def _summary(side: "_Side", config: ReleaseConfig) -> dict[str, Any]:
    """Return the arm, its scores, and its escapes and overkill at the threshold of the gate."""
    content = side.content
    summary: dict[str, Any] = {name: content[name] for name in ("arm", "mean", "std")}
    target = ((content.get("inspection") or {}).get("targets") or {}).get(f"{config.overkill:g}")
    if target:
        names = ("support", "note", "escape", "overkill")
        summary["inspection"] = {name: target[name] for name in names if name in target}
    return summary
