"""The code that a stage depends on, computed from its imports, and its digest.

A stage depends on `defect_core.stages.<name>`, on the generator that it runs, and on every module that these import,
directly or not. A change of one of these files makes the stage stale.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path

from defect_core.generators.registry import BUILT_IN, generator_code_path
from defect_core.graph.table import Stage

# Modules that carry values, messages and paths but decide no result. DVC tracks the parameters themselves.
CARRIERS = frozenset(
    {
        "defect_core.errors",
        "defect_core.progress",
        "defect_core.settings",
        "defect_core.project.params",
        "defect_core.project.paths",
        "defect_core.graph.instances",
        "defect_core.graph.table",
        "defect_core.generators.registry",
    }
)
# Files that a module reads from the package.
PACKAGE_DATA = {
    "defect_core.backbones.load": ("defect_core/backbones/embedded",),
    "defect_core.report.page": ("defect_core/report/page.html",),
}
DIGESTED_SUFFIXES = (".py", ".json", ".html", ".css", ".safetensors")


def code_root() -> Path:
    """Return the folder that contains the packages; code paths are relative to it."""
    return Path(__file__).resolve().parents[2]


def stage_code(stage: Stage, generator: str | None = None) -> list[str]:
    """Return the files and folders of code that a stage depends on, relative to `code_root`, sorted.

    Args:
        stage: a row of the stage table.
        generator: name of the generator that the instance runs; None for a stage without one.
    """
    paths = list(shared_code(stage))
    if stage.runs_generator and generator is not None:
        paths.append(generator_code_path(generator))
    return sorted(set(paths))


@lru_cache(maxsize=64)
def shared_code(stage: Stage) -> tuple[str, ...]:
    """Return the code of a stage that is the same for all instances.

    For a stage that runs a generator this includes what any built-in generator imports outside its own package, so
    that a project can add a generator without making the others stale.
    """
    start = [f"defect_core.stages.{stage.name}"]
    packages = tuple(BUILT_IN.values()) if stage.runs_generator else ()
    start += [f"{package}.{part}" for package in packages for part in ("config", "generator")]
    modules = {
        module
        for module in reachable_modules(start)
        if not any(module == package or module.startswith(package + ".") for package in packages)
    }
    paths = {_module_path(module) for module in modules}
    for module in modules:
        paths.update(PACKAGE_DATA.get(module, ()))
    return tuple(_collapse_folders(paths))


def code_digest(paths: Iterable[str]) -> str:
    """Return the first 16 digits of a SHA-256 over the names and bytes of code files below `code_root`."""
    digest = hashlib.sha256()
    root = code_root()
    for relative in sorted(paths):
        path = root / relative
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in DIGESTED_SUFFIXES:
                digest.update(file.relative_to(root).as_posix().encode() + b"\0")
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def reachable_modules(start: Iterable[str]) -> set[str]:
    """Return the modules of `defect_core` that some modules import, directly or not, without carriers and packages."""
    found: set[str] = set()
    pending = list(start)
    while pending:
        module = pending.pop()
        if module in found or module in CARRIERS:
            continue
        found.add(module)
        pending += _imported_modules(module)
    return found


@cache
def _imported_modules(module: str) -> tuple[str, ...]:
    """Return the modules that one module imports, at the top or inside functions; a package stands for no code."""
    names: set[str] = set()
    for node in _runtime_nodes(ast.parse((code_root() / _module_path(module)).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(sorted(name for name in names if name.startswith("defect_core.") and _is_module(name)))


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all nodes below it, without the blocks that only type checkers read."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield from _runtime_nodes(child)


def _module_path(module: str) -> str:
    return module.replace(".", "/") + ".py"


def _is_module(name: str) -> bool:
    return (code_root() / _module_path(name)).is_file()


def _collapse_folders(paths: set[str]) -> list[str]:
    """Replace the files of a folder by the folder if all its files are modules among the paths."""
    collapsed = set(paths)
    for folder in sorted({Path(path).parent for path in paths if path.endswith(".py")}, key=lambda p: -len(p.parts)):
        files = {
            file.relative_to(code_root()).as_posix()
            for file in (code_root() / folder).rglob("*")
            if file.is_file() and file.suffix not in (".pyc", ".md") and file.name != "__init__.py"
        }
        if len(files) > 1 and files <= paths:
            collapsed = {path for path in collapsed if not path.startswith(f"{folder.as_posix()}/")}
            collapsed.add(folder.as_posix())
    return sorted(collapsed)
