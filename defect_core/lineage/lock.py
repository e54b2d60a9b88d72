"""Reader of dvc.lock: the inputs and settings of the last run of every stage instance. It does not import DVC."""

from typing import Any

import yaml

from defect_core.errors import InputError
from defect_core.project.paths import Project

LOCK_FILE = "dvc.lock"


def read_lock(project: Project) -> dict[str, Any]:
    """Return the entries of dvc.lock by address; empty before the first run."""
    path = project.path(LOCK_FILE)
    return parse_lock(path.read_text(encoding="utf-8")) if path.is_file() else {}


def parse_lock(text: str) -> dict[str, Any]:
    """Return the entries of the text of a dvc.lock by address. Raises InputError for a damaged text."""
    # The pure Python loader needs seconds for a few hundred instances.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(text, Loader=loader) or {}
        stages = content.get("stages") or {}
    except (yaml.YAMLError, AttributeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{LOCK_FILE}: damaged ({reason}); restore it with `git checkout {LOCK_FILE}`") from None
    if not isinstance(stages, dict) or not all(isinstance(entry, dict) for entry in stages.values()):
        raise InputError(
            f"{LOCK_FILE}: damaged (its stages are no mappings); restore it with `git checkout {LOCK_FILE}`"
        )
    return stages


def output_digest(lock: dict[str, Any], address: str, path: str) -> str | None:
    """Return the recorded md5 of one output of an instance; None without a record."""
    for output in lock.get(address, {}).get("outs", []):
        if output["path"] == path:
            return output["md5"]
    return None


def recorded_params(lock: dict[str, Any], address: str) -> dict[str, Any]:
    """Return the settings of the last run of an instance by dotted key; empty without a record."""
    params: dict[str, Any] = lock.get(address, {}).get("params", {}).get("params.yaml", {})
    return params
