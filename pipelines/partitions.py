"""The grid of params.yaml as Dagster partitions, and which cell of one stage needs which cells of another."""

import warnings

import dagster as dg

from defect_core.graph.instances import Instance, axis_values, instances
from defect_core.graph.table import Stage
from defect_core.project.params import Params

SCOPE = "scope"
CATALOGUE = "catalogue"


def partitions_of(stage: Stage, params: Params) -> dg.PartitionsDefinition | None:
    """The partitions of a stage's asset; None for a stage without a grid.

    The keys are static: the grid lives in params.yaml, and so in git, not in Dagster's database.

    A stage over all products has a second dimension of one value: Dagster maps a part of an axis onto the whole only
    between partitions of several dimensions.
    """
    axes = axis_values(stage, params)
    if not stage.grid:
        return None
    if _over_products(stage):
        parts = {axis: dg.StaticPartitionsDefinition(axes[axis]) for axis in stage.grid}
        return dg.MultiPartitionsDefinition({**parts, SCOPE: dg.StaticPartitionsDefinition([CATALOGUE])})
    if len(stage.grid) == 1:
        return dg.StaticPartitionsDefinition(axes[stage.grid[0]])
    return dg.MultiPartitionsDefinition({axis: dg.StaticPartitionsDefinition(axes[axis]) for axis in stage.grid})


def partition_key(instance: Instance) -> str | None:
    """The partition of an instance: `product`, `generator|product`, `arm|product`; None without a grid."""
    cell = {axis: instance.fields[axis] for axis in instance.stage.grid}
    if not cell:
        return None
    if _over_products(instance.stage):
        cell[SCOPE] = CATALOGUE
    return next(iter(cell.values())) if len(cell) == 1 else dg.MultiPartitionKey(cell)


def instance_of(stage: Stage, key: str | None, params: Params) -> Instance:
    """The instance that a partition key names.

    Raises:
        KeyError: params.yaml no longer has it.
    """
    for instance in instances(stage, params):
        if partition_key(instance) == key:
            return instance
    raise KeyError(f"{stage.name}: no partition {key!r} in params.yaml; reload the definitions")


def dependency(stage: Stage, upstream: Stage, params: Params) -> dg.AssetDep:
    """How a stage's partitions depend on those of a stage that it comes after.

    Dagster infers the mapping where the axes of one are among those of the other, and takes all partitions where
    the stage has no grid. An arm, though, needs the generators whose samples it trains on, and a generator the one
    training that is for generators of its kind. (What a product lends to another one for `zero_shot` is left out: the
    training on the catalogue, which comes in between, needs all products.)
    """
    if _over_products(stage) and not ("arm" in stage.grid and "generator" in upstream.grid):
        return dg.AssetDep(upstream.name, partition_mapping=dg.AllPartitionMapping())
    if "generator" in stage.grid and upstream.scope:
        trained = axis_values(upstream, params)["generator"]
        same = {generator: generator for generator in axis_values(stage, params)["generator"] if generator in trained}
        dimensions = {"generator": dg.DimensionPartitionMapping("generator", dg.StaticPartitionMapping(same))}
        if "product" in upstream.grid:
            dimensions["product"] = dg.DimensionPartitionMapping("product", dg.IdentityPartitionMapping())
        return dg.AssetDep(upstream.name, partition_mapping=_several(dimensions))
    if "arm" in stage.grid and "generator" in upstream.grid:
        arms_of = {generator: _arms_with(generator, params) for generator in params.generators}
        dimensions = {"generator": dg.DimensionPartitionMapping("arm", dg.StaticPartitionMapping(arms_of))}
        if "product" in stage.grid:
            dimensions["product"] = dg.DimensionPartitionMapping("product", dg.IdentityPartitionMapping())
        return dg.AssetDep(upstream.name, partition_mapping=_several(dimensions))
    return dg.AssetDep(upstream.name)


def _several(dimensions: dict[str, dg.DimensionPartitionMapping]) -> dg.MultiPartitionMapping:
    with warnings.catch_warnings():
        # beta in Dagster, whose version this project pins; a test holds the mapping to what it must do
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.MultiPartitionMapping(dimensions)


def _arms_with(generator: str, params: Params) -> list[str]:
    return [arm for arm in params.arms if generator in params.arm(arm).generators]


def _over_products(stage: Stage) -> bool:
    """Whether each instance of a stage is about all products together."""
    return bool(stage.grid) and "product" not in stage.grid
