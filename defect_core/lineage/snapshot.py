"""A project as it stood at a git revision or DVC experiment, read from git without a checkout; or as it stands now."""

import configparser
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from defect_core.errors import InputError
from defect_core.lineage.git import git
from defect_core.lineage.lock import LOCK_FILE, parse_lock
from defect_core.project.paths import PARAMS_FILE, Project

WORKSPACE = "workspace"
METRICS = ("metrics/segment/", "metrics/segment_unified/", "metrics/classify/", "metrics/score/")


@dataclass(frozen=True)
class Snapshot:
    """What a comparison needs of one revision.

    Attributes:
        name: as the user gave it.
        commit: None for the working tree.
        params: params.yaml as it stands in the file.
        lock: entries of dvc.lock by address, empty where there is none.
        metrics: parsed metrics of scores and segmenters by path.
        tree: git's object of every tracked file by path; a file of the working tree that differs from the last commit
            has "changed" in its place.
    """

    name: str
    commit: str | None
    params: dict[str, Any]
    lock: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    tree: dict[str, str] = field(default_factory=dict)


def open_snapshot(project: Project, name: str) -> Snapshot:
    """Read a revision.

    Args:
        name: anything git understands, the name of a DVC experiment, or `workspace` for the files as they lie here.

    Raises:
        InputError: no such revision, or it holds no project.
    """
    if name == WORKSPACE:
        return _workspace(project)
    commit = _resolve(project, name)
    tree = _tree(project, commit)
    if PARAMS_FILE not in tree:
        raise InputError(f"{name}: holds no {PARAMS_FILE} in this folder; expected a revision of this project")
    wanted = [path for path in tree if path in (PARAMS_FILE, LOCK_FILE) or _is_metrics(path)]
    texts = _read_objects(project, {path: tree[path] for path in wanted})
    return Snapshot(
        name=name,
        commit=commit,
        params=_yaml(texts[PARAMS_FILE], name),
        lock=parse_lock(texts[LOCK_FILE]) if LOCK_FILE in texts else {},
        metrics={path: json.loads(text) for path, text in sorted(texts.items()) if _is_metrics(path)},
        tree=tree,
    )


def cache_file(project: Project, md5: str) -> Path:
    """Where DVC's cache keeps the object of an md5 (`….dir` for the list of a folder); it need not be there."""
    folder = project.path(".dvc/cache")
    for name in ("config", "config.local"):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        try:
            parser.read(project.path(f".dvc/{name}"), encoding="utf-8")
        except configparser.Error:
            continue
        given = parser.get("cache", "dir", fallback=None)
        if given:
            folder = project.path(".dvc") / given
    return folder / "files" / "md5" / md5[:2] / md5[2:]


def cached_listing(project: Project, md5: str | None) -> dict[str, str] | None:
    """md5 of every file of a folder by relative path; None where the cache does not hold the folder's list."""
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
        params=project.given,
        lock=parse_lock(lock.read_text(encoding="utf-8")) if lock.is_file() else {},
        metrics={path.relative_to(project.root).as_posix(): json.loads(path.read_text()) for path in metrics},
        tree=tree,
    )


def _resolve(project: Project, name: str) -> str:
    found = None if name.startswith("-") else git(project, "rev-parse", "--verify", "--quiet", name + "^{commit}")
    if found is None:
        refs = git(project, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or ""
        found = next((line.split()[0] for line in refs.splitlines() if line.endswith("/" + name)), None)
    if found is None:
        raise InputError(
            f"{name}: neither a git revision nor a DVC experiment of this project; expected one, or `{WORKSPACE}`"
        )
    return found.strip()


def _tree(project: Project, commit: str) -> dict[str, str]:
    """Objects of all files of a commit, paths relative to the project; empty outside git."""
    listed = git(project, "ls-tree", "-r", "-z", commit) or ""
    found = {}
    for entry in filter(None, listed.split("\0")):
        facts, _, path = entry.partition("\t")
        found[path] = facts.split()[2]
    return found


def _read_objects(project: Project, objects: dict[str, str]) -> dict[str, str]:
    """The texts of git objects, all in one child process."""
    asked = "".join(f"{name}\n" for name in objects.values())
    done = subprocess.run(
        ["git", "cat-file", "--batch"], cwd=project.root, input=asked.encode(), capture_output=True, check=True
    )
    texts, data, start = {}, done.stdout, 0
    for path in objects:
        end = data.index(b"\n", start)
        size = int(data[start:end].split()[2])
        texts[path] = data[end + 1 : end + 1 + size].decode("utf-8")
        start = end + 1 + size + 1
    return texts


def _is_metrics(path: str) -> bool:
    return path.endswith(".json") and path.startswith(METRICS)


def _yaml(text: str, name: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{name}:{PARAMS_FILE}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{name}:{PARAMS_FILE}: expected a mapping of settings, found {type(content).__name__}")
    return content
