"""dvc.lock as plain YAML: what DVC last ran, on which inputs, with which settings. Calls no DVC."""

from typing import Any

import yaml

from defect_core.project.paths import Project

LOCK_FILE = "dvc.lock"


def read_lock(project: Project) -> dict[str, Any]:
    """The entries of dvc.lock by address; empty before the first run."""
    path = project.path(LOCK_FILE)
    return parse_lock(path.read_text(encoding="utf-8")) if path.is_file() else {}


def parse_lock(text: str) -> dict[str, Any]:
    """The entries of a dvc.lock by address."""
    # the C loader: a lock of some hundred instances takes the pure one seconds
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return (yaml.load(text, Loader=loader) or {}).get("stages") or {}  # noqa: S506 - a safe loader


def output_digest(lock: dict[str, Any], address: str, path: str) -> str | None:
    """The md5 of one output of an instance; None where DVC has none on record."""
    for output in lock.get(address, {}).get("outs", []):
        if output["path"] == path:
            return output["md5"]
    return None


def recorded_params(lock: dict[str, Any], address: str) -> dict[str, Any]:
    """The settings that an instance last ran with, by dotted key; empty where DVC has none on record."""
    found: dict[str, Any] = lock.get(address, {}).get("params", {}).get("params.yaml", {})
    return found
