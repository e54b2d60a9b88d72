"""Options of annotation files."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from defect_core.data.problems import ProblemLog

FORMATS = ("coco", "labelme", "cvat", "segmentation_masks", "yolo", "voc", "label_studio", "csv")


def _option(default: Any, example: str, description: str) -> Any:
    return Field(default=default, description=description, json_schema_extra={"example": example})


class AnnotationOptions(BaseModel):
    """How annotation files are read. Every option has a default, so files of the usual form need none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["auto", "coco", "labelme", "cvat", "segmentation_masks", "yolo", "voc", "label_studio", "csv"] = (
        _option("auto", "coco", "Format of the annotations. `auto` recognises it by the content of the files.")
    )
    file: str | None = _option(
        None, "labels/export.json", "Annotation file or folder, relative to the source. By default all that are found."
    )
    boxes: Literal["refuse", "rectangles", "leave_out"] = _option(
        "refuse",
        "rectangles",
        "Bounding boxes without an outline: a problem, taken as filled rectangles, or left out with a note.",
    )
    polygon_coordinates: Literal["auto", "pixel_centers", "pixel_corners"] = _option(
        "auto",
        "pixel_centers",
        "Whether the point (0, 0) is the centre or the outer corner of the first pixel. `auto`: as the tool that "
        "defines the format rasterises.",
    )
    ignore_labels: tuple[str, ...] = _option(
        (), "[part, region]", "Labels that are no defects, such as the outline of the part."
    )
    missing_images: Literal["error", "leave_out"] = _option(
        "error", "leave_out", "Annotated images that are not in the source: a problem, or left out with a note."
    )
    label_colors: dict[str, str] = _option(
        {}, "{scratch: '128,0,0'}", "Colour of each label in SegmentationClass, if there is no labelmap.txt."
    )
    image_column: str | None = _option(None, "file", "Column of a CSV file with the image.")
    label_column: str | None = _option(None, "type", "Column of a CSV file with the label of the defect type.")
    mask_column: str | None = _option(None, "mask_png", "Column of a CSV file with the mask file.")
    polygon_column: str | None = _option(
        None, "outline", "Column of a CSV file with a polygon: `x y x y ...`, `x,y;x,y` or `[[x, y], ...]`."
    )
    group_column: str | None = _option(
        None, "part", "Column of a CSV file with the item that the image shows, for splits by item."
    )
    delimiter: str | None = _option(None, "';'", "Delimiter of a CSV file. By default a comma, semicolon or tab.")
    max_megabytes: int = Field(
        default=512,
        ge=1,
        description="Largest annotation file that is read.",
        json_schema_extra={"example": "2048"},
    )


def check_annotation_options(
    options: AnnotationOptions | Mapping[str, Any] | None, problems: ProblemLog
) -> AnnotationOptions:
    """Return validated options; problems are added to the log, and then the defaults are returned.

    Args:
        options: options, a mapping from params.yaml, or None for the defaults.
        problems: log that receives unknown keys and unusable values.
    """
    if isinstance(options, AnnotationOptions):
        checked = options
    else:
        try:
            checked = AnnotationOptions.model_validate({str(key): value for key, value in (options or {}).items()})
        except ValidationError as error:
            for one in error.errors():
                key = "annotations." + ".".join(str(part) for part in one["loc"])
                if one["type"] == "extra_forbidden":
                    problems.add(key, "unknown option", f"expected one of {', '.join(AnnotationOptions.model_fields)}")
                else:
                    problems.add(key, f"{one['msg'].lower()}, found {one['input']!r}", "see docs/data.md")
            return AnnotationOptions()
    if checked.file is not None and (checked.file.startswith(("/", "\\")) or ".." in checked.file.split("/")):
        problems.add("annotations.file", repr(checked.file), "expected a path inside the source")
        return AnnotationOptions()
    if checked.delimiter is not None and len(checked.delimiter) != 1:
        problems.add("annotations.delimiter", repr(checked.delimiter), "expected one character")
        return AnnotationOptions()
    return checked
