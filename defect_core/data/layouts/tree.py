"""The files and folders of a source, found without opening a file.

Names are compared in Unicode form NFC and without regard to case, because one disk composes accents and another not.
"""

import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from defect_core.data.problems import ProblemLog
from defect_core.data.records import natural_key

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISCHR, "a character device"),
)
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx")


def name_key(name: str) -> str:
    """Return the form in which names of files and folders are compared."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@dataclass
class Folder:
    """A folder of a source.

    Attributes:
        path: its path.
        parts: names of the folders from the source to this one; empty for the source itself.
        files: its regular files, in natural order of the names.
        folders: its folders by name, in natural order.
    """

    path: Path
    parts: tuple[str, ...] = ()
    files: list[Path] = field(default_factory=list)
    folders: dict[str, "Folder"] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the name of the folder."""
        return self.path.name

    @property
    def relative(self) -> str:
        """Return the path relative to the source; `.` for the source itself."""
        return "/".join(self.parts) or "."

    def find(self, relative: str) -> "Folder | None":
        """Return a folder below this one by its relative path, or None; an exact name wins over a similar one."""
        found: Folder | None = self
        for part in Path(relative).parts:
            if found is None:
                return None
            exact = found.folders.get(part)
            key = name_key(part)
            found = exact or next((child for name, child in found.folders.items() if name_key(name) == key), None)
        return found

    def find_file(self, name: str) -> Path | None:
        """Return a file of this folder by its name, or None; an exact name wins over a similar one."""
        similar = [file for file in self.files if name_key(file.name) == name_key(name)]
        return next((file for file in similar if file.name == name), similar[0] if similar else None)

    def all_folders(self) -> Iterator["Folder"]:
        """Yield this folder and all folders below it, in natural order."""
        waiting: list[Folder] = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting.extend(reversed(folder.folders.values()))

    def all_files(self) -> Iterator[Path]:
        """Yield the files of this folder and of all folders below it."""
        for folder in self.all_folders():
            yield from folder.files

    def remove_files(self, removed: set[Path]) -> None:
        """Remove files from this folder and from all folders below it."""
        for folder in self.all_folders():
            folder.files = [file for file in folder.files if file not in removed]


def scan_source(
    root: Path, image_suffixes: tuple[str, ...], problems: ProblemLog
) -> tuple[Folder, list[tuple[Path, str]]]:
    """Return the folders and regular files of a source, and what is left out, each with the reason.

    Links to files and to folders outside the source are followed. Hidden and system files, links to folders that are
    read elsewhere, pipes, sockets and devices are left out. No file is opened.

    Args:
        root: the folder of the source.
        image_suffixes: a broken link, pipe or device with one of these suffixes is a problem, because an image with
            this name would be missing.
        problems: collects these, and folders that cannot be read.
    """
    scan = _Scan(root, tuple(suffix.lower() for suffix in image_suffixes), problems)
    tree = Folder(root)
    waiting = [(tree, "")]
    while waiting:
        folder, reason = waiting.pop()
        for child, why in scan.read_folder(folder, reason):
            waiting.append((child, why))
    for folder in tree.all_folders():
        folder.files.sort(key=lambda file: natural_key(file.name))
        folder.folders = {name: folder.folders[name] for name in sorted(folder.folders, key=natural_key)}
    return tree, sorted(scan.ignored, key=lambda pair: natural_key(str(pair[0])))


class _Scan:
    """State of one scan."""

    def __init__(self, root: Path, image_suffixes: tuple[str, ...], problems: ProblemLog) -> None:
        self.root = root
        self.real_root = Path(os.path.realpath(root))
        self.image_suffixes = image_suffixes
        self.problems = problems
        self.ignored: list[tuple[Path, str]] = []
        self.linked: set[str] = set()

    def read_folder(self, folder: Folder, reason: str) -> Iterator[tuple[Folder, str]]:
        """Add the entries of a folder to it, or to the ignored files if `reason` is not empty; yield its folders."""
        try:
            with os.scandir(folder.path) as entries:
                children = list(entries)
        except OSError as error:
            self.problems.add(folder.path, f"cannot be read ({error.strerror})", "expected a folder you may list")
            return
        for entry in children:
            why = reason or _hidden_reason(entry.name)
            path = folder.path / entry.name
            try:
                status = os.stat(entry.path)
            except OSError as error:
                self._refuse(path, why, f"a link without a target ({error.strerror})")
                continue
            if stat.S_ISDIR(status.st_mode):
                link_reason = self._link_reason(entry)
                if link_reason:
                    self.ignored.append((path, why or link_reason))
                    continue
                child = Folder(path, (*folder.parts, entry.name))
                if not why:
                    folder.folders[entry.name] = child
                yield child, why
            elif stat.S_ISREG(status.st_mode):
                if why:
                    self.ignored.append((path, why))
                else:
                    folder.files.append(path)
            else:
                kind = next((name for check, name in _KINDS if check(status.st_mode)), "no regular file")
                self._refuse(path, why, kind)

    def _link_reason(self, entry: "os.DirEntry[str]") -> str:
        """Return why a link to a folder is not followed; empty for a folder and for a link that is followed."""
        if not entry.is_symlink():
            return ""
        target = Path(os.path.realpath(entry.path))
        if target == self.real_root or target in self.real_root.parents:
            return "link to a folder that contains it"
        if self.real_root in target.parents:
            return f"link to {target.relative_to(self.real_root).as_posix()}, which is read there"
        if str(target) in self.linked:
            return "link to a folder that another link names"
        self.linked.add(str(target))
        return ""

    def _refuse(self, path: Path, why: str, kind: str) -> None:
        self.ignored.append((path, why or kind))
        if not why and path.suffix.lower() in self.image_suffixes:
            self.problems.add(path, kind, "expected a regular file, or remove it")


def _hidden_reason(name: str) -> str:
    if name.startswith("."):
        return "hidden"
    return "file of the operating system" if name.lower() in _SYSTEM_FILES else ""
