"""Stage instances as tasks of a Ray cluster: one task per instance, and one per shard of a synthetic set.

A task receives the declared inputs of its instance and returns its outputs, so the machines share no file system. Each
machine needs this package in the same version, and the same backbone. Ray repeats a task whose worker dies. The task
writes the same bytes again, because only its files and settings decide them.

dagster-ray does not serve here: it runs whole Dagster steps in Ray, while `dvc repro` and `defectory run` need the same
cluster without Dagster, and shards need results that become files before the stage ends.
"""

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from defect_core.errors import InputError
from defect_core.generators.base import Generator
from defect_core.generators.registry import generator_capabilities
from defect_core.graph.code import code_digest
from defect_core.graph.instances import Instance, find_instance, run_in_process
from defect_core.graph.shards import (
    Files,
    collect_files,
    install_outputs,
    pack_inputs,
    pack_outputs,
    split_into_shards,
    temporary_work_folder,
    write_files,
)
from defect_core.project.paths import Project, synthetic_folder
from defect_core.project.synthesis import SynthesisJob, load_project_generator, load_synthesis_job
from defect_core.synthesis.batches import Batch, collect_batches, next_batches, sample_batches
from defect_core.synthesis.requests import defect_types

logger = logging.getLogger(__name__)

MAX_RETRIES = 3
CONNECT_TIMEOUT_S = 10
LOOPBACK = ("127.0.0.1:", "localhost:")
Axes = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class WorkerRequirements:
    """What a worker must have in common with this machine.

    Attributes:
        code: digest of the instance's code.
        threads: number of CPU threads, because the rounding of a sum may depend on it; 0 for work without torch.
    """

    code: str
    threads: int


@dataclass(frozen=True)
class WorkerResult:
    """What a worker returns.

    Attributes:
        files: what it wrote.
        device: kind of device on which it computed.
        worker: process and host.
        input_error: message of an `InputError`; "" if there was none.
    """

    files: Files
    device: str
    worker: str
    input_error: str = ""


def runs_locally(instance: Instance) -> bool:
    """Return whether an instance runs on this machine although there is a cluster.

    This holds for light work, for work that reads what an earlier run left, and for files outside the project.
    """
    outside = any(path.startswith(("../", "/", "remote://")) for path in instance.inputs)
    return instance.stage.pool != "gpu" or instance.stage.persist or outside


def run_on_ray(project: Project, instance: Instance) -> None:
    """Do the work of an instance on the cluster at RAY_ADDRESS, or in processes of this machine without an address.

    Raises:
        InputError: Ray is not installed, there is no cluster at that address, or the work raised one.
        RuntimeError: a worker has other code, or workers of one set computed on different kinds of devices.
    """
    if runs_locally(instance):
        run_in_process(project, instance)
        return
    with _connected() as ray:
        if instance.stage.name == "synthesize":
            _synthesize(ray, project, instance)
            return
        inputs = ray.put(pack_inputs(project, instance))
        task, _ = _remote(ray, _run_instance)
        requirements = _requirements(instance)
        (result,) = _results(ray, [task.remote([inputs], instance.stage.name, _axes(instance), requirements)])
        logger.info("%s: done by %s on %s", instance.address, result.worker, result.device)
        install_outputs(result.files, project, instance)


def _synthesize(ray: Any, project: Project, instance: Instance) -> None:
    """Sample a set shard by shard; finished shards are kept if this process is killed."""
    product, generator = instance.fields["product"], instance.fields["generator"]
    job = load_synthesis_job(project, product, generator)
    defects = defect_types(job.plan, job.examples)
    requirements = _requirements(instance)
    task, slots = _remote(ray, _sample_shard)
    device = None
    with project.building(synthetic_folder(product, generator), job.key) as work:
        inputs = ray.put(pack_inputs(project, instance))
        while batches := next_batches(job.plan, defects, work):
            shards = [
                task.remote([inputs], _axes(instance), shard, requirements)
                for shard in split_into_shards(batches, slots)
            ]
            for number, result in enumerate(_results(ray, shards), 1):
                device = device or result.device
                if result.device != device:
                    raise RuntimeError(
                        f"{instance.address}: sampled on {device} and on {result.device}, which round differently; "
                        "expected workers of one kind"
                    )
                write_files(result.files, work, last="batch-")
                logger.info(
                    "%s: shard %d of %d sampled by %s on %s",
                    instance.address,
                    number,
                    len(shards),
                    result.worker,
                    device,
                )
        collect_batches(job.plan, defects, work)


@contextmanager
def _connected() -> Iterator[Any]:
    """Yield the ray module, connected to a cluster."""
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address or address.startswith(LOOPBACK):
        # With this setting Ray binds to loopback only, and accepts a loopback address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray  # pyright: ignore[reportMissingImports] - an optional extra
    except ImportError:
        raise InputError("DEFECTORY_RUNNER: ray is not installed; expected `pip install 'defectory[ray]'`") from None
    if ray.is_initialized():
        yield ray
        return
    if address:
        _check_reachable(address)
        ray.init(address=address, logging_level=logging.WARNING)
    else:
        ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING)
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Fail at once if there is no cluster: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # The address can be `auto`.
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError:
        raise InputError(f"RAY_ADDRESS: no answer at {address}; expected HOST:PORT of a cluster's head") from None


def _remote(ray: Any, work: Callable) -> tuple[Any, int]:
    """Return a function as a Ray task, and how many can run at once: one per GPU, or one per CPU without GPUs."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    task = ray.remote(work).options(
        num_cpus=1, num_gpus=1 if gpus else 0, max_retries=MAX_RETRIES, name=work.__name__.strip("_")
    )
    return task, gpus or max(1, int(resources.get("CPU", 1)))


def _results(ray: Any, pending: list) -> Iterator[WorkerResult]:
    """Yield results in the order in which they arrive. Raises InputError if a worker met one."""
    while pending:
        (done,), pending = ray.wait(pending)
        result = ray.get(done)
        if result.input_error:
            raise InputError(result.input_error)
        yield result


def _requirements(instance: Instance) -> WorkerRequirements:
    generator = instance.fields.get("generator")
    if generator is not None and not generator_capabilities(generator).uses_backbone:
        return WorkerRequirements(code_digest(instance.code), 0)
    import torch

    return WorkerRequirements(code_digest(instance.code), torch.get_num_threads())


def _axes(instance: Instance) -> Axes:
    return tuple((axis, instance.fields[axis]) for axis in instance.stage.grid)


# The functions below run in a worker. Inputs arrive as a reference in a list, so that a worker fetches them only if it
# needs them.


def _run_instance(inputs: list, name: str, axes: Axes, requirements: WorkerRequirements) -> WorkerResult:
    """Do the work of an instance in a temporary folder of this worker."""

    def work() -> Files:
        with temporary_work_folder() as folder:
            project, instance = _unpack(inputs[0], folder, name, axes, requirements)
            run_in_process(project, instance)
            return pack_outputs(project, instance)

    return _run(work)


def _sample_shard(inputs: list, axes: Axes, batches: list[Batch], requirements: WorkerRequirements) -> WorkerResult:
    """Sample some batches of a set."""

    def work() -> Files:
        job, generator = _open_job(inputs[0], axes, requirements)
        with temporary_work_folder() as folder:
            sample_batches(generator, job.plan, job.examples, folder, batches)
            return collect_files(folder)

    return _run(work)


@lru_cache(maxsize=1)
def _open_job(inputs: Any, axes: Axes, requirements: WorkerRequirements) -> tuple[SynthesisJob, Generator]:
    """Return the job and the trained generator; kept for the next shard of this worker."""
    with temporary_work_folder() as folder:
        project, instance = _unpack(inputs, folder, "synthesize", axes, requirements)
        product, generator = instance.fields["product"], instance.fields["generator"]
        return load_synthesis_job(project, product, generator), load_project_generator(project, product, generator)


def _unpack(
    inputs: Any, folder: Path, name: str, axes: Axes, requirements: WorkerRequirements
) -> tuple[Project, Instance]:
    """Write the inputs of an instance into `folder`. Raises RuntimeError if this worker has other code."""
    import ray  # pyright: ignore[reportMissingImports] - an optional extra

    if requirements.threads:
        import torch

        torch.set_num_threads(requirements.threads)
    write_files(ray.get(inputs), folder)
    project = Project(folder)
    instance = find_instance(name, project.params, **dict(axes))
    if code_digest(instance.code) != requirements.code:
        raise RuntimeError(
            f"{instance.address}: {socket.gethostname()} has other code for it than the machine that asks; expected "
            "the same version of defectory on both"
        )
    return project, instance


def _run(work: Callable[[], Files]) -> WorkerResult:
    """Return the files of some work with the kind of device, or the message of an InputError."""
    worker = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        files = work()
    except InputError as error:
        return WorkerResult({}, "", worker, str(error))
    torch = sys.modules.get("torch")
    if torch is None:
        return WorkerResult(files, "any CPU", worker)
    if torch.cuda.is_available():
        return WorkerResult(files, torch.cuda.get_device_name(0), worker)
    return WorkerResult(files, f"a CPU with {torch.backends.cpu.get_cpu_capability()}", worker)
