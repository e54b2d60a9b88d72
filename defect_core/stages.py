"""The Stage table: what the factory does, on what, with which settings and which code; and the one way to run it.

The command line, dvc.yaml (rendered from this table) and the Dagster assets are thin callers of it.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from defect_core.errors import InputError
from defect_core.generators.registry import generator_code, generator_promises, weights_folder
from defect_core.params import BASELINE_ARM, MIX_ARM, Params
from defect_core.project import Project

AXES = ("product", "generator", "arm")


@dataclass(frozen=True)
class Stage:
    """One kind of work on a grid of instances.

    Paths are templates over an instance's fields, relative to the project; code is relative to the folder that
    holds the packages.

    Attributes:
        name: also the name in dvc.yaml and of the Dagster asset.
        grid: the axes that instances vary over: some of `product`, `generator`, `arm`.
        inputs, outputs: files and folders that DVC tracks.
        metrics: small JSON files that stay in git.
        code: files and folders whose change makes the stage stale.
        params: keys of params.yaml whose change makes it stale.
        pool: limits how many run at once (`gpu`, `cpu`).
        about: one line for people.
        after: stages whose outputs `inputs` are.
        section: section of params.yaml that switches the stage on; "" for a stage that always is.
        scope: `product` or `catalogue` where the stage is for generators fitted that way only; "" for all.
        persist: whether DVC leaves the outputs of the last run in place for the next one to see.
    """

    name: str
    grid: tuple[str, ...]
    about: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    pool: str = "cpu"
    section: str = ""
    persist: bool = False
    scope: str = ""


@dataclass(frozen=True)
class Instance:
    """One cell of a stage's grid, with everything its templates need."""

    stage: Stage
    fields: dict[str, str]

    @property
    def key(self) -> str:
        """`product`, `product-generator`, …; empty for a stage without a grid."""
        return "-".join(self.fields[axis] for axis in self.stage.grid)

    @property
    def address(self) -> str:
        """The name in dvc.yaml: `stage@key`."""
        return f"{self.stage.name}@{self.key}" if self.stage.grid else self.stage.name

    def fill(self, templates: tuple[str, ...]) -> list[str]:
        return [template.format(**self.fields) for template in templates]

    @property
    def inputs(self) -> list[str]:
        return self.fill(self.stage.inputs)

    @property
    def outputs(self) -> list[str]:
        return self.fill(self.stage.outputs)

    @property
    def metrics(self) -> list[str]:
        return self.fill(self.stage.metrics)

    @property
    def code(self) -> list[str]:
        return self.fill(self.stage.code)


_READING = ("defect_core/examples.py", "defect_core/data/records.py", "defect_core/generators/base.py")
_TRAINING = (
    "defect_core/training.py",
    "defect_core/data/augment.py",
    "defect_core/data/masks.py",
    "defect_core/backbones/load.py",
    "defect_core/backbones/architecture.py",
    "defect_core/backbones/embedded",
)
_SEGMENTING = (
    "defect_core/steps/segment.py",
    "defect_core/segmentation",
    "defect_core/metrics/bootstrap.py",
    "defect_core/metrics/curves.py",
    "defect_core/metrics/localisation.py",
    "defect_core/metrics/features.py",
    "defect_core/data/manifest.py",
    "defect_core/data/masks.py",
)
_METHOD = (
    "{code}",
    "defect_core/generators/canvas.py",
    "defect_core/generators/composite.py",
    "defect_core/generators/untrained.py",
    "defect_core/generators/views.py",
    "defect_core/data/placement.py",
    "defect_core/diffusion",
    *_TRAINING,
)

STAGES: tuple[Stage, ...] = (
    Stage(
        name="ingest",
        grid=("product",),
        about="Reads real images in any supported layout, checks every file, writes records.",
        inputs=("{source}",),
        outputs=("data/raw/{product}",),
        params=("ingest", "sources.{product}", "seed"),
        code=(
            "defect_core/steps/ingest.py",
            "defect_core/data/layouts",
            "defect_core/data/demo",
            "defect_core/data/records.py",
        ),
    ),
    Stage(
        name="split",
        grid=("product",),
        about="Says which real images train and which test; disjoint by content.",
        inputs=("data/raw/{product}",),
        outputs=("data/split/{product}.parquet",),
        params=("split",),
        code=("defect_core/steps/split.py", "defect_core/data/splits.py", "defect_core/data/records.py"),
        after=("ingest",),
    ),
    Stage(
        name="adapt",
        grid=("product",),
        about="Tunes the backbone to a product's good images; optional.",
        inputs=("data/raw/{product}", "data/split/{product}.parquet"),
        outputs=("data/backbone/{product}",),
        params=("seed", "backbone", "adapt"),
        code=(
            "defect_core/steps/adapt.py",
            "defect_core/adaptation.py",
            "defect_core/generators/canvas.py",
            "defect_core/generators/views.py",
            "defect_core/data/placement.py",
            "defect_core/diffusion",
            *_TRAINING,
            *_READING,
        ),
        after=("ingest", "split"),
        pool="gpu",
        section="adapt",
    ),
    Stage(
        name="finetune",
        grid=("product", "generator"),
        about="Few-shot training of one generator on one product's defects.",
        inputs=("data/raw/{product}", "data/split/{product}.parquet", "{backbone}"),
        outputs=("data/generator/{product}/{generator}",),
        params=("seed", "backbone", "finetune.{generator}", "{override}"),
        code=(
            "defect_core/steps/finetune.py",
            *_METHOD,
            *_READING,
        ),
        after=("ingest", "split", "adapt"),
        pool="gpu",
        scope="product",
    ),
    Stage(
        name="finetune_catalogue",
        grid=("generator",),
        about="Few-shot training of one generator on all products together, also those without defects.",
        inputs=("data/raw", "data/split"),
        outputs=("{weights}",),
        params=("seed", "backbone", "products", "finetune.{generator}"),
        code=(
            "defect_core/steps/finetune_catalogue.py",
            "defect_core/backbones/embedded_dit",
            *_METHOD,
            *_READING,
        ),
        after=("ingest", "split"),
        pool="gpu",
        scope="catalogue",
    ),
    Stage(
        name="synthesize",
        grid=("product", "generator"),
        about="Image-mask pairs in bulk, filtered until enough are accepted.",
        inputs=("{raw}", "{split}", "{weights}", "{backbone}"),
        outputs=("data/synthetic/{product}/{generator}",),
        params=("seed", "backbone", "synthesize", "{draw}", "{borrowed}"),
        code=(
            "defect_core/steps/synthesize.py",
            "defect_core/synthesis.py",
            "defect_core/inspection.py",
            "defect_core/data/manifest.py",
            *_METHOD,
            *_READING,
        ),
        after=("ingest", "split", "adapt", "finetune", "finetune_catalogue"),
        pool="gpu",
    ),
    Stage(
        name="score",
        grid=("product", "generator"),
        about="How close synthetic defects are to real ones, how varied, and how far from being copies.",
        inputs=("data/raw/{product}", "data/split/{product}.parquet", "data/synthetic/{product}/{generator}"),
        metrics=("metrics/score/{product}/{generator}.json",),
        params=("seed", "score"),
        code=(
            "defect_core/steps/score.py",
            "defect_core/metrics",
            "defect_core/data/manifest.py",
            "defect_core/data/masks.py",
            *_READING,
        ),
        after=("ingest", "split", "synthesize"),
        pool="gpu",
    ),
    Stage(
        name="segment",
        grid=("product", "arm"),
        about="Trains and tests the segmenter with and without synthetic pairs.",
        inputs=("data/raw/{product}", "data/split/{product}.parquet", "{samples}"),
        outputs=("data/segment/{product}/{arm}",),
        metrics=("metrics/segment/{product}/{arm}.json",),
        params=("seed", "segment"),
        code=(
            *_SEGMENTING,
            *_READING,
        ),
        after=("ingest", "split", "synthesize"),
        pool="gpu",
    ),
    Stage(
        name="release",
        grid=("product",),
        about="Promotes synthetic pairs only if the segmenter is no worse than with the last release and with none.",
        inputs=(
            "data/raw/{product}",
            "data/split/{product}.parquet",
            "data/synthetic/{product}",
            "metrics/segment/{product}",
        ),
        outputs=("data/release/{product}",),
        metrics=("metrics/release/{product}.json",),
        params=("seed", "segment", "release"),
        code=(
            "defect_core/steps/release.py",
            "defect_core/metrics/spread.py",
            "defect_core/dvcfile.py",
            *_SEGMENTING,
            *_READING,
        ),
        after=("ingest", "split", "synthesize", "segment"),
        pool="gpu",
        section="release",
        persist=True,
    ),
    Stage(
        name="leaderboard",
        grid=(),
        about="One table over all products, generators and arms, and the report.",
        inputs=(
            "metrics/score",
            "metrics/segment",
            "data/synthetic",
            "data/segment",
            "data/generator",
            "data/raw",
            "data/split",
        ),
        outputs=("report",),
        metrics=("metrics/leaderboard.json",),
        params=("products", "generators", "arms"),
        code=("defect_core/steps/leaderboard.py", "defect_core/report", "defect_core/data/manifest.py", *_READING),
        after=("ingest", "split", "finetune", "finetune_catalogue", "synthesize", "score", "segment"),
    ),
)


def stage_named(name: str) -> Stage:
    """The stage of that name. Raises InputError for an unknown one."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise InputError(f"stage {name!r} is unknown; expected one of {', '.join(stage.name for stage in STAGES)}")


def active_stages(params: Params) -> list[Stage]:
    """The stages that params.yaml asks for, in an order in which they can run."""
    return [
        stage
        for stage in STAGES
        if (not stage.section or getattr(params, stage.section) is not None)
        and (stage.scope != "catalogue" or axis_values(stage, params)["generator"])
    ]


def axis_values(stage: Stage, params: Params) -> dict[str, tuple[str, ...]]:
    """What each axis holds for a stage, in the order of params.yaml."""
    generators = params.generators
    if stage.scope:
        catalogue = stage.scope == "catalogue"
        generators = tuple(g for g in generators if (generator_promises(g).scope == "catalogue") == catalogue)
    return {"product": params.products, "generator": generators, "arm": params.arms}


def instances(stage: Stage, params: Params) -> Iterator[Instance]:
    """All cells of a stage's grid, in the order of params.yaml; none of a stage that is switched off."""
    if stage not in active_stages(params):
        return
    values = axis_values(stage, params)
    cells: list[dict[str, str]] = [{}]
    for axis in stage.grid:
        cells = [{**cell, axis: value} for cell in cells for value in values[axis]]
    for cell in cells:
        yield Instance(stage, _fields(cell, params))


def find_instance(name: str, params: Params, **axes: str | None) -> Instance:
    """The one instance that the axes name. Raises InputError when an axis is missing, superfluous or unknown."""
    stage = stage_named(name)
    for axis in AXES:
        if axis in stage.grid and not axes.get(axis):
            raise InputError(f"stage {name}: expected --{axis}")
        if axis not in stage.grid and axes.get(axis):
            raise InputError(f"stage {name}: has no {axis}; expected {_options(stage)}")
    for instance in instances(stage, params):
        if all(instance.fields[axis] == axes[axis] for axis in stage.grid):
            return instance
    for axis, known in (("product", params.products), ("generator", params.generators), ("arm", params.arms)):
        if axis in stage.grid and axes[axis] not in known:
            raise InputError(f"{axis} {axes[axis]!r} is not in params.yaml; expected one of {', '.join(known)}")
    raise InputError(f"stage {name}: no such instance")


def run_stage(project: Project, instance: Instance) -> float:
    """Do an instance's work in this process.

    Returns:
        The seconds it took.
    """
    for path in instance.inputs:
        if not project.path(path).exists():
            raise InputError(f"{path}: missing; run the stages before {instance.stage.name} first (`defectory run`)")
    start = time.monotonic()
    module = import_module(f"defect_core.steps.{instance.stage.name}")
    module.run(project, **{axis: instance.fields[axis] for axis in instance.stage.grid})
    return time.monotonic() - start


def code_root() -> Path:
    """The folder that holds the packages: what `Stage.code` is relative to."""
    return Path(__file__).resolve().parent.parent


def _fields(cell: dict[str, str], params: Params) -> dict[str, str]:
    fields = dict(cell)
    if "product" in cell:
        product = cell["product"]
        # a demo product comes from no file: a file that never changes stands for it
        fields["source"] = params.sources[product].path or "data/README.md"
    if "generator" in cell:
        fields["code"] = generator_code(cell["generator"])
        fields["weights"] = weights_folder(cell.get("product", ""), cell["generator"])
    if {"product", "generator"} <= cell.keys():
        # a defect lent by another product: that one's images are read too
        borrows = bool(params.borrowed(cell["product"], cell["generator"]))
        fields["raw"] = "data/raw" if borrows else f"data/raw/{cell['product']}"
        fields["split"] = "data/split" if borrows else f"data/split/{cell['product']}.parquet"
        fields["borrowed"] = "zero_shot" if borrows else "seed"
        fields["override"] = _own_key("overrides", params.overrides, cell)
        fields["draw"] = _own_key("draws", params.draws, cell)
        # where nothing is adapted, an input that is there anyway stands for the backbone (a generator of the catalogue
        # does not read the adapted one, but Dagster can map a product to all of its generators only)
        folder = "data/raw/{product}/records.parquet" if params.adapt is None else "data/backbone/{product}"
        fields["backbone"] = folder.format(**cell)
    if "arm" in cell:
        fields["samples"] = {
            BASELINE_ARM: f"data/raw/{cell['product']}/records.parquet",
            MIX_ARM: f"data/synthetic/{cell['product']}",
        }.get(cell["arm"], f"data/synthetic/{cell['product']}/{cell['arm']}")
    return fields


def _own_key(section: str, cells: dict[str, dict[str, Any]], cell: dict[str, str]) -> str:
    """The key of params.yaml that holds what is said of this cell alone; `seed`, which is read anyway, stands in.

    So a first entry for one cell makes that cell stale and no other.
    """
    product, generator = cell["product"], cell["generator"]
    if generator not in cells.get(product, {}):
        return "seed"
    # a dot in a name would split the key, so the whole section stands for it
    return section if "." in product + generator else f"{section}.{product}.{generator}"


def _options(stage: Stage) -> str:
    return " ".join(f"--{axis}" for axis in stage.grid) or "no options"
