"""Options of the folder layouts, and the items that a layout returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from defect_core.errors import InputError

LAYOUTS = ("auto", "mvtec", "visa", "loco", "mvtec3d", "folder", "demo")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class SourceItem:
    """One image of a source.

    Attributes:
        defect: `good` or a defect type.
        image_path: the image file.
        mask_path: the mask file; None for normal images.
        split_hint: `train` or `test` if the layout defines it, otherwise empty.
        more_masks: further masks of the same image, which are united with `mask_path`.
        any_value: whether every mask value above 0 is a defect, for masks whose values are numbers of defect types.
    """

    defect: str
    image_path: Path
    mask_path: Path | None
    split_hint: str
    more_masks: tuple[Path, ...] = ()
    any_value: bool = False


class LayoutOptions(BaseModel):
    """Options of a source. The layout `folder` accepts all, other layouts `defects` and `image_suffixes` only.

    For example, Magnetic-Tile is read by `layout: folder` and
    `{good: MT_Free, subfolder: Imgs, mask_suffix: .png, strip_prefix: MT_}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    good: str | None = Field(
        default=None, description="folder of the normal images; default: good, ok, normal or defect_free"
    )
    subfolder: str = Field(default="", description="folder in each class folder that holds the images")
    image_suffixes: tuple[str, ...] = Field(IMAGE_SUFFIXES, description="suffixes of image files")
    mask_suffix: str | None = Field(
        None, description="what a mask's name adds to the image's stem: '.png' or '_mask.png'; default: both"
    )
    masks: str = Field(
        default="auto", description="'beside' the images, or the name of a parallel folder; 'auto' tries both"
    )
    strip_prefix: str = Field(default="", description="prefix of folder names that is not part of the defect name")
    defects: tuple[str, ...] | None = Field(default=None, description="only these defects, after strip_prefix")


def check_options(options: LayoutOptions | Mapping[str, Any] | None) -> LayoutOptions:
    """Return validated options.

    Args:
        options: options, a mapping from params.yaml, or None for the defaults.

    Raises:
        InputError: an unknown key, or a value of a wrong type.
    """
    if isinstance(options, LayoutOptions):
        return options
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}
    try:
        checked = LayoutOptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(LayoutOptions.model_fields)
            raise InputError(f"options.{key}: unknown layout option; expected one of {known}") from None
        raise InputError(f"options.{key}: {first['msg'].lower()}, found {first['input']!r}") from None
    for key in ("good", "subfolder", "masks"):
        value = getattr(checked, key) or ""
        if value.startswith("/") or ".." in Path(value).parts:
            raise InputError(f"options.{key}: {value!r}; expected a folder inside the source")
    for suffix in checked.image_suffixes:
        if not suffix.startswith("."):
            raise InputError(f"options.image_suffixes: {suffix!r}; expected suffixes with a dot, such as '.png'")
    if checked.mask_suffix is not None and "." not in checked.mask_suffix:
        raise InputError(
            f"options.mask_suffix: {checked.mask_suffix!r}; expected an ending such as '.png' or '_mask.png'"
        )
    return checked
