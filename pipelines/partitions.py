"""The grid of params.yaml as Dagster partitions, and which cell of one stage needs which cells of another."""

import warnings

import dagster as dg

from defect_core.params import BASELINE_ARM, MIX_ARM, Params
from defect_core.stages import Instance, Stage, instances


def partitions_of(stage: Stage, params: Params) -> dg.PartitionsDefinition | None:
    """The partitions of a stage's asset; None for a stage without a grid.

    The keys are static: the grid lives in params.yaml, and so in git, not in Dagster's database.
    """
    axes = {"product": params.products, "generator": params.generators, "arm": params.arms}
    if not stage.grid:
        return None
    if len(stage.grid) == 1:
        return dg.StaticPartitionsDefinition(axes[stage.grid[0]])
    return dg.MultiPartitionsDefinition({axis: dg.StaticPartitionsDefinition(axes[axis]) for axis in stage.grid})


def partition_key(instance: Instance) -> str | None:
    """The partition of an instance: `product`, `generator|product`, `arm|product`; None without a grid."""
    cell = {axis: instance.fields[axis] for axis in instance.stage.grid}
    if not cell:
        return None
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
    the stage has no grid. An arm, though, needs the generators whose samples it trains on.
    """
    if "arm" in stage.grid and "generator" in upstream.grid:
        arms_of = {generator: _arms_with(generator, params) for generator in params.generators}
        with warnings.catch_warnings():
            # beta in Dagster, whose version this project pins; a test holds the mapping to what it must do
            warnings.simplefilter("ignore", dg.BetaWarning)
            mapping = dg.MultiPartitionMapping(
                {
                    "product": dg.DimensionPartitionMapping("product", dg.IdentityPartitionMapping()),
                    "generator": dg.DimensionPartitionMapping("arm", dg.StaticPartitionMapping(arms_of)),
                }
            )
        return dg.AssetDep(upstream.name, partition_mapping=mapping)
    return dg.AssetDep(upstream.name)


def _arms_with(generator: str, params: Params) -> list[str]:
    return [arm for arm in params.arms if arm != BASELINE_ARM and arm in (generator, MIX_ARM)]
