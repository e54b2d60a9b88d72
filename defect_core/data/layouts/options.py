"""Options of the folder layouts, and what a layout returns."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from defect_core.data.annotations.options import AnnotationOptions, check_annotation_options
from defect_core.data.problems import ProblemLog
from defect_core.errors import InputError

if TYPE_CHECKING:
    from defect_core.data.mask_sources import MaskSource

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm"),
)
"""Suffixes of image files, compared without regard to case."""

LAYOUTS = (
    *("auto", "folder", "mvtec", "btad", "mpdd", "mvtec_ad_2", "loco", "mvtec3d", "visa", "real_iad", "kolektor"),
    *("kolektor2", "dagm", "severstal", "pairs", "annotations", "own_export", "demo"),
)
"""Names of the layouts."""
FAMILIES = {
    "btad": "mvtec",
    "mpdd": "mvtec",
    "mvtec_ad_2": "mvtec",
    "kolektor": "pairs",
    "kolektor2": "pairs",
}
"""Layout that reads a data set with folders like its own."""


@dataclass(frozen=True)
class SourceItem:
    """One image of a source.

    Attributes:
        image_path: the image file.
        mask_source: where its masks come from; None for normal images.
        defect: `GOOD`, or the label of the defect type; None if the mask source names the defect types.
        split_hint: `train` or `test` if the layout defines it, otherwise empty.
        group: name of the item, frame or series that the image shows, if the layout or the option `group` defines it.
        empty_mask_is_normal: whether the image is a normal image if its mask source has no pixel. Otherwise an empty
            mask is a problem.
    """

    image_path: Path
    mask_source: "MaskSource | None"
    defect: str | None
    split_hint: str = ""
    group: str = ""
    empty_mask_is_normal: bool = False


@dataclass(frozen=True)
class SourceListing:
    """What a layout found in a source. Every file below the source is either used or ignored.

    Attributes:
        layout: name of the layout that was read; never `auto`.
        items: the images, normal images first, then by defect type, each in natural order.
        used_files: files below the source that are read: images, masks, annotations, tables.
        ignored: files below the source that are not read, each with the reason.
        other_files: files outside the source that are read, such as the split file of VisA.
        synthetic: the ignored images that Defectory generated and exported; they are never read as real images.
        without_mask: defect images that are ignored because they have no mask (`missing_masks: leave_out`).
        notes: what a person should know, such as nested folders, one line each.
    """

    layout: str
    items: tuple[SourceItem, ...]
    used_files: tuple[Path, ...]
    ignored: tuple[tuple[Path, str], ...]
    other_files: tuple[Path, ...] = ()
    synthetic: tuple[Path, ...] = ()
    without_mask: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def _option(default: Any, example: str, layouts: str, description: str) -> Any:
    return Field(default=default, description=description, json_schema_extra={"example": example, "layouts": layouts})


class LayoutOptions(BaseModel):
    """Options of a source. Each option says which layouts accept it.

    For example, Magnetic-Tile is read by `layout: folder` and
    `{good: MT_Free, subfolder: Imgs, mask_suffix: .png, strip_prefix: MT_}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    good: str | None = _option(
        None,
        "OK",
        "folder, mvtec, annotations",
        "Folder of the normal images. By default one named good, ok, normal, defect_free or similar.",
    )
    subfolder: str = _option(
        "", "Imgs", "folder", "Folder in each class folder that holds the images. By default all folders are read."
    )
    types_in: str | None = _option(
        None,
        "NG",
        "folder",
        "Folder whose subfolders are the defect types. By default a folder named NG, bad, defect or similar.",
    )
    strip_prefix: str = _option("", "MT_", "folder", "Prefix of folder names that is not part of the defect type.")
    masks: str = _option(
        "auto",
        "annotated",
        "folder",
        "`beside` the images, or the name of a folder of masks beside or inside the class folders. `auto` tries both.",
    )
    mask_suffix: str | None = _option(
        None,
        "_label.bmp",
        "folder, mvtec, pairs, dagm",
        "What the name of a mask adds to the stem of its image. By default the same stem, or `_mask` and similar.",
    )
    mask_values: dict[int | str, str] | None = _option(
        None,
        "{1: scratch, 3: dent}",
        "all",
        "Defect types by mask value or colour (`'#ff0000'`), for masks that hold several. The labels `background` and "
        "`ignore` give no defect. For Severstal the keys are its class numbers.",
    )
    mask_rule: Literal["auto", "any", "half", "inverted"] = _option(
        "auto",
        "inverted",
        "all",
        "Which mask pixels are defects: `any` all that are not background, `half` those of at least half the "
        "maximum, `inverted` the dark ones. `auto` decides by the values of the mask.",
    )
    depth: str | None = _option(
        None,
        "'12'",
        "all",
        "Value range of the images: a number of bits (`'12'`) or limits (`'0..4095'`, `'0.0..1.0'`). By default it is "
        "detected over the normal images.",
    )
    roi: str | None = _option(
        None,
        "roi",
        "all",
        "Picture, or folder of pictures: white where defects may be placed. They are neither images nor masks.",
    )
    max_pixels: int | None = _option(
        None, "400000000", "all", "Largest number of pixels of an image. By default the limit of the image reader."
    )
    annotations: AnnotationOptions | None = _option(
        None,
        "{file: labels/export.json}",
        "annotations",
        "Options of annotation files, see the section about annotations. By default every annotation file is read.",
    )
    defect: str | None = _option(
        None, "scratch", "pairs, dagm, visa", "Name of the defect type, for layouts that have only one without a name."
    )
    defects: tuple[str, ...] | None = _option(
        None, "[Crack, Fray]", "all", "Only these defect types, after `strip_prefix`."
    )
    image_suffixes: tuple[str, ...] = _option(
        IMAGE_SUFFIXES, "[.png, .jpg]", "all", "Suffixes of image files. Other files are ignored."
    )
    recursive: bool = _option(
        True, "false", "all", "Whether folders inside a folder of images are read. If not, they are a problem."
    )
    group: str | None = _option(
        None,
        "'(part[0-9]+)_'",
        "all",
        "Regular expression, searched in the path of an image relative to the source. Images with the same match (its "
        "first group, if it has one) show the same item and stay on one side of the split.",
    )


def option_layouts(key: str) -> tuple[str, ...]:
    """Return the layouts that accept an option; `all` means every layout."""
    extra = LayoutOptions.model_fields[key].json_schema_extra
    return tuple(str(extra["layouts"]).split(", ")) if isinstance(extra, dict) else ("all",)


def check_options(options: LayoutOptions | Mapping[str, Any] | None) -> LayoutOptions:
    """Return validated options.

    Args:
        options: options, a mapping from params.yaml, or None for the defaults.

    Raises:
        InputErrors: unknown keys and unusable values, one problem each.
    """
    if isinstance(options, LayoutOptions):
        return options
    problems = ProblemLog()
    values = {str(key): tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}
    if values.get("annotations") is not None:
        values["annotations"] = _check_annotations(values["annotations"], problems)
    try:
        checked = LayoutOptions.model_validate(values)
    except ValidationError as error:
        for one in error.errors():
            key = ".".join(str(part) for part in one["loc"])
            if one["type"] == "extra_forbidden":
                known = ", ".join(LayoutOptions.model_fields)
                problems.add(f"options.{key}", "unknown layout option", f"expected one of {known}")
            else:
                problems.add(f"options.{key}", f"{one['msg'].lower()}, found {one['input']!r}", "see docs/data.md")
        problems.raise_if_any()
        raise InputError(f"options: {options!r}; expected a mapping") from None  # problems always raises before
    for key in ("good", "subfolder", "masks", "types_in", "roi"):
        value = getattr(checked, key) or ""
        if value.startswith("/") or ".." in Path(value).parts:
            problems.add(f"options.{key}", repr(value), "expected a path inside the source")
    for suffix in checked.image_suffixes:
        if not suffix.startswith("."):
            problems.add("options.image_suffixes", repr(suffix), "expected suffixes with a dot, such as '.png'")
    if checked.mask_suffix is not None and "." not in checked.mask_suffix:
        problems.add(
            "options.mask_suffix", repr(checked.mask_suffix), "expected an ending such as '.png' or '_mask.png'"
        )
    _check_group(checked.group, problems)
    problems.raise_if_any()
    return checked


def _check_group(pattern: str | None, problems: ProblemLog) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        problems.add(
            "options.group", f"{pattern!r} is no regular expression ({error})", "expected one, see docs/data.md"
        )


def _check_annotations(value: Any, problems: ProblemLog) -> Any:
    """Return the options of annotation files; a text is the name of the file."""
    if isinstance(value, str):
        value = {"file": value}
    return check_annotation_options(value, problems) if isinstance(value, Mapping) else value
