"""The instances of the Stage table that a project's params.yaml asks for, and the one way to run one.

The command line, dvc.yaml (rendered from the instances) and the Dagster assets are thin callers.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from defect_core.errors import InputError
from defect_core.generators.registry import generator_capabilities, generator_code, weights_folder
from defect_core.graph.table import STAGES, Stage
from defect_core.project.arms import BASELINE_ARM, MIX_ARM
from defect_core.project.params import Params
from defect_core.project.paths import Project

AXES = ("product", "generator", "arm")


@dataclass(frozen=True)
class Instance:
    """One cell of a stage's grid, with everything its templates need.

    The stage's `inputs` are those of this project: what `Stage.extra` and `*` stand for is filled in.
    """

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
        and ((stage.scope != "catalogue" and not stage.capability) or axis_values(stage, params)["generator"])
    ]


def axis_values(stage: Stage, params: Params) -> dict[str, tuple[str, ...]]:
    """What each axis holds for a stage, in the order of params.yaml."""
    generators = params.generators
    if stage.scope:
        catalogue = stage.scope == "catalogue"
        generators = tuple(g for g in generators if (generator_capabilities(g).scope == "catalogue") == catalogue)
    if stage.capability:
        generators = tuple(g for g in generators if getattr(generator_capabilities(g), stage.capability))
    return {"product": params.products, "generator": generators, "arm": params.arms}


def instances(stage: Stage, params: Params) -> Iterator[Instance]:
    """All cells of a stage's grid, in the order of params.yaml; none of a stage that is switched off."""
    if stage.name not in {active.name for active in active_stages(params)}:
        return
    stage = replace(stage, inputs=_inputs(stage, params))
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
    able = ", ".join(axis_values(stage, params)["generator"])
    if stage.capability and able:
        raise InputError(
            f"stage {name}: {axes['generator']} lacks the capability {stage.capability}; expected one of {able}"
        )
    raise InputError(f"stage {name}: no such instance")


def run_in_process(project: Project, instance: Instance) -> None:
    """Do an instance's work in this process."""
    module = import_module(f"defect_core.stages.{instance.stage.name}")
    module.run(project, **{axis: instance.fields[axis] for axis in instance.stage.grid})


def run_stage(
    project: Project, instance: Instance, work: Callable[[Project, Instance], None] = run_in_process
) -> float:
    """Have an instance's work done, in this process where `work` is not given.

    Returns:
        The seconds it took.
    """
    for path in instance.inputs:
        if not project.path(path).exists():
            raise InputError(f"{path}: missing; run the stages before {instance.stage.name} first (`defectory run`)")
    start = time.monotonic()
    work(project, instance)
    return time.monotonic() - start


def code_root() -> Path:
    """The folder that holds the packages: what `Stage.code` is relative to."""
    return Path(__file__).resolve().parents[2]


def _fields(cell: dict[str, str], params: Params) -> dict[str, str]:
    fields = dict(cell)
    if "product" in cell:
        product = cell["product"]
        fields["source"] = params.sources[product].tracked(product)
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
    if {"product", "arm"} <= cell.keys():
        fields["samples"] = _samples(cell["product"], cell["arm"], params)
    elif "arm" in cell:
        for number, product in enumerate(params.products):
            fields[f"samples{number}"] = _samples(product, cell["arm"], params)
    return fields


def _samples(product: str, arm: str, params: Params) -> str:
    """What an arm reads of a product's synthetic sets; the records, which it reads anyway, stand in for none."""
    base = params.arm(arm).base
    if base == BASELINE_ARM:
        return f"data/raw/{product}/records.parquet"
    return f"data/synthetic/{product}" + ("" if base == MIX_ARM else f"/{base}")


def _inputs(stage: Stage, params: Params) -> tuple[str, ...]:
    found: list[str] = []
    for template in stage.inputs:
        numbers = range(len(params.products)) if "*" in template else [0]
        found += [template.replace("*", str(number)) for number in numbers]
    return (*found, *(path for section, path in stage.extra if getattr(params, section) is not None))


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
