"""release: the release gate, into `data/release/<product>`, with its decision in `metrics/release/`.

DVC keeps the outputs of this stage in place before a run (`persist`). So the last release is there for the comparison,
and it stays, byte for byte, if nothing better is offered.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from defect_core.data.files import folder_digest, write_json
from defect_core.errors import InputError
from defect_core.evaluation.release import ReleaseConfig, decide
from defect_core.graph.code import code_digest
from defect_core.graph.instances import find_instance
from defect_core.project.arm_data import load_arm_data
from defect_core.project.arms import BASELINE_ARM, parse_arm
from defect_core.project.device import default_device
from defect_core.project.paths import Project, synthetic_folder

RELEASE_FILE = "release.json"


def run(project: Project, product: str) -> None:
    """Run the stage for one product."""
    config = project.params.release
    if config is None:
        raise InputError("params.yaml: release: missing; the stage release needs this section")
    last = read_release(project, product)
    protocol = _protocol(project, product)
    candidate = _candidate(project, product, config, protocol)
    baseline = _segment_metrics(project, product, BASELINE_ARM)
    reference = last
    if last and last["sets"] != candidate["sets"] and last["protocol"] != protocol:
        # Scores on other images, settings or code cannot be compared: the last release is measured again.
        reference = last | _measure_again(project, product, last)
    if last and last["sets"] == candidate["sets"]:
        promoted, reason = False, "the set that is offered is the one already released"
    else:
        promoted, reason = decide(candidate, reference, baseline, config.score, BASELINE_ARM)
    if promoted or last is None:
        _write_release(project, product, candidate if promoted else None)
    released = candidate if promoted else reference
    write_json(
        project.path(f"metrics/release/{product}.json"),
        {
            "product": product,
            "decision": "promoted" if promoted else "kept",
            "reason": reason,
            "released": (candidate if promoted else last or {}).get("arm"),
            "candidate": _summary(candidate),
            "last_release": reference and _summary(reference),
            "measured_again": reference is not last,
            "real_only": _summary(baseline),
            "mean": _summary(released)["mean"] if released else {},
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


def _measure_again(project: Project, product: str, last: dict[str, Any]) -> dict[str, Any]:
    """Return `mean` and `std` of the last release under the present protocol."""
    from defect_core.evaluation.segmentation.measure import measure_segmenter, resolve_config

    folders = [project.path(f"data/release/{product}") / generator for generator in last["sets"]]
    data, _ = load_arm_data(project, product, folders)
    fraction = parse_arm(last["arm"], tuple(last["sets"])).fraction
    config = resolve_config(project.params.segment, data.defect_types, fraction)
    measured = measure_segmenter(data, config, project.params.seed, f"{product} last release", default_device())
    return {"mean": measured["mean"], "std": measured["std"]}


def _candidate(project: Project, product: str, config: ReleaseConfig, protocol: dict[str, str]) -> dict[str, Any]:
    """Return the arm that is offered, with the digests of its synthetic sets."""
    params = project.params
    offered = [arm for arm in params.arms if arm != BASELINE_ARM] if config.arm == "best" else [config.arm]
    entries = [_segment_metrics(project, product, arm) for arm in offered]
    best = max(entries, key=lambda entry: entry["mean"].get(config.score) or 0.0)
    generators = params.arm(best["arm"]).generators
    return {
        "arm": best["arm"],
        "sets": {name: folder_digest(project.path(synthetic_folder(product, name))) for name in generators},
        "mean": best["mean"],
        "std": best["std"],
        "protocol": protocol,
        "backbone": params.backbone,
    }


def _write_release(project: Project, product: str, candidate: dict[str, Any] | None) -> None:
    """Write a complete release; without a candidate an empty one, because DVC expects the folder."""
    target, old = project.path(f"data/release/{product}"), _old_release(project, product)
    content = candidate or {"arm": None, "sets": {}}
    new = old.with_name(f"{product}.new")
    shutil.rmtree(new, ignore_errors=True)
    for generator in content["sets"]:
        shutil.copytree(project.path(synthetic_folder(product, generator)), new / generator)
    write_json(new / RELEASE_FILE, content)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.move(target, old)
    shutil.move(new, target)
    shutil.rmtree(old, ignore_errors=True)


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


def _segment_metrics(project: Project, product: str, arm: str) -> dict[str, Any]:
    path = project.path(f"metrics/segment/{product}/{arm}.json")
    if not path.is_file():
        raise InputError(f"metrics/segment/{product}/{arm}.json: missing; run the stage segment first")
    return json.loads(path.read_text(encoding="utf-8"))


def _summary(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("arm", "mean", "std")}
