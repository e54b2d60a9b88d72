"""Real-IAD: one folder and one JSON file per product."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defect_core.data.layouts.options import SourceItem
from defect_core.data.layouts.reader import SourceReader
from defect_core.data.layouts.tree import Folder

_MAX_BYTES = 512 << 20


def detect_real_iad(reader: SourceReader) -> bool:
    """Return whether a source has the folders OK and NG of Real-IAD, and its JSON file is in it or beside it."""
    return _find_table(reader) is not None


def read_real_iad(reader: SourceReader) -> list[SourceItem]:
    """Read the images that <product>.json names, with its split, defect types and masks.

    The JSON file is in the source, beside it, or in a folder `realiad_jsons*` beside it. Its keys are `meta`
    (`normal_class`, `prefix`), `train` and `test`, with `image_path`, `anomaly_class` and `mask_path` per image. The
    five views of one sample (folder S0001) are one group. Normal images keep their split.
    """
    table = _find_table(reader)
    if table is None:
        reader.problems.add(
            reader.tree.path,
            "has no JSON file of Real-IAD",
            "expected <product>.json in it, beside it or in realiad_jsons",
        )
        return []
    path, content = table
    if reader.tree.path in path.parents:
        reader.tables.append(path)
    else:
        reader.other_files.append(path)
    normal = str(content.get("meta", {}).get("normal_class", "OK"))
    known = {reader.relative(file): file for file in reader.tree.all_files()}
    rows = [_Row(split, str(row.get("anomaly_class")), row) for split in ("train", "test") for row in content[split]]
    defects = [row for row in rows if row.label != normal]
    selected = reader.select({row.label: Folder(reader.tree.path) for row in defects})
    both_sides = len({row.split for row in defects}) > 1
    items = []
    for row in rows:
        file = _locate(row.image, content, known)
        if file is None:
            reader.problems.add(path, f"names the image {row.image}, which is not in the source", "expected it there")
        elif row.label == normal:
            items.append(reader.normal_item(file, row.split, row.group))
        elif row.label in selected:
            mask = _locate(row.mask, content, known)
            items += _defect_items(reader, row, file, mask, row.split if both_sides else "")
        else:
            reader.reasons[file] = "defect type that the option defects does not name"
    used = {item.image_path for item in items}
    for file in reader.tree.all_files():
        if reader.is_image(file) and file not in used:
            reader.reasons.setdefault(file, f"{path.name} does not name it")
    return items


@dataclass(frozen=True)
class _Row:
    split: str
    label: str
    values: dict[str, Any]

    @property
    def image(self) -> str:
        return str(self.values.get("image_path"))

    @property
    def mask(self) -> str:
        return str(self.values.get("mask_path") or "")

    @property
    def group(self) -> str:
        """The sample, which its five views share; empty if the path has no folder such as S0001."""
        parts = Path(self.image).parts
        sample = next((part for part in parts if part[:1] == "S" and part[1:].isdigit()), "")
        return f"{self.label}/{sample}" if sample else ""


def _defect_items(reader: SourceReader, row: _Row, file: Path, mask: Path | None, split_hint: str) -> list[SourceItem]:
    if mask is None:
        return reader.handle_missing_mask(file, row.label, row.mask or "a mask_path in the JSON file", split_hint)
    source = reader.mask_file([mask], row.label)
    return [reader.defect_item(file, source, reader.label(row.label), split_hint, row.group)]


def _find_table(reader: SourceReader) -> tuple[Path, dict[str, Any]] | None:
    """Return the JSON file of a product and its content, or None."""
    tree = reader.tree
    if not any(tree.find(name) is not None for name in ("OK", f"{tree.name}/OK")):
        return None
    inside = [file for file in tree.files if file.suffix.lower() == ".json"]
    places = [tree.path.parent, *sorted(tree.path.parent.glob("realiad_json*"))]
    outside = [place / f"{tree.name}.json" for place in places]
    for file in [*inside, *outside]:
        if file.is_file() and file.stat().st_size <= _MAX_BYTES:
            try:
                content = json.loads(file.read_text(encoding="utf-8-sig"))
            except (ValueError, OSError, RecursionError):
                continue
            if isinstance(content, dict) and all(_are_rows(content.get(split)) for split in ("train", "test")):
                return file, content
    return None


def _are_rows(rows: object) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) and "image_path" in row for row in rows)


def _locate(name: str, content: dict[str, Any], known: dict[str, Path]) -> Path | None:
    prefix = str(content.get("meta", {}).get("prefix", ""))
    clean = name.removeprefix("./")
    return known.get(clean) or known.get(f"{prefix.rstrip('/')}/{clean}") or known.get(clean.removeprefix(prefix))
