"""The instances of the stage table that a project's params.yaml asks for, and the one way to run one.

The command line, dvc.yaml (rendered from the instances) and the Dagster assets are thin callers.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from defect_core.data.placement_settings import ANY
from defect_core.errors import InputError, suggest
from defect_core.generators.registry import generator_code_path
from defect_core.graph.code import shared_code, stage_code
from defect_core.graph.table import STAGES, Stage
from defect_core.project.arms import BASELINE_ARM, MIX_ARM
from defect_core.project.params import Params
from defect_core.project.paths import Project

AXES = ("product", "generator", "arm")
# A file that every instance reads anyway. It takes the place of an input that an instance does not have, so that all
# instances of a stage share one block of dvc.yaml.
NO_INPUT = "data/raw/{product}/records.parquet"
# A key of params.yaml that every instance reads anyway, for the same purpose.
NO_KEY = "seed"


@dataclass(frozen=True)
class Instance:
    """One cell of a stage's grid, with all fields that the templates of the stage need.

    Attributes:
        stage: the row of the stage table; its `inputs` are those of this project, with `optional_inputs` and `*`
            filled in.
        fields: value by axis, and the fields derived from them.
    """

    stage: Stage
    fields: dict[str, str]

    @property
    def key(self) -> str:
        """`product`, `product-generator`, and so on; empty for a stage without a grid."""
        return "-".join(self.fields[axis] for axis in self.stage.grid)

    @property
    def address(self) -> str:
        """The name in dvc.yaml: `stage@key`."""
        return f"{self.stage.name}@{self.key}" if self.stage.grid else self.stage.name

    @property
    def code_key(self) -> str:
        """The key in code.json, see `code_key`."""
        return code_key(self.address)

    def fill(self, templates: tuple[str, ...]) -> list[str]:
        """Return templates with the fields of this instance filled in."""
        return [template.format(**self.fields) for template in templates]

    @property
    def inputs(self) -> list[str]:
        """Files and folders that the instance reads, relative to the project."""
        return self.fill(self.stage.inputs)

    @property
    def outputs(self) -> list[str]:
        """Files and folders that the instance writes and DVC tracks."""
        return self.fill(self.stage.outputs)

    @property
    def metrics(self) -> list[str]:
        """JSON files that the instance writes and git tracks."""
        return self.fill(self.stage.metrics)

    @property
    def code(self) -> list[str]:
        """Code files and folders that the instance depends on, relative to `graph.code.code_root`."""
        return stage_code(self.stage, self.fields.get("generator"))

    @property
    def code_templates(self) -> list[str]:
        """The same for all instances of the stage: the shared code, and `{code}` for the package of the generator."""
        return [*shared_code(self.stage), *(["{code}"] if self.stage.runs_generator else [])]


def code_key(address: str) -> str:
    """Return the key of an instance in code.json; DVC would take a dot in it for a step into a mapping."""
    return address.replace(".", "~")


def stage_named(name: str) -> Stage:
    """Return the stage of that name. Raises InputError for an unknown one."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise InputError(f"stage {name!r} is unknown; {suggest(name, [stage.name for stage in STAGES])}")


def active_stages(params: Params) -> list[Stage]:
    """Return the stages that params.yaml asks for, in an order in which they can run."""
    return [
        stage
        for stage in STAGES
        if (not stage.section or getattr(params, stage.section) is not None)
        and ((stage.scope != "catalogue" and not stage.capability) or axis_values(stage, params)["generator"])
    ]


def axis_values(stage: Stage, params: Params) -> dict[str, tuple[str, ...]]:
    """Return the values of each axis for a stage, in the order of params.yaml."""
    generators = params.generators
    if stage.scope:
        catalogue = stage.scope == "catalogue"
        generators = tuple(g for g in generators if (params.capabilities(g).scope == "catalogue") == catalogue)
    if stage.capability:
        generators = tuple(g for g in generators if getattr(params.capabilities(g), stage.capability))
    return {"product": params.products, "generator": generators, "arm": params.arms}


def instances(stage: Stage, params: Params) -> Iterator[Instance]:
    """Yield all cells of a stage's grid, in the order of params.yaml; none of a stage that is switched off."""
    if stage.name not in {active.name for active in active_stages(params)}:
        return
    values = axis_values(stage, params)
    stage = replace(stage, inputs=_project_inputs(stage, params))
    cells: list[dict[str, str]] = [{}]
    for axis in stage.grid:
        cells = [{**cell, axis: value} for cell in cells for value in values[axis]]
    for cell in cells:
        yield Instance(stage, _fields(cell, params))


def find_instance(name: str, params: Params, **axes: str | None) -> Instance:
    """Return the instance that the axes name.

    Raises:
        InputError: an axis is missing, superfluous or unknown.
    """
    stage = stage_named(name)
    for axis in AXES:
        if axis in stage.grid and not axes.get(axis):
            raise InputError(f"stage {name}: expected --{axis}")
        if axis not in stage.grid and axes.get(axis):
            options = " ".join(f"--{axis}" for axis in stage.grid) or "no options"
            raise InputError(f"stage {name}: has no {axis}; expected {options}")
    for instance in instances(stage, params):
        if all(instance.fields[axis] == axes[axis] for axis in stage.grid):
            return instance
    for axis, known in (("product", params.products), ("generator", params.generators), ("arm", params.arms)):
        if axis in stage.grid and axes[axis] not in known:
            raise InputError(f"{axis} {axes[axis]!r} is not in params.yaml; {suggest(str(axes[axis]), known)}")
    capable = ", ".join(axis_values(stage, params)["generator"])
    if stage.capability and capable:
        raise InputError(
            f"stage {name}: {axes['generator']} lacks the capability {stage.capability}; expected one of {capable}"
        )
    raise InputError(f"stage {name}: no such instance")


def run_in_process(project: Project, instance: Instance) -> None:
    """Do the work of an instance in this process."""
    module = import_module(f"defect_core.stages.{instance.stage.name}")
    module.run(project, **{axis: instance.fields[axis] for axis in instance.stage.grid})


def run_stage(
    project: Project, instance: Instance, work: Callable[[Project, Instance], None] = run_in_process
) -> float:
    """Do the work of an instance and return the seconds it took.

    Args:
        project: the project of the instance.
        instance: what to run.
        work: does the work, in this process or elsewhere.

    Raises:
        InputError: an input is missing.
    """
    for path in instance.inputs:
        if not project.path(path).exists():
            raise InputError(f"{path}: missing; run the stages before {instance.stage.name} first (`defectory run`)")
    start = time.monotonic()
    work(project, instance)
    return time.monotonic() - start


def _project_inputs(stage: Stage, params: Params) -> tuple[str, ...]:
    """Return the input templates of a stage in this project."""
    inputs: list[str] = []
    for template in stage.inputs:
        numbers = range(len(params.products)) if "*" in template else [0]
        inputs += [template.replace("*", str(number)) for number in numbers]
    return (*inputs, *(path for section, path in stage.optional_inputs if getattr(params, section) is not None))


def _fields(cell: dict[str, str], params: Params) -> dict[str, str]:
    """Return the axes of a cell and the fields that templates derive from them."""
    fields = dict(cell)
    if "product" in cell:
        product = cell["product"]
        fields["source"] = params.sources[product].tracked_input(product)
    if "generator" in cell:
        fields["code"] = generator_code_path(cell["generator"])
        fields["weights"] = params.generator_folder(cell.get("product", ""), cell["generator"])
    if {"product", "generator"} <= cell.keys():
        fields |= _generator_fields(cell, params)
    if {"product", "arm"} <= cell.keys():
        fields["samples"] = _arm_input(cell["product"], cell["arm"], params)
    elif "arm" in cell:
        for number, product in enumerate(params.products):
            fields[f"samples{number}"] = _arm_input(product, cell["arm"], params)
    return fields


def _generator_fields(cell: dict[str, str], params: Params) -> dict[str, str]:
    """Return the fields of an instance that runs one generator on one product."""
    # A zero-shot defect is generated after examples of another product, whose images are then read too.
    borrows = bool(params.borrowed_defects(cell["product"], cell["generator"]))
    # A catalogue generator does not read the adapted backbone, but Dagster maps a product to all of its generators.
    backbone = NO_INPUT if params.adapt is None else "data/backbone/{product}"
    return {
        "raw": "data/raw" if borrows else "data/raw/{product}".format(**cell),
        "split": "data/split" if borrows else "data/split/{product}.parquet".format(**cell),
        "borrowed": "zero_shot" if borrows else NO_KEY,
        "placement": _placement_key(cell["product"], params),
        "override": _cell_key("overrides", params.overrides, cell),
        "regeneration": _cell_key("regenerations", params.regenerations, cell),
        "backbone": backbone.format(**cell),
    }


def _arm_input(product: str, arm: str, params: Params) -> str:
    """Return the synthetic sets of a product that an arm reads."""
    base = params.arm(arm).base
    if base == BASELINE_ARM:
        return NO_INPUT.format(product=product)
    return f"data/synthetic/{product}" + ("" if base == MIX_ARM else f"/{base}")


def _placement_key(product: str, params: Params) -> str:
    """Return the key of params.yaml with the placement rules of a product."""
    if ANY in params.placement:
        return "placement"
    if product not in params.placement:
        return NO_KEY
    return "placement" if "." in product else f"placement.{product}"


def _cell_key(section: str, cells: dict[str, dict[str, Any]], cell: dict[str, str]) -> str:
    """Return the key of params.yaml that is about this cell alone, so that a new entry makes no other cell stale."""
    product, generator = cell["product"], cell["generator"]
    if generator not in cells.get(product, {}):
        return NO_KEY
    # A dot in a name would split the key, so the whole section takes its place.
    return section if "." in product + generator else f"{section}.{product}.{generator}"
