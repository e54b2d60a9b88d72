"""release: the gate, into `data/release/<product>`, with its decision in `metrics/release/`.

DVC keeps the outputs of this stage in place before a run (`persist`), so the last release is there to be judged
against, and stays, byte for byte, where nothing better came.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from defect_core.errors import InputError
from defect_core.graph.dvcfile import code_digest
from defect_core.graph.instances import find_instance
from defect_core.metrics.spread import beyond_spread, joint_spread
from defect_core.project.arms import BASELINE_ARM, parse_arm
from defect_core.project.paths import Project, folder_digest, write_json
from defect_core.stages.segment import measure

RELEASE_FILE = "release.json"


def run(project: Project, product: str) -> None:
    target, score = project.path(f"data/release/{product}"), project.params.release.score
    last = read_release(project, product)
    protocol = _protocol(project, product)
    candidate = _candidate(project, product, protocol)
    baseline = _segment(project, product, BASELINE_ARM)
    reference = last
    if last and last["sets"] != candidate["sets"] and last["protocol"] != protocol:
        # scores taken on other images, settings or code cannot be compared: the last release is measured again
        folders = [target / generator for generator in last["sets"]]
        fraction = parse_arm(last["arm"], tuple(last["sets"])).fraction
        measured = measure(project, product, "last release", folders, fraction=fraction)
        reference = {**last, "mean": measured["mean"], "std": measured["std"]}
    if last and last["sets"] == candidate["sets"]:
        promoted, reason = False, "the set that is offered is the one already released"
    else:
        promoted, reason = decide(candidate, reference, baseline, score)
    if promoted or last is None:
        _put(project, product, candidate if promoted else None)
    write_json(
        project.path(f"metrics/release/{product}.json"),
        {
            "product": product,
            "decision": "promoted" if promoted else "kept",
            "reason": reason,
            "released": (candidate if promoted else last or {}).get("arm"),
            "candidate": _shown(candidate),
            "last_release": reference and _shown(reference),
            "measured_again": reference is not last,
            "real_only": _shown(baseline),
            "mean": _shown(candidate if promoted else reference)["mean"] if promoted or last else {},
        },
    )


def decide(
    candidate: dict[str, Any], last: dict[str, Any] | None, baseline: dict[str, Any], score: str
) -> tuple[bool, str]:
    """Whether a candidate is promoted, and why or why not.

    Args:
        candidate, last, baseline: each with `mean` and `std` by score, over the seeds; `last` None where nothing was
            released yet.
        score: the one that counts; higher is better.

    Returns:
        True unless the candidate is worse than either of the others by more than the joint spread of both; with one
        seed there is no spread, and any step down is one too many.
    """
    value = candidate["mean"].get(score)
    if value is None:
        return False, f"the candidate {candidate['arm']} has no {score}"
    for other, name in ((last, "the last release"), (baseline, BASELINE_ARM)):
        before = None if other is None else other["mean"].get(score)
        if before is None:
            continue
        spread = joint_spread(candidate["std"].get(score), other["std"].get(score)) or 0.0
        if value < before and beyond_spread(value - before, spread):
            return False, (
                f"{score} {value:.4f} with {candidate['arm']} is worse than {before:.4f} with {name}, "
                f"by {before - value:.4f}, beyond the spread of {spread:.4f}"
            )
    return True, f"{score} {value:.4f} with {candidate['arm']}: not worse than " + (
        f"the last release or {BASELINE_ARM}" if last else f"{BASELINE_ARM}; the first release"
    )


def read_release(project: Project, product: str) -> dict[str, Any] | None:
    """What is released; None where nothing is yet.

    Returns:
        `arm`, `sets` (digest by generator), `mean`, `std`, `protocol` (see `_protocol`), `backbone`.

    Raises:
        InputError: the record of the last decision names a release, but its files are not here.
    """
    target, aside = project.path(f"data/release/{product}"), _aside(project, product)
    if aside.exists():
        # a run was killed between taking the old release away and putting the new one in its place
        if target.exists():
            shutil.rmtree(aside)
        else:
            shutil.move(aside, target)
    path, record = target / RELEASE_FILE, project.path(f"metrics/release/{product}.json")
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if content["arm"] else None
    if record.is_file() and json.loads(record.read_text(encoding="utf-8"))["released"]:
        raise InputError(
            f"data/release/{product}: missing, though metrics/release/{product}.json names a release; `dvc checkout` "
            "or `dvc pull` brings it (delete that file to begin anew)"
        )
    return None


def _candidate(project: Project, product: str, protocol: dict[str, str]) -> dict[str, Any]:
    params = project.params
    offered = (
        [arm for arm in params.arms if arm != BASELINE_ARM] if params.release.arm == "best" else [params.release.arm]
    )
    entries = [_segment(project, product, arm) for arm in offered]
    best = max(entries, key=lambda entry: entry["mean"].get(params.release.score) or 0.0)
    generators = params.arm(best["arm"]).generators
    sets = {name: folder_digest(project.path(f"data/synthetic/{product}/{name}")) for name in generators}
    return {
        "arm": best["arm"],
        "sets": sets,
        "mean": best["mean"],
        "std": best["std"],
        "protocol": protocol,
        "backbone": params.backbone,
    }


def _put(project: Project, product: str, candidate: dict[str, Any] | None) -> None:
    """Put a release in place, whole; without a candidate an empty one, for DVC asks for the folder."""
    target, aside = project.path(f"data/release/{product}"), _aside(project, product)
    with_files = candidate or {"arm": None, "sets": {}}
    work = aside.with_name(f"{product}.new")
    shutil.rmtree(work, ignore_errors=True)
    for generator in with_files["sets"]:
        shutil.copytree(project.path(f"data/synthetic/{product}/{generator}"), work / generator)
    write_json(work / RELEASE_FILE, with_files)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.move(target, aside)
    shutil.move(work, target)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(project: Project, product: str) -> Path:
    return project.state / "release" / product


def _protocol(project: Project, product: str) -> dict[str, str]:
    """What two scores must share to be comparable: real images, split, settings and code of the segmenter."""
    params = project.params
    settings = {"segment": params.segment.model_dump(mode="json"), "seed": params.seed}
    return {
        "raw": folder_digest(project.path(f"data/raw/{product}")),
        "split": hashlib.sha256(project.path(f"data/split/{product}.parquet").read_bytes()).hexdigest(),
        "settings": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "code": code_digest(find_instance("segment", params, product=product, arm=BASELINE_ARM)),
    }


def _segment(project: Project, product: str, arm: str) -> dict[str, Any]:
    path = project.path(f"metrics/segment/{product}/{arm}.json")
    if not path.is_file():
        raise InputError(f"metrics/segment/{product}/{arm}.json: missing; run the stage segment first")
    return json.loads(path.read_text(encoding="utf-8"))


def _shown(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("arm", "mean", "std")}
