"""A mutation, and how it is applied to a copy of the source tree."""

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("defect_core", "pipelines", "tests", "benchmarks", "docs", "pyproject.toml", "README.md", "params.yaml")


@dataclass(frozen=True)
class Mutation:
    """A fault in one file.

    Attributes:
        component: component of the method's table that is broken, such as `masked noise loss`.
        fault: what is wrong, in a few words.
        file: the file, relative to the repository.
        old: text that occurs exactly once in the file.
        new: text that replaces it.
        test: `tests/...py::test_name` that must fail.
    """

    component: str
    fault: str
    file: str
    old: str
    new: str
    test: str

    def text(self) -> str:
        """Return the file with the fault.

        Raises:
            ValueError: `old` does not occur exactly once, or the result is not Python.
        """
        source = (ROOT / self.file).read_text(encoding="utf-8")
        if source.count(self.old) != 1:
            raise ValueError(f"{self.file}: {self.old!r} occurs {source.count(self.old)} times; expected once")
        mutated = source.replace(self.old, self.new)
        compile(mutated, self.file, "exec")
        return mutated


def link_tree(target: Path) -> None:
    """Create the source tree in a folder, with links in place of files."""
    for name in COPIED:
        source = ROOT / name
        for path in [source] if source.is_file() else source.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                link = target / path.relative_to(ROOT)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)


def apply(mutation: Mutation, target: Path) -> None:
    """Replace the link of the mutated file by the file with the fault."""
    path = target / mutation.file
    path.unlink()
    path.write_text(mutation.text(), encoding="utf-8")


def revert(mutation: Mutation, target: Path) -> None:
    """Replace the file with the fault by the link again."""
    os.replace(_link(ROOT / mutation.file, target / f"{mutation.file}.link"), target / mutation.file)


def _link(source: Path, link: Path) -> Path:
    link.symlink_to(source)
    return link
