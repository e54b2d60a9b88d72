"""On Kubernetes every step is a pod, through Dagster's own integration; work of the pool `gpu` asks for one GPU."""

import os
from typing import Any

import dagster as dg

CONFIG_TAG = "dagster-k8s/config"
GPU_RESOURCE = "nvidia.com/gpu"


def chosen() -> bool:
    """Whether DEFECTORY_RUNNER says so."""
    return os.environ.get("DEFECTORY_RUNNER") == "kubernetes"


def step_tags(pool: str) -> dict[str, Any]:
    """Tags of an op for the pod that it gets; none elsewhere, or where DEFECTORY_GPU_RESOURCE is set to nothing.

    Args:
        pool: `gpu` or `cpu`.
    """
    resource = os.environ.get("DEFECTORY_GPU_RESOURCE", GPU_RESOURCE)
    if not chosen() or pool != "gpu" or not resource:
        return {}
    return {CONFIG_TAG: {"container_config": {"resources": {"limits": {resource: "1"}}}}}


def executor() -> dg.ExecutorDefinition:
    """A pod per step on Kubernetes. Elsewhere the run's own process: a step only waits for its child process, so a
    process of its own buys nothing and costs seconds."""
    if not chosen():
        return dg.in_process_executor
    from dagster_k8s import k8s_job_executor

    return k8s_job_executor
