"""State of a project at a git revision or DVC experiment, read without a checkout, or of its working tree."""

import configparser
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defect_core.data.guarded import read_json
from defect_core.errors import InputError
from defect_core.lineage.git import git
from defect_core.lineage.lock import LOCK_FILE, parse_lock
from defect_core.project.params_file import parse_params
from defect_core.project.paths import PARAMS_FILE, Project

WORKSPACE = "workspace"
METRICS = ("metrics/segment/", "metrics/segment_unified/", "metrics/classify/", "metrics/score/")


@dataclass(frozen=True)
class Snapshot:
    """State of a project at one revision.

    Attributes:
        name: as the user wrote it.
        commit: None for the working tree.
        params: content of params.yaml, without defaults.
        lock: entries of dvc.lock by address; empty without a dvc.lock.
        metrics: content of the metrics files by path.
        tree: git object of every tracked file by path. A file of the working tree that differs from the last commit
            has "changed" instead.
    """

    name: str
    commit: str | None
    params: dict[str, Any]
    lock: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    tree: dict[str, str] = field(default_factory=dict)


def open_snapshot(project: Project, name: str) -> Snapshot:
    """Return the state of a project at a revision.

    Args:
        project: its folder is in a git repository.
        name: a git revision, the name of a DVC experiment, or `workspace` for the working tree.

    Raises:
        InputError: the revision does not exist, or has no project in this folder.
    """
    if name == WORKSPACE:
        return _workspace(project)
    commit = _resolve(project, name)
    tree = _tree(project, commit)
    if PARAMS_FILE not in tree:
        raise InputError(f"{name}: {PARAMS_FILE} is missing in this folder; expected a revision of this project")
    paths = [path for path in tree if path in (PARAMS_FILE, LOCK_FILE) or _is_metrics(path)]
    texts = _read_objects(project, {path: tree[path] for path in paths})
    return Snapshot(
        name=name,
        commit=commit,
        params=parse_params(texts[PARAMS_FILE], f"{name}:{PARAMS_FILE}"),
        lock=parse_lock(texts[LOCK_FILE]) if LOCK_FILE in texts else {},
        metrics={path: json.loads(text) for path, text in sorted(texts.items()) if _is_metrics(path)},
        tree=tree,
    )


def cache_file(project: Project, md5: str) -> Path:
    """Return the path of an object in DVC's cache by its md5 (`….dir` for the list of a folder); it may not exist."""
    folder = project.path(".dvc/cache")
    for name in ("config", "config.local"):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        try:
            parser.read(project.path(f".dvc/{name}"), encoding="utf-8")
        except configparser.Error:
            continue
        configured = parser.get("cache", "dir", fallback=None)
        if configured:
            folder = project.path(".dvc") / configured
    return folder / "files" / "md5" / md5[:2] / md5[2:]


def cached_listing(project: Project, md5: str | None) -> dict[str, str] | None:
    """Return the md5 of every file of a folder by relative path; None where DVC's cache lacks the folder's list."""
    path = cache_file(project, md5) if md5 and md5.endswith(".dir") else None
    if path is None or not path.is_file():
        return None
    return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_text(encoding="utf-8"))}


def _workspace(project: Project) -> Snapshot:
    lock = project.path(LOCK_FILE)
    tree = _tree(project, "HEAD")
    changes = git(project, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", ".") or ""
    prefix = (git(project, "rev-parse", "--show-prefix") or "").strip()
    for entry in filter(None, changes.split("\0")):
        path = entry[3:].removeprefix(prefix)
        if project.path(path).exists():
            tree[path] = "changed"
        else:
            tree.pop(path, None)
    metrics = sorted(path for kind in METRICS for path in project.path(kind).rglob("*.json"))
    return Snapshot(
        name=WORKSPACE,
        commit=None,
        params=project.raw_params,
        lock=parse_lock(lock.read_text(encoding="utf-8")) if lock.is_file() else {},
        metrics={path.relative_to(project.root).as_posix(): read_json(path) for path in metrics},
        tree=tree,
    )


def _resolve(project: Project, name: str) -> str:
    commit = None if name.startswith("-") else git(project, "rev-parse", "--verify", "--quiet", name + "^{commit}")
    if commit is None:
        refs = git(project, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or ""
        commit = next((line.split()[0] for line in refs.splitlines() if line.endswith("/" + name)), None)
    if commit is None:
        raise InputError(
            f"{name!r} is neither a git revision nor a DVC experiment of this project; expected one or `{WORKSPACE}`"
        )
    return commit.strip()


def _tree(project: Project, commit: str) -> dict[str, str]:
    """Return the git objects of all files of a commit by path relative to the project; empty outside git."""
    listed = git(project, "ls-tree", "-r", "-z", commit) or ""
    objects = {}
    for entry in filter(None, listed.split("\0")):
        mode_type_object, _, path = entry.partition("\t")
        objects[path] = mode_type_object.split()[2]
    return objects


def _read_objects(project: Project, objects: dict[str, str]) -> dict[str, str]:
    """Return the texts of git objects by path, read by one child process."""
    names = "".join(f"{name}\n" for name in objects.values())
    process = subprocess.run(
        ["git", "cat-file", "--batch"], cwd=project.root, input=names.encode(), capture_output=True, check=True
    )
    texts, data, start = {}, process.stdout, 0
    for path in objects:
        end = data.index(b"\n", start)
        size = int(data[start:end].split()[2])
        texts[path] = data[end + 1 : end + 1 + size].decode("utf-8")
        start = end + 1 + size + 1
    return texts


def _is_metrics(path: str) -> bool:
    return path.endswith(".json") and path.startswith(METRICS)
