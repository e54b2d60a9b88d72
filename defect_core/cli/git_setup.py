"""The git repository of a project, and what git must ignore."""

import subprocess
from pathlib import Path

from defect_core.errors import InputError
from defect_core.graph.source_links import is_in_git

WITHOUT_GIT = (
    "without git these do not work: `defectory compare`, `defectory average-folds`, `dvc exp`, the commit in "
    "`defectory trace`; `git init && defectory sync` adds git later"
)
_TRACKED = ("params.yaml", "dvc.yaml", "dvc.lock", "data/README.md", "metrics/README.md", ".dvc/config")
_IGNORED = (".defectory/x", ".dvc/cache/x", ".dvc/tmp/x")


def init_git(folder: Path) -> bool:
    """Create a git repository in a folder, unless a repository contains the folder and does not ignore it.

    Returns:
        Whether a repository was created.

    Raises:
        InputError: git is not installed, or refuses.
    """
    if is_in_git(folder) and not is_ignored(folder, "."):
        return False
    try:
        done = subprocess.run(["git", "init", "--quiet"], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError("git: not installed; install it, or use `defectory init --no-git`") from None
    if done.returncode:
        raise InputError(f"{folder}: git init failed: {' '.join(done.stderr.split())}; or use --no-git")
    return True


def describe_git(folder: Path) -> str:
    """Return one line about git in a project: its repository, or what does not work and what to do."""
    if not is_in_git(folder):
        return "no repository; " + WITHOUT_GIT
    problems = ignore_problems(folder)
    if problems:
        return problems[0]
    top = git_toplevel(folder)
    return "repository" if top == folder.resolve() else f"part of the repository {top}"


def ignore_problems(folder: Path) -> list[str]:
    """Return what git ignores and should not, and the reverse; one line each."""
    problems = [
        f"{path}: git ignores it, but it must be committed; change the .gitignore that says so"
        for path in _TRACKED
        if is_ignored(folder, path)
    ]
    problems += [
        f"{Path(path).parent}: git does not ignore it; add `{Path(path).parent}/` to .gitignore"
        for path in _IGNORED
        if not is_ignored(folder, path)
    ]
    return problems


def is_ignored(folder: Path, path: str) -> bool:
    """Return whether git ignores a path, which need not exist."""
    done = subprocess.run(["git", "check-ignore", "-q", path], cwd=folder, capture_output=True, check=False)
    return done.returncode == 0


def git_toplevel(folder: Path) -> Path | None:
    """Return the root of the repository that contains a folder; None without one."""
    command = ["git", "rev-parse", "--show-toplevel"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return Path(done.stdout.strip()).resolve() if done.returncode == 0 else None


def add_lines(path: Path, text: str) -> None:
    """Append the lines of a text that a file does not have yet; the file is created if needed."""
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    missing = [line for line in text.splitlines() if line not in old.splitlines()]
    if missing:
        separator = "" if not old or old.endswith("\n") else "\n"
        path.write_text(old + separator + "\n".join(missing) + "\n", encoding="utf-8")
