"""The typed, validated view of a project's params.yaml.

Every mistake in the file is an `InputError` of one line that names the field and what is expected.
Nothing here imports torch: Dagster and the command line read the parameters at start-up.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from defect_core.data.records import check_name
from defect_core.errors import InputError
from defect_core.generators.registry import generator_capabilities, generator_config, generator_names
from defect_core.project.arms import BASELINE_ARM, Arm, parse_arm

AUTO = "auto"
POOLED = "pooled"


def _share(*words: str) -> Callable[[Any], float | str]:
    """A check for a part from 0 to 1, or one of `words`."""

    def check(value: Any) -> float | str:
        if value in words:
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
            return float(value)
        raise ValueError(f"expected a number from 0 to 1, or {' or '.join(words)}")

    return check


def _count(value: Any) -> int | str:
    """A number of pairs, or a multiple such as `2x`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?x", value) and float(value[:-1]) > 0:
        return value
    raise ValueError("expected a number of at least 1, or a multiple of the real count such as 2x")


Share = Annotated[float | str, BeforeValidator(_share(POOLED))]
SegmentShare = Annotated[float | str, BeforeValidator(_share(AUTO, POOLED))]
Count = Annotated[int | str, BeforeValidator(_count)]


class Strict(BaseModel):
    """A section of params.yaml: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Strict):
    """Where a product's real images come from.

    `path` is a folder, relative to the project, or a URL that fsspec reads. `layout: demo` needs no path; `options` are
    those of the layout (see `defect_core.data.layouts`); `empty_masks` says what to do with a defect image whose mask
    is empty.
    """

    path: str | None = None
    layout: str = "auto"
    options: dict[str, Any] = Field(default_factory=dict)
    empty_masks: Literal["error", "leave_out"] = "error"

    def tracked(self, product: str) -> str:
        """What `ingest` depends on: see `source_input`."""
        return source_input(product, self.path)


def source_input(product: str, path: str | None) -> str:
    """The file or folder that stands for a source: the folder itself; for a URL, what is on record of it; for a demo
    product, which comes from no file, one that never changes."""
    if path is not None and "://" in path:
        return f"data/source/{product}.json"
    return path or "data/README.md"


class Ingest(Strict):
    """How real images are taken in: the least number of usable examples of a defect type."""

    min_per_defect: int = Field(3, ge=2)


class Split(Strict):
    """Which real images train and which test; `fold` matters for `two_fold` only, `max_train` makes it k-shot."""

    policy: Literal["first_third", "half", "two_fold"] = "first_third"
    fold: int = Field(0, ge=0, le=1)
    min_train: int = Field(1, ge=1)
    max_train: int | None = Field(None, ge=1)


class Adapt(Strict):
    """Tuning of the backbone to a product's good images; a project without this section does none.

    Early stopping: every `check_every` steps the loss on a held-out part (`validation_fraction`) of the good images
    is taken; after `patience` checks without a new best, training ends, and the best weights count. `local_share` of
    what is learned are local windows, as the generators' local canvas sees the product; the rest are whole images.

    Then `drawing_steps` more, on whole images alone, in batches and at a rate of their own, go into a copy of the
    network that draws good images and is of no use to a generator; with 0 the generators' network draws them.
    """

    steps: int = Field(600, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(6e-4, gt=0)
    views: int = Field(1200, ge=1)
    local_share: float = Field(0.3, ge=0, le=1)
    drawing_steps: int = Field(0, ge=0)
    drawing_batch_size: int = Field(32, ge=1)
    drawing_rate: float = Field(2e-3, gt=0)
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    check_every: int = Field(100, ge=1)
    patience: int = Field(5, ge=1)


class Synthesize(Strict):
    """How many pairs are made per defect, and which of them are good enough.

    `per_defect` is a number, or `2x` and the like: a multiple of the real training images of the defect.
    `max_draws` bounds the requests per accepted pair; `min_change` is the least mean absolute change inside
    the mask, in grey levels of 255, that still counts as a defect, `max_change_outside` the most outside it. At least
    `min_on_product` of a mask lies on the product; `min_distance` keeps copies of training examples out (see
    `defect_core.synthesis.filter.NearestDefectIndex`; 0 lets all in).
    """

    per_defect: Count = 48
    batch_size: int = Field(16, ge=1)
    max_draws: float = Field(2.0, ge=1)
    min_change: float = Field(2.0, ge=0)
    min_area: int = Field(4, ge=1)
    max_change_outside: float | None = Field(None, ge=0)
    min_on_product: float = Field(0.25, ge=0, le=1)
    min_distance: float = Field(0.0, ge=0)

    def wanted(self, real: int) -> int:
        """Accepted pairs wanted of a defect with so many real training images; at least 1."""
        if isinstance(self.per_defect, int):
            return self.per_defect
        return max(1, round(float(self.per_defect[:-1]) * real))


class Normals(Strict):
    """Defect-free images, drawn by the generators that can; a project without this section draws none."""

    count: int = Field(64, ge=2)


class Score(Strict):
    """How synthetic images are scored: the side in pixels that they are brought to."""

    image_size: int = Field(128, ge=32)


class Segment(Strict):
    """The downstream judge: a segmentation network trained once per arm and seed.

    `validation_fraction` of the real training defects is held out for a curve and for a second result, the best model
    on them. None by default: the generators have seen those images, so holding them out would handicap `real_only`
    alone. `encoder_weights: imagenet` lets the library fetch weights for other encoders than the embedded one.
    `synthetic_fraction: auto` gives synthetic pairs a third of the defect places where up to four real examples of each
    defect are known, and less the more there are (`segmentation.data.auto_share`); `pooled` draws every defect image,
    real or synthetic, equally often. `image_score`: the highest value of the score map averaged in a window
    (`max_of_mean`), or of the map itself (`max`).
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    image_size: int = Field(128, ge=32)
    steps: int = Field(120, ge=1)
    batch_size: int = Field(8, ge=2)
    learning_rate: float = Field(2e-3, gt=0)
    architecture: Literal["unet", "upernet", "deeplabv3plus", "segformer"] = "unet"
    encoder: str = "tu-tf_efficientnet_lite0"
    encoder_weights: Literal["embedded", "imagenet", "none"] = "embedded"
    frozen_stages: int = Field(3, ge=0)
    synthetic_fraction: SegmentShare = AUTO
    validation_fraction: float = Field(0.0, ge=0, lt=1)
    image_score: Literal["max_of_mean", "max"] = "max_of_mean"


class SegmentUnified(Strict):
    """One segmenter over all products, with the settings of `segment`; a project without this section trains none.

    `steps`: of the one training; by default `segment.steps` for each product.
    """

    steps: int | None = Field(None, ge=1)


class Classify(Strict):
    """The second judge: a network that tells the defect types of a product apart; without this section there is none.

    `weights` names a safetensors file in torchvision's layout, in the project or in DEFECTORY_WEIGHTS; None starts at
    random. `view: crop` shows the square around the mask (also of test images, which then is a help no inspection
    has), `image` the whole. The other settings are as in `segment`.
    """

    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    image_size: int = Field(128, ge=32)
    steps: int = Field(300, ge=1)
    batch_size: int = Field(8, ge=2)
    learning_rate: float = Field(1e-4, gt=0)
    architecture: Literal["resnet34", "resnet18", "mobilenet_v3_small"] = "resnet34"
    weights: str | None = None
    view: Literal["image", "crop"] = "image"
    synthetic_fraction: Share = 0.5
    validation_fraction: float = Field(0.0, ge=0, lt=1)


class Detect(Strict):
    """Detectors that learn from good images alone, by anomalib; a project without this section trains none.

    Each is trained on the real good images, and, where the section `normals` stands, on them and each generator's good
    images. Settings: see `defect_core.evaluation.segmentation.config.DetectorConfig`.
    """

    models: tuple[Literal["patchcore", "draem"], ...] = Field(("patchcore",), min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    image_size: int = Field(128, ge=32, multiple_of=32)
    backbone: str = "tf_efficientnet_lite0"
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field((2, 3), min_length=1)
    weights: str = "embedded"
    coreset: float = Field(0.1, gt=0, le=1)
    steps: int = Field(700, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(8, ge=2)


class Release(Strict):
    """Which synthetic pairs are offered for release, and by which score; a project without this section releases none.

    `arm: best` offers the arm with the best score of those with synthetic pairs.
    """

    arm: str = "best"
    score: Literal[
        "pixel_ap", "pixel_f1_max", "pro", "iou", "pixel_auroc", "image_auroc", "image_ap", "image_f1_max"
    ] = "pixel_ap"


class ZeroShot(Strict):
    """A defect drawn on a product that has no examples of it, after those of another product.

    `from` in the file: the product that lends its examples, for their places and shapes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    product: str
    defect: str
    lender: str = Field(alias="from")


class Params(Strict):
    """All of params.yaml."""

    seed: int = Field(0, ge=0)
    owners: tuple[str, ...] = ("team:inspection",)
    products: tuple[str, ...] = ()
    sources: dict[str, Source] = Field(default_factory=dict)
    generators: tuple[str, ...] = ("crop-paste", "disentangled-inversion")
    arms: tuple[str, ...] = (BASELINE_ARM, "crop-paste", "disentangled-inversion")
    backbone: str = "embedded"
    ingest: Ingest = Field(default_factory=Ingest)
    split: Split = Field(default_factory=Split)
    adapt: Adapt | None = None
    finetune: dict[str, dict[str, Any]] = Field(default_factory=dict)
    overrides: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    synthesize: Synthesize = Field(default_factory=Synthesize)
    draws: dict[str, dict[str, Annotated[int, Field(ge=0)]]] = Field(default_factory=dict)
    zero_shot: tuple[ZeroShot, ...] = ()
    normals: Normals | None = None
    score: Score = Field(default_factory=Score)
    segment: Segment = Field(default_factory=Segment)
    segment_unified: SegmentUnified | None = None
    classify: Classify | None = None
    detect: Detect | None = None
    release: Release | None = None

    def generator_settings(self, name: str, product: str | None = None) -> Any:
        """The validated config object of one generator (its own defaults where the file says nothing).

        With a product, what `overrides` says of the two goes before what `finetune` says of the generator.
        """
        own = self.overrides.get(product or "", {}).get(name)
        settings = self.finetune.get(name) or {}
        if own is None:
            return generator_config(name, settings, where="params.yaml: finetune")
        return generator_config(name, {**settings, **own}, where=f"params.yaml: overrides.{product}")

    def borrowed(self, product: str, generator: str) -> tuple[ZeroShot, ...]:
        """The defects that a generator draws on a product after another one's; none if it draws only what it saw."""
        if not generator_capabilities(generator).zero_shot:
            return ()
        return tuple(wish for wish in self.zero_shot if wish.product == product)

    def arm(self, name: str) -> Arm:
        """What an arm trains on. Raises InputError for an unknown one."""
        return parse_arm(name, self.generators)

    def draw(self, product: str, generator: str) -> int:
        """How often a set was asked for anew under a fresh seed (`defectory regenerate`)."""
        return self.draws.get(product, {}).get(generator, 0)


def load_params(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        InputError: the file is missing, is no YAML mapping, or a field has a wrong type, value or name.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path.name}: not found in {path.parent or '.'}; `defectory init DIR` lays down a project"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise InputError(f"{path.name}: expected a mapping of settings, found {type(raw).__name__}")
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{path.name}: {_first_error(error)}") from None
    _check(params, path.name)
    return params


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown key; see docs/params.md for the known ones"
    found = first.get("input")
    if first["type"] == "value_error":
        return f"{field}: {first['ctx']['error']}, found {found!r}"
    return f"{field}: {first['msg'][0].lower() + first['msg'][1:]}, found {found!r}"


def _check(params: Params, file: str) -> None:
    for owner in params.owners:
        if not re.fullmatch(r"team:[A-Za-z0-9_-]+|[^@\s]+@[^@\s]+\.[^@\s]+", owner):
            raise InputError(f"{file}: owners: {owner!r}; expected team:NAME or an e-mail address")
    for product in params.products:
        check_name(product, f"{file}: products")
        if product not in params.sources:
            raise InputError(f"{file}: sources.{product}: missing; every product needs a source with path and layout")
    for product in params.sources:
        if product not in params.products:
            raise InputError(f"{file}: products: {product!r} has a source but is not listed; add it or drop the source")
    for field in ("products", "generators", "arms"):
        values = getattr(params, field)
        if len(set(values)) != len(values):
            raise InputError(f"{file}: {field}: a name stands twice; expected each once")
    if not params.segment.seeds:
        raise InputError(f"{file}: segment.seeds: empty; expected at least one seed")
    for field, names in (("generators", params.generators), ("finetune", params.finetune)):
        for name in names:
            if name not in generator_names():
                raise InputError(
                    f"{file}: {field}: generator {name!r} is unknown; expected one of {', '.join(generator_names())}"
                )
            params.generator_settings(name)
    for field, cells in (("overrides", params.overrides), ("draws", params.draws)):
        for product, by_generator in cells.items():
            if product not in params.products:
                raise InputError(f"{file}: {field}.{product}: no such product; expected one of products")
            for name in by_generator:
                if name not in params.generators:
                    raise InputError(f"{file}: {field}.{product}.{name}: no such generator; expected one of generators")
                if field == "overrides" and generator_capabilities(name).scope == "catalogue":
                    raise InputError(
                        f"{file}: overrides.{product}.{name}: is fitted on all products at once; expected its settings "
                        f"in finetune.{name}"
                    )
                params.generator_settings(name, product)
    for wish in params.zero_shot:
        for key, name in (("product", wish.product), ("from", wish.lender)):
            if name not in params.products:
                raise InputError(f"{file}: zero_shot: {key}: no product {name!r}; expected one of products")
        if wish.product == wish.lender:
            raise InputError(f"{file}: zero_shot: {wish.product} lends to itself; expected another product in from")
    if params.zero_shot and not any(generator_capabilities(name).zero_shot for name in params.generators):
        raise InputError(f"{file}: zero_shot: no generator in generators can do this; expected one such as defectdiffu")
    if params.normals is not None and not any(
        generator_capabilities(name).generates_normals for name in params.generators
    ):
        raise InputError(f"{file}: normals: no generator in generators draws normal images; expected one such as seas")
    if len({(wish.product, wish.defect) for wish in params.zero_shot}) < len(params.zero_shot):
        raise InputError(f"{file}: zero_shot: a defect is asked for twice on one product; expected each once")
    for arm in params.arms:
        try:
            params.arm(arm)
        except InputError as error:
            raise InputError(f"{file}: arms: {error}") from None
    if params.release is not None:
        offered = [arm for arm in params.arms if arm != BASELINE_ARM]
        if not offered or BASELINE_ARM not in params.arms:
            raise InputError(f"{file}: release: expected {BASELINE_ARM} and at least one other arm in arms")
        if params.release.arm not in ("best", *offered):
            raise InputError(
                f"{file}: release.arm: {params.release.arm!r} is no arm with synthetic pairs; expected best or one of "
                f"{', '.join(offered)}"
            )
