"""Creating a project, and requesting new samples."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from defect_core.cli.git_setup import add_lines, git_toplevel, init_git
from defect_core.cli.protocols import apply_protocol
from defect_core.cli.transaction import edited_params
from defect_core.data.problems import ProblemLog
from defect_core.errors import InputError, suggest
from defect_core.graph.dvcfile import CODE_FILE, sync
from defect_core.graph.local import check_known, child_environment
from defect_core.graph.source_links import DVC_CONFIG, DVC_IGNORES
from defect_core.project.paths import PARAMS_FILE, Project

PAPER_PROTOCOLS = {
    "paper-anomaly-diffusion": "anomalydiffusion",
    "paper-cadiff": "cadiff",
    "paper-defectdiffu": "defectdiffu",
    "paper-disentangled-inversion": "ddim-inversion",
    "paper-seas": "seas",
}
"""Presets that give a method as its paper has it, and the evaluation protocol that belongs to each."""
PRESETS = ("demo", "laptop", "full", *PAPER_PROTOCOLS)
TEMPLATES = {
    "workspace.yaml": "workspace.yaml",
    "data-README.md": "data/README.md",
    "dvcignore": ".dvcignore",
    "gitignore": ".gitignore",
    "metrics-README.md": "metrics/README.md",
}
EXTENDED = (".gitignore", ".dvcignore")
"""Files that a folder may have before; the missing lines are added."""
_DVC_SETTINGS = "[core]\n    analytics = false\n    check_update = false\n"


def init_project(folder: Path, preset: str = "laptop", with_git: bool = True) -> Project:
    """Create an empty project with the settings of a preset, in a new folder or in one with files.

    `.gitignore` and `.dvcignore` are extended; no other file is changed.

    Args:
        folder: the folder of the project.
        preset: name of the preset.
        with_git: whether to create a git repository, or to join the one that contains the folder.

    Raises:
        InputError: the preset is unknown, a file would be overwritten, or git is not installed; nothing has changed.
    """
    if preset not in PRESETS:
        raise InputError(f"preset {preset!r} is unknown; {suggest(preset, PRESETS)}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; expected a folder")
    templates = {f"presets/{preset}.yaml": PARAMS_FILE, **TEMPLATES}
    problems = ProblemLog()
    for target in (*templates.values(), "dvc.yaml", CODE_FILE):
        if (folder / target).exists() and target not in EXTENDED:
            problems.add(folder / target, "exists and would be overwritten", "move it away, or choose another folder")
    problems.raise_if_any()
    had = {
        path
        for path in (folder, folder / ".git", folder / ".dvc", folder / "data", folder / "metrics")
        if path.exists()
    }
    folder.mkdir(parents=True, exist_ok=True)
    project = Project(folder)
    try:
        if with_git:
            init_git(folder)
        _init_dvc(project)
    except (InputError, RuntimeError):
        for path in (folder / ".dvc", folder / ".git", folder):
            if path not in had:
                shutil.rmtree(path, ignore_errors=True)
        raise
    for template, target in templates.items():
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (files("defect_core.cli") / "templates" / template).read_text(encoding="utf-8")
        if target in EXTENDED:
            add_lines(path, text)
        else:
            path.write_text(text, encoding="utf-8")
    sync(project)
    if preset in PAPER_PROTOCOLS:
        apply_protocol(project, PAPER_PROTOCOLS[preset])
    return project


def request_regeneration(project: Project, products: Sequence[str] = (), generators: Sequence[str] = ()) -> list[str]:
    """Request new samples: raise the counter in `regenerations` of params.yaml, from which their seed is derived.

    Args:
        project: the project.
        products: which products; all if none is named.
        generators: which generators; all if none is named.

    Returns:
        Addresses of the instances of `synthesize` that are now stale.

    Raises:
        InputError: an unknown product or generator.
    """
    params = project.params
    check_known(params, products, generators)
    addresses = []
    with edited_params(project) as content:
        regenerations = content.setdefault("regenerations", {})
        for product in products or params.products:
            by_generator = regenerations.setdefault(product, {})
            for generator in generators or params.generators:
                by_generator[generator] = params.regeneration(product, generator) + 1
                addresses.append(f"synthesize@{product}-{generator}")
    sync(Project(project.root))
    return addresses


def _init_dvc(project: Project) -> None:
    """Run `dvc init`, in the git repository that contains the project, or without git; an existing `.dvc` stays."""
    if project.path(".dvc").is_dir():
        return
    toplevel = git_toplevel(project.root)
    flags = ["--no-scm"]
    if toplevel is not None:
        flags = [] if toplevel == project.root else ["--subdir"]
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "init", "--quiet", *flags],
        cwd=project.root,
        env=child_environment(project),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"dvc init failed: {done.stderr.strip()}")
    config = project.path(DVC_CONFIG)
    text = config.read_text()
    config.write_text(text.replace("[core]\n", _DVC_SETTINGS, 1) if "[core]" in text else text + _DVC_SETTINGS)
    add_lines(project.path(".dvc/.gitignore"), DVC_IGNORES)  # DVC writes it only in a git repository.
