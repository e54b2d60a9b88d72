"""The layout `annotations`: images in any folders, with the files of an annotation tool."""

from dataclasses import replace
from pathlib import Path

from defect_core.data.annotations import AnnotationIndex, Shapes
from defect_core.data.layouts.folders import MASK_FOLDERS
from defect_core.data.layouts.options import SourceItem
from defect_core.data.layouts.pairs import SPLITS
from defect_core.data.layouts.reader import MASK_ENDINGS, NORMAL_NAMES, SourceReader
from defect_core.data.layouts.tree import name_key
from defect_core.data.records import natural_key

_MASK_NAMES = frozenset((*MASK_FOLDERS, "segmentationclass", "segmentationobject"))


def read_annotated(reader: SourceReader, index: AnnotationIndex) -> list[SourceItem]:
    """Read the images that annotation files name, and the normal images.

    An image is normal if the annotations list it without a shape, or if it is in a folder named good, ok, normal or as
    the option `good` says. Folders named train, val or test give the split of normal images.
    """
    for note in index.notes:
        reader.notes.append(note)
    reader.tables += index.files
    normal, mask_files = set(index.normal_images), set(index.mask_files)
    if reader.options.defects is not None:
        _check_defects(reader, index)
    items = []
    for file in sorted(
        filter(reader.is_image, reader.tree.all_files()), key=lambda one: natural_key(reader.relative(one))
    ):
        names = [name_key(name) for name in file.relative_to(reader.tree.path).parts[:-1]]
        hint = next((SPLITS[name] for name in names if name in SPLITS), "")
        shapes = index.for_image(file)
        if file in index.unusable:
            reader.reasons[file] = "its annotation has a problem"
        elif shapes is not None:
            items += _annotated_items(reader, file, shapes, index, hint, _in_normal_folder(reader, file, names))
        elif file in mask_files:
            continue
        elif file in normal or _in_normal_folder(reader, file, names):
            items.append(reader.normal_item(file, hint, index.group_for(file)))
        elif _MASK_NAMES.intersection(names) or name_key(file.stem).endswith(MASK_ENDINGS):
            reader.reasons[file] = f"mask file; the annotations ({index.format}) are used"
        else:
            expected = f"a shape in the {index.format} annotations, a folder named good for normal images"
            items += reader.handle_missing_mask(file, "annotated", expected, hint)
    return items


def _annotated_items(
    reader: SourceReader, file: Path, shapes: Shapes, index: AnnotationIndex, hint: str, in_normal_folder: bool
) -> list[SourceItem]:
    wanted = reader.options.defects
    if in_normal_folder and not index.empty_mask_is_normal:
        reader.problems.add(
            file, "has an annotation and is in a folder of normal images", "expected one of both, see docs/data.md"
        )
        return []
    if wanted is not None and not shapes.label_images:
        kept = tuple(region for region in shapes.regions if region.label in wanted)
        if not kept:
            reader.reasons[file] = "defect type that the option defects does not name"
            return []
        shapes = replace(shapes, regions=kept)
    item = reader.labelled_item if index.empty_mask_is_normal else reader.defect_item
    return [item(file, shapes, None, hint, index.group_for(file))]


def _check_defects(reader: SourceReader, index: AnnotationIndex) -> None:
    if index.empty_mask_is_normal:
        reader.problems.add(
            "options.defects", "is not an option for masks of several labels", "expected annotations.ignore_labels"
        )
    for label in reader.options.defects or ():
        if label not in index.labels:
            names = ", ".join(index.labels) or "none"
            reader.problems.add(
                reader.tree.path, f"no defect type {label!r} (options.defects)", f"expected some of: {names}"
            )


def _in_normal_folder(reader: SourceReader, file: Path, names: list[str]) -> bool:
    if reader.options.good is not None:
        return reader.relative(file).startswith(f"{reader.options.good.strip('/')}/")
    return any(name in NORMAL_NAMES for name in names)
