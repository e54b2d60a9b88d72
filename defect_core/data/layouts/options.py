"""What a layout can be told, and what it gives back."""

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
    """One image of a source: `defect` is `good` or a type; `mask_path` is None for good images.

    `split_hint` is `train` or `test` where the layout says so, else empty. `more_masks` are united with `mask_path`.
    `any_value`: every value of a mask above 0 is a defect (masks that number kinds of defects), not only the upper
    half of them.
    """

    defect: str
    image_path: Path
    mask_path: Path | None
    split_hint: str
    more_masks: tuple[Path, ...] = ()
    any_value: bool = False


class LayoutOptions(BaseModel):
    """How a source deviates from its layout; `folder` takes all, other layouts `defects` and `image_suffixes`.

    Magnetic-Tile, for one, comes in with
    `layout: folder`, `{good: MT_Free, subfolder: Imgs, mask_suffix: .png, strip_prefix: MT_}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    good: str | None = Field(None, description="folder of the good images; else good, ok, normal or defect_free")
    subfolder: str = Field("", description="folder inside each class folder where the images lie")
    image_suffixes: tuple[str, ...] = Field(IMAGE_SUFFIXES, description="suffixes that images may have")
    mask_suffix: str | None = Field(
        None, description="what a mask's name adds to the image's stem: '.png' or '_mask.png'; else both are tried"
    )
    masks: str = Field(
        "auto", description="'beside' the images, or the name of a parallel folder; 'auto' looks for both"
    )
    strip_prefix: str = Field("", description="prefix of folder names that defect names drop")
    defects: tuple[str, ...] | None = Field(None, description="only these defects, after strip_prefix")


def check_options(options: LayoutOptions | Mapping[str, Any] | None) -> LayoutOptions:
    """Validate options given as a mapping (from params.yaml).

    Raises:
        InputError: an unknown key, or a value of a wrong type.
    """
    if isinstance(options, LayoutOptions):
        return options
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}
    try:
        checked = LayoutOptions.model_validate(given)
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
