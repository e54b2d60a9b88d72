"""The grid of params.yaml as Dagster partitions, and the mapping between the partitions of two stages."""

import warnings

import dagster as dg

from defect_core.graph.instances import Instance, axis_values, instances
from defect_core.graph.table import Stage
from defect_core.project.params import Params

SCOPE = "scope"
CATALOGUE = "catalogue"


def partitions_of(stage: Stage, params: Params) -> dg.PartitionsDefinition | None:
    """Return the partitions of the asset of a stage; None for a stage without a grid.

    The keys are static: the grid is in params.yaml and therefore in git, not in Dagster's database.

    A stage over all products has a second dimension with one value, because Dagster maps some values of an axis to a
    whole only between partitions with several dimensions.
    """
    axes = axis_values(stage, params)
    if not stage.grid:
        return None
    if _is_over_products(stage):
        dimensions = {axis: dg.StaticPartitionsDefinition(axes[axis]) for axis in stage.grid}
        return dg.MultiPartitionsDefinition({**dimensions, SCOPE: dg.StaticPartitionsDefinition([CATALOGUE])})
    if len(stage.grid) == 1:
        return dg.StaticPartitionsDefinition(axes[stage.grid[0]])
    return dg.MultiPartitionsDefinition({axis: dg.StaticPartitionsDefinition(axes[axis]) for axis in stage.grid})


def partition_key(instance: Instance) -> str | None:
    """Return the partition of an instance: `product`, `generator|product` or `arm|product`; None without a grid."""
    cell = {axis: instance.fields[axis] for axis in instance.stage.grid}
    if not cell:
        return None
    if _is_over_products(instance.stage):
        cell[SCOPE] = CATALOGUE
    return next(iter(cell.values())) if len(cell) == 1 else dg.MultiPartitionKey(cell)


def instance_of(stage: Stage, key: str | None, params: Params) -> Instance:
    """Return the instance of a partition.

    Args:
        stage: its stage.
        key: its partition; None for a stage without a grid.
        params: the settings of the project.

    Raises:
        KeyError: params.yaml no longer has it.
    """
    for instance in instances(stage, params):
        if partition_key(instance) == key:
            return instance
    raise KeyError(f"{stage.name}: no partition {key!r} in params.yaml; reload the definitions")


def dependency(stage: Stage, upstream: Stage, params: Params) -> dg.AssetDep:
    """Return how the partitions of a stage depend on those of a stage before it.

    Dagster infers the mapping if the axes of one stage are among those of the other, and takes all partitions if the
    stage has no grid. Two cases need an explicit mapping: an arm depends on the generators whose samples it trains on,
    and a generator depends on the one training stage for its scope. A lender of `zero_shot` needs none, because the
    training on the catalogue, which comes in between, depends on all products.

    Args:
        stage: the stage that reads.
        upstream: the stage that is read.
        params: the settings of the project.
    """
    is_arm_of_generator = "arm" in stage.grid and "generator" in upstream.grid
    if _is_over_products(stage) and not is_arm_of_generator:
        return dg.AssetDep(upstream.name, partition_mapping=dg.AllPartitionMapping())
    if "generator" in stage.grid and upstream.scope:
        trained = axis_values(upstream, params)["generator"]
        same = {generator: generator for generator in axis_values(stage, params)["generator"] if generator in trained}
        mapping = dg.DimensionPartitionMapping("generator", dg.StaticPartitionMapping(same))
        return dg.AssetDep(upstream.name, partition_mapping=_mapping(mapping, "product" in upstream.grid))
    if is_arm_of_generator:
        arms = {generator: _arms_with(generator, params) for generator in params.generators}
        mapping = dg.DimensionPartitionMapping("arm", dg.StaticPartitionMapping(arms))
        return dg.AssetDep(upstream.name, partition_mapping=_mapping(mapping, "product" in stage.grid))
    return dg.AssetDep(upstream.name)


def _mapping(generators: dg.DimensionPartitionMapping, has_product: bool) -> dg.MultiPartitionMapping:
    """Return a mapping from the upstream dimension `generator`, and from the same product if both stages have one."""
    dimensions = {"generator": generators}
    if has_product:
        dimensions["product"] = dg.DimensionPartitionMapping("product", dg.IdentityPartitionMapping())
    with warnings.catch_warnings():
        # The mapping is a beta feature of Dagster, whose version is pinned. A test checks what it maps.
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.MultiPartitionMapping(dimensions)


def _arms_with(generator: str, params: Params) -> list[str]:
    return [arm for arm in params.arms if generator in params.arm(arm).generators]


def _is_over_products(stage: Stage) -> bool:
    """Return whether each instance of a stage is about all products together."""
    return bool(stage.grid) and "product" not in stage.grid
