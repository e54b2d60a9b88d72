"""On Kubernetes every step is a pod, by Dagster's integration; a step of the pool `gpu` requests one GPU."""

import os
from typing import Any

import dagster as dg

CONFIG_TAG = "dagster-k8s/config"
GPU_RESOURCE = "nvidia.com/gpu"


def runs_on_kubernetes() -> bool:
    """Return whether DEFECTORY_RUNNER is `kubernetes`."""
    return os.environ.get("DEFECTORY_RUNNER") == "kubernetes"


def step_tags(pool: str) -> dict[str, Any]:
    """Return the tags of an op for its pod.

    They are empty if the runner is not Kubernetes, for the pool `cpu`, or if DEFECTORY_GPU_RESOURCE is empty.

    Args:
        pool: `gpu` or `cpu`.
    """
    resource = os.environ.get("DEFECTORY_GPU_RESOURCE", GPU_RESOURCE)
    if not runs_on_kubernetes() or pool != "gpu" or not resource:
        return {}
    return {CONFIG_TAG: {"container_config": {"resources": {"limits": {resource: "1"}}}}}


def executor() -> dg.ExecutorDefinition:
    """Return the executor of all jobs: one pod per step on Kubernetes, otherwise the process of the run.

    A step only waits for its child process, so a process per step would cost seconds and gain nothing.
    """
    if not runs_on_kubernetes():
        return dg.in_process_executor
    from dagster_k8s import k8s_job_executor  # pyright: ignore[reportMissingImports]  # the extra k8s is optional

    return k8s_job_executor
