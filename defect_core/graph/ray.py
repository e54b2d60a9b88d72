"""A cluster of Ray: a stage instance is one task, a synthetic set one task for each shard. Nothing else needs Ray.

A task gets the files that its instance is declared to read and gives back those that it writes, so the machines share
no file system. Each needs this package in the same version, and the same backbone at hand. A task whose worker dies
is tried again, and makes the same bytes, since nothing but its files and settings decides them.
"""

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
from defect_core.generators.registry import generator_capabilities
from defect_core.graph.dvcfile import code_digest
from defect_core.graph.instances import Instance, find_instance, run_in_process
from defect_core.graph.shards import Files, collect, deal, deliver, pack_inputs, pack_outputs, scratch, write_files
from defect_core.project.paths import Project
from defect_core.stages.synthesize import SynthesisJob, load_synthesis_job, open_generator, output_folder
from defect_core.synthesis.batches import Batch, defects_of, gather, next_batches, sample_batches

RETRIES = 3
LOOPBACK = ("127.0.0.1:", "localhost:")
Axes = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Terms:
    """What a worker must agree to: the digest of the instance's code, and the number of CPU threads (0 for work without
    torch), for the last bit of a sum may depend on how many add it up."""

    code: str
    threads: int


@dataclass(frozen=True)
class Answer:
    """What a worker gives back: files, what kind of device it computed on, who it is; or the user's mistake it met."""

    files: Files
    device: str
    worker: str
    mistake: str = ""


def belongs_here(instance: Instance) -> bool:
    """Whether an instance is done on this machine, though there is a cluster: light work, work that looks at what an
    earlier run left, and work that reads files outside the project."""
    outside = any(path.startswith(("../", "/")) for path in instance.inputs)
    return instance.stage.pool != "gpu" or instance.stage.persist or outside


def run_on_ray(project: Project, instance: Instance) -> None:
    """Do an instance's work on the cluster that RAY_ADDRESS names; without one, in processes of this machine.

    Raises:
        InputError: Ray is not installed, there is no cluster at that address, or a mistake that the work itself met.
        RuntimeError: a worker has other code, or workers of one set compute on unlike devices.
    """
    if belongs_here(instance):
        run_in_process(project, instance)
        return
    with _connected() as ray:
        if instance.stage.name == "synthesize":
            _synthesize(ray, project, instance)
            return
        given = ray.put(pack_inputs(project, instance))
        task, _ = _remote(ray, _do_instance)
        (answer,) = _answers(ray, [task.remote([given], instance.stage.name, _axes(instance), _terms(instance))])
        print(f"{instance.address}: done by {answer.worker} on {answer.device}", file=sys.stderr, flush=True)
        deliver(answer.files, project, instance)


def _synthesize(ray: Any, project: Project, instance: Instance) -> None:
    """Draw a set, shard by shard; what came back stays if this process is killed."""
    product, generator = instance.fields["product"], instance.fields["generator"]
    order = load_synthesis_job(project, product, generator)
    defects = defects_of(order.recipe, order.examples)
    terms = _terms(instance)
    task, slots = _remote(ray, _draw_shard)
    device = None
    with project.building(output_folder(product, generator), order.key) as work:
        given = ray.put(pack_inputs(project, instance))
        while batches := next_batches(order.recipe, defects, work):
            shards = [task.remote([given], _axes(instance), shard, terms) for shard in deal(batches, slots)]
            for done, answer in enumerate(_answers(ray, shards), 1):
                device = device or answer.device
                if answer.device != device:
                    raise RuntimeError(
                        f"{instance.address}: drawn on {device} and on {answer.device}, which round otherwise; "
                        "expected workers of one kind"
                    )
                write_files(answer.files, work, last="batch-")
                said = f"{instance.address}: shard {done} of {len(shards)} drawn by {answer.worker} on {device}"
                print(said, file=sys.stderr, flush=True)
        gather(order.recipe, defects, work)


@contextmanager
def _connected() -> Iterator[Any]:
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address or address.startswith(LOOPBACK):
        # what Ray does on systems where it has no clusters: it keeps to loopback, and takes a loopback address as such
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ImportError:
        raise InputError("DEFECTORY_RUNNER: ray is not installed; expected `pip install 'defectory[ray]'`") from None
    if ray.is_initialized():
        yield ray
        return
    if address:
        _check_reachable(address)
        ray.init(address=address, logging_level="warning")
    else:
        ray.init(address="local", include_dashboard=False, logging_level="warning")
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Say at once that nobody is there: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # `auto`
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError:
        raise InputError(f"RAY_ADDRESS: nobody answers at {address}; expected HOST:PORT of a cluster's head") from None


def _remote(ray: Any, work: Callable) -> tuple[Any, int]:
    """A function as a task of one GPU, of one CPU where the cluster has none; and how many of them can run at once."""
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    task = ray.remote(work).options(
        num_cpus=1, num_gpus=1 if gpus else 0, max_retries=RETRIES, name=work.__name__.strip("_")
    )
    return task, gpus or max(1, int(there.get("CPU", 1)))


def _answers(ray: Any, pending: list) -> Iterator[Answer]:
    """Answers in the order in which they come.

    Raises:
        InputError: a mistake that a worker met.
    """
    while pending:
        (done,), pending = ray.wait(pending)
        answer = ray.get(done)
        if answer.mistake:
            raise InputError(answer.mistake)
        yield answer


def _terms(instance: Instance) -> Terms:
    generator = instance.fields.get("generator")
    if generator is not None and not generator_capabilities(generator).uses_backbone:
        return Terms(code_digest(instance), 0)
    import torch

    return Terms(code_digest(instance), torch.get_num_threads())


def _axes(instance: Instance) -> Axes:
    return tuple((axis, instance.fields[axis]) for axis in instance.stage.grid)


# What follows runs in a worker. Files come as a reference in a list, so that a worker fetches them only if it must.


def _do_instance(given: list, name: str, axes: Axes, terms: Terms) -> Answer:
    """A whole instance in a folder of this worker's own."""

    def work() -> Files:
        with scratch() as folder:
            project, instance = _unpacked(given[0], folder, name, axes, terms)
            run_in_process(project, instance)
            return pack_outputs(project, instance)

    return _answer(work)


def _draw_shard(given: list, axes: Axes, batches: list[Batch], terms: Terms) -> Answer:
    """Some batches of a set."""

    def work() -> Files:
        order, fitted = _opened(given[0], axes, terms)
        with scratch() as folder:
            sample_batches(fitted, order.recipe, order.examples, folder, batches)
            return collect(folder)

    return _answer(work)


@lru_cache(maxsize=1)
def _opened(given: Any, axes: Axes, terms: Terms) -> tuple[SynthesisJob, Any]:
    """The order and the fitted generator; kept for this worker's next shard."""
    with scratch() as folder:
        project, instance = _unpacked(given, folder, "synthesize", axes, terms)
        order = load_synthesis_job(project, instance.fields["product"], instance.fields["generator"])
        return order, open_generator(project, order)


def _unpacked(given: Any, folder: Path, name: str, axes: Axes, terms: Terms) -> tuple[Project, Instance]:
    import ray

    if terms.threads:
        import torch

        torch.set_num_threads(terms.threads)
    write_files(ray.get(given), folder)
    project = Project(folder)
    instance = find_instance(name, project.params, **dict(axes))
    if code_digest(instance) != terms.code:
        raise RuntimeError(
            f"{instance.address}: {socket.gethostname()} has other code for it than the machine that asks; expected "
            "the same version of defectory on both"
        )
    return project, instance


def _answer(work: Callable[[], Files]) -> Answer:
    worker = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        files = work()
    except InputError as mistake:
        return Answer({}, "", worker, str(mistake))
    torch = sys.modules.get("torch")
    if torch is None:
        return Answer(files, "any CPU", worker)
    if torch.cuda.is_available():
        return Answer(files, torch.cuda.get_device_name(0), worker)
    return Answer(files, f"a CPU with {torch.backends.cpu.get_cpu_capability()}", worker)
