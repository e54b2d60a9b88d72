"""Finds the file that an annotation names, among the files below the source only."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from defect_core.data.records import natural_key

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm")
)
MASK_FOLDERS = frozenset(
    (
        *("mask", "masks", "ground_truth", "gt", "label", "labels", "annotation", "annotations"),
        *("segmentationclass", "segmentationobject"),
    )
)
"""Folders, in lower case, whose images are masks. An image is searched there only by its exact path."""
_SHOWN = 4
_ADD = "add the image or remove its annotation"


class NotFoundError(LookupError):
    """No file or several files fit a name.

    Attributes:
        what: what is wrong.
        cure: what to do.
        is_missing: whether no file of the source has the name.
    """

    def __init__(self, what: str, cure: str, is_missing: bool = False) -> None:
        super().__init__(f"{what}; {cure}")
        self.what, self.cure, self.is_missing = what, cure, is_missing


class FileFinder:
    """All regular files below a folder, without hidden ones. Names are compared in Unicode form NFC.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = sorted(_files_below(root), key=lambda path: natural_key(path.relative_to(root).as_posix()))
        self._folders: dict[Path, str] = {}
        self._by_path: dict[str, list[Path]] = {}
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for path in self.files:
            self._by_path.setdefault(normal_form(path.relative_to(root).as_posix()), []).append(path)
            if path.suffix.lower() in IMAGE_SUFFIXES:
                self._by_name.setdefault(normal_form(path.name).casefold(), []).append(path)
                self._by_stem.setdefault(normal_form(path.stem).casefold(), []).append(path)

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Return the files with one of the suffixes, given in lower case."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    def relative(self, path: Path) -> PurePosixPath:
        """Return a path below the root relative to it, in NFC."""
        return PurePosixPath(normal_form(path.relative_to(self.root).as_posix()))

    def find(self, name: str, folder: Path, hints: Iterable[str] = (), masks: bool = False) -> Path:
        """Return the image that an annotation names.

        In this order: the path relative to the folder of the annotation, to the source, and to folders in them named
        in `hints`; then the image with the same file name that shares the most parent folders. So absolute paths, URLs
        and paths of another machine are found as well.

        Args:
            name: as in the annotation, with slashes or backslashes.
            folder: folder of the annotation file, below the root.
            hints: names of folders that the format defines for images.
            masks: whether folders of masks are searched for the file name.

        Raises:
            NotFoundError: no image or several images fit.
        """
        for variant in _variants(name):
            found = self._exact(variant, folder, hints)
            if found is None:
                parts = [normal_form(part).casefold() for part in PurePosixPath(variant).parts]
                candidates = self._by_name.get(parts[-1], []) if parts else []
                found = self._closest(candidates, parts[:-1], masks, name)
            if found is not None:
                return found
        if _leaves(PurePosixPath(name.replace("\\", "/")), self.root, folder):
            raise NotFoundError(f"names {name!r}, which is outside the source", "expected a path inside it")
        raise NotFoundError(f"names {name!r}, which is not in the source", _ADD, is_missing=True)

    def find_stem(self, stem: str, folders: Iterable[PurePosixPath] = (), masks: bool = False) -> Path:
        """Return the image with this name without suffix.

        Args:
            stem: the name.
            folders: folders relative to the root that are searched first.
            masks: whether folders of masks are searched.

        Raises:
            NotFoundError: as `find`.
        """
        candidates = self._by_stem.get(normal_form(stem).casefold(), [])
        for folder in folders:
            inside = [path for path in candidates if self.relative(path).parent == folder]
            if len(inside) == 1:
                return inside[0]
            if inside:
                raise self._ambiguous(stem, inside)
        found = self._closest(candidates, [], masks, stem)
        if found is None:
            raise NotFoundError(f"needs an image named {stem!r}, which is not in the source", _ADD, is_missing=True)
        return found

    def _exact(self, name: str, folder: Path, hints: Iterable[str]) -> Path | None:
        if PurePosixPath(name).is_absolute():
            return None
        base = self._folder(folder)
        places = dict.fromkeys([base, ".", *(f"{start}/{hint}" for hint in hints for start in (base, "."))])
        for place in places:
            key = os.path.normpath(normal_form(f"{place}/{name}"))
            found = self._by_path.get(key, [])
            if len(found) == 1:
                return found[0]
            if found:
                raise self._ambiguous(name, found)
        return None

    def _folder(self, folder: Path) -> str:
        if folder not in self._folders:
            self._folders[folder] = normal_form(os.path.relpath(folder, self.root).replace(os.sep, "/"))
        return self._folders[folder]

    def _closest(self, candidates: list[Path], parents: list[str], masks: bool, name: str) -> Path | None:
        if not masks:
            candidates = [path for path in candidates if not self._is_in_mask_folder(path)]
        scores = [_common_tail(parents, self.relative(path).parent) for path in candidates]
        best = [path for path, score in zip(candidates, scores, strict=True) if score == max(scores)]
        if len(best) > 1:
            raise self._ambiguous(name, best)
        return best[0] if best else None

    def _is_in_mask_folder(self, path: Path) -> bool:
        return any(part.casefold() in MASK_FOLDERS for part in self.relative(path).parts[:-1])

    def _ambiguous(self, name: str, candidates: list[Path]) -> NotFoundError:
        shown = ", ".join(repr(path.relative_to(self.root).as_posix()) for path in candidates[:_SHOWN])
        more = f" and {len(candidates) - _SHOWN} more" if len(candidates) > _SHOWN else ""
        return NotFoundError(
            f"names {name!r}, which fits {shown}{more}", "write the folder into the annotation, or rename one of them"
        )


def normal_form(text: str) -> str:
    """Return a text in Unicode form NFC."""
    return unicodedata.normalize("NFC", text)


def _variants(name: str) -> list[str]:
    """Return the readings of a name: as it is, and as the path of a URL or of Label Studio's local files."""
    plain = name.replace("\\", "/")
    variants = [plain]
    if "://" in plain or "?" in plain or "%" in plain:
        try:
            url = urlsplit(plain)
            variants += [unquote(value) for value in parse_qs(url.query).get("d", [])]
            variants.append(unquote(url.path))
        except ValueError:
            pass
    return [variant for variant in dict.fromkeys(variants) if variant.strip("/") and "\0" not in variant]


def _leaves(name: PurePosixPath, root: Path, folder: Path) -> bool:
    if name.is_absolute() or name.drive or (name.parts and name.parts[0].endswith(":")):
        return True
    places = (os.path.normpath(start / name) for start in (folder, root))
    return not any(Path(place).is_relative_to(os.path.normpath(root)) for place in places)


def _common_tail(parents: list[str], folder: PurePosixPath) -> int:
    count = 0
    for one, other in zip(reversed(parents), reversed(folder.parts), strict=False):
        if one != other.casefold():
            break
        count += 1
    return count


def _files_below(root: Path) -> list[Path]:
    """Return regular files; linked folders are entered once, so that a loop of links ends."""
    found, visited, open_folders = [], set(), [root]
    while open_folders:
        folder = open_folders.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    if entry.is_dir():
                        open_folders.append(folder / entry.name)
                    elif entry.is_file():
                        found.append(folder / entry.name)
        except OSError:
            continue  # the inventory of the source names unreadable folders
    return found
