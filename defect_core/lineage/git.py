"""What git knows of a project, without touching the working tree. Every call is one child process."""

import subprocess
from typing import Any

from defect_core.project.paths import Project


def git(project: Project, *arguments: str) -> str | None:
    """Standard output of a git command run in the project; None where it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-c", "core.quotePath=off", *arguments], cwd=project.root, capture_output=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def commit_of(project: Project, recorded: str | None = None) -> dict[str, Any]:
    """Where the working tree stands.

    Args:
        recorded: a digest of DVC's.

    Returns:
        `head`: the commit checked out, None outside git or before the first commit; `dirty`: whether a tracked file of
        the project differs from it or an untracked one lies in it; `recorded_in`: the first commit whose dvc.lock
        holds `recorded`.
    """
    head = git(project, "rev-parse", "--verify", "--quiet", "HEAD")
    if head is None:
        return {"head": None, "dirty": None, "recorded_in": None}
    changes = git(project, "status", "--porcelain", "--", ".")
    first = None
    if recorded:
        found = (git(project, "log", "--format=%H", "-S", recorded, "--", "dvc.lock") or "").split()
        first = found[-1] if found else None
    return {"head": head.strip(), "dirty": bool((changes or "").strip()), "recorded_in": first}
