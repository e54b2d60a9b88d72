"""Read-only git commands in a project. Each call is one child process."""

import subprocess
from typing import Any

from defect_core.project.paths import Project


def git(project: Project, *arguments: str) -> str | None:
    """Return the standard output of a git command in the project; None where it fails or git is not installed."""
    try:
        done = subprocess.run(
            ["git", "-c", "core.quotePath=off", *arguments], cwd=project.root, capture_output=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def commit_of(project: Project, recorded: str | None = None) -> dict[str, Any]:
    """Return the commit of the working tree.

    Args:
        project: may be outside git.
        recorded: a digest in dvc.lock.

    Returns:
        `head`: the commit, None outside git or before the first commit; `dirty`: whether the project has changed or
        untracked files; `recorded_in`: the first commit whose dvc.lock contains `recorded`.
    """
    head = git(project, "rev-parse", "--verify", "--quiet", "HEAD")
    if head is None:
        return {"head": None, "dirty": None, "recorded_in": None}
    changes = git(project, "status", "--porcelain", "--", ".")
    first = None
    if recorded:
        commits = (git(project, "log", "--format=%H", "-S", recorded, "--", "dvc.lock") or "").split()
        first = commits[-1] if commits else None
    return {"head": head.strip(), "dirty": bool((changes or "").strip()), "recorded_in": first}
