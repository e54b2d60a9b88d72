"""Links to the sources outside the project, and what DVC's configuration says about them and about git.

A source outside the project is a dependency `remote://defectory-sources/<product>`. The remote is the folder
`.defectory/sources`, where each product has a link to its source. `.dvc/config` has the relative path of that folder.
`.dvc/config.local`, which git ignores, has its absolute path: DVC needs it in the temporary workspaces of experiments.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from defect_core.data.config import SOURCE_REMOTE, is_outside
from defect_core.data.files import write_text
from defect_core.project.paths import Project

DVC_CONFIG, LOCAL_CONFIG = ".dvc/config", ".dvc/config.local"
DVC_IGNORES = "/config.local\n/tmp\n/cache\n"
LINKS = "sources"
"""Folder of the links inside `.defectory`."""


def link_sources(project: Project) -> list[str]:
    """Create the links of all sources outside the project, remove others, and configure the remote.

    Returns:
        The names of the configuration files that changed.
    """
    wanted = {
        product: source
        for product in project.params.products
        if (source := project.source_path(product)) is not None
        and is_outside(project.params.sources[product].path or "")
    }
    folder = project.state / LINKS
    if not wanted and not folder.is_dir():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    for link in folder.iterdir():
        if link.name not in wanted:
            _remove(link)
    for product, source in wanted.items():
        _make_link(folder / product, source)
    if not wanted or not project.path(".dvc").is_dir():
        return []
    urls = {DVC_CONFIG: f"../.defectory/{LINKS}", LOCAL_CONFIG: str(folder)}
    return [name for name, url in urls.items() if _set_remote(project.path(name), url)]


def enable_git(project: Project) -> bool:
    """Remove `no_scm` from the configuration of DVC if the project is in git; DVC needs git for experiments.

    Returns:
        Whether the configuration changed.
    """
    path = project.path(DVC_CONFIG)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    without = re.sub(r"(?im)^\s*no_scm\s*=\s*true\s*\n", "", text)
    if without == text or not is_in_git(project.root):
        return False
    path.write_text(without, encoding="utf-8")
    return True


def is_in_git(folder: Path) -> bool:
    """Return whether a folder is in the work tree of a git repository; False without git."""
    command = ["git", "rev-parse", "--is-inside-work-tree"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0 and done.stdout.strip() == b"true"


def _make_link(link: Path, source: Path) -> None:
    if link.is_symlink() and os.readlink(link) == str(source):
        return
    _remove(link)
    link.symlink_to(source)


def _remove(link: Path) -> None:
    """Remove a link, or what a copy of the project made of it."""
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    else:
        link.unlink(missing_ok=True)


def _set_remote(path: Path, url: str) -> bool:
    section = f"['remote \"{SOURCE_REMOTE}\"']\n    url = {_quote_url(url)}\n"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if section in text:
        return False
    old = re.compile(rf"\['remote \"{re.escape(SOURCE_REMOTE)}\"'\]\n(?:[ \t]+.*\n)*")
    text = old.sub("", text)
    write_text(path, text + ("" if not text or text.endswith("\n") else "\n") + section)
    return True


def _quote_url(url: str) -> str:
    """Return a value of DVC's configuration format; a comma, `#` or blank at an end would be read otherwise."""
    return url if re.fullmatch(r"[\w./-]+", url) else '"' + url.replace('"', '\\"') + '"'
