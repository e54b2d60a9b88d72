"""What DVC knows about a project: digests of outputs in dvc.lock, and which instances are stale."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Collection
from typing import Any

from defect_core.graph import dvcfile
from defect_core.graph.code import code_digest
from defect_core.graph.instances import Instance, instances
from defect_core.graph.local import child_environment
from defect_core.graph.table import STAGES, Stage
from defect_core.lineage.lock import LOCK_FILE, output_digest
from defect_core.project.paths import Project
from defect_core.project.sources import record_sources


def all_instances(project: Project) -> list[Instance]:
    """Return every instance of every stage, each after the instances that it reads from."""
    return [instance for stage in STAGES for instance in instances(stage, project.params)]


def data_version(instance: Instance, lock: dict[str, Any]) -> str:
    """Return the md5 in dvc.lock of an instance's output, or of its metrics if it has no other output.

    Raises:
        KeyError: DVC never ran the instance.
    """
    path = (instance.outputs or instance.metrics)[0]
    digest = output_digest(lock, instance.address, path)
    if digest is None:
        raise KeyError(f"{LOCK_FILE}: {instance.address} has no output {path}")
    return digest


def code_version(stage: Stage, project: Project) -> str:
    """Return a digest of the code of all instances of a stage."""
    variants = {tuple(instance.code) for instance in instances(stage, project.params)}
    digests = sorted(code_digest(code) for code in variants)
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]


def stale_instances(project: Project) -> list[Instance]:
    """Return the stale instances and all that depend on them, in an order in which they can run.

    Raises:
        RuntimeError: `dvc status` failed; the message is its last line.
    """
    # A source that cannot be read counts as stale. The run then reports the reason and does the rest.
    unreadable = [f"ingest@{product}" for product in record_sources(project)]
    dvcfile.sync(project)
    return with_dependants({*_changed_addresses(project), *unreadable}, all_instances(project))


def with_dependants(addresses: Collection[str], ordered: list[Instance]) -> list[Instance]:
    """Return the instances of some addresses and all that read their files, directly or not.

    Args:
        addresses: where to start.
        ordered: all instances, each after the instances that it reads from; the result has this order.
    """
    selected = []
    written: list[str] = []
    for instance in ordered:
        if instance.address in addresses or any(_overlap(path, file) for path in instance.inputs for file in written):
            selected.append(instance)
            written += instance.outputs + instance.metrics
    return selected


def related_addresses(addresses: Collection[str], ordered: list[Instance]) -> set[str]:
    """Return the addresses, and those of all instances that they depend on or that depend on them.

    Args:
        addresses: where to start.
        ordered: as for `with_dependants`.
    """
    dependants = with_dependants(addresses, ordered)
    dependencies = [instance for instance in ordered if instance.address in addresses]
    for instance in reversed(ordered):
        if any(reads_from(other, instance) for other in dependencies):
            dependencies.append(instance)
    return {instance.address for instance in (*dependants, *dependencies)}


def reads_from(instance: Instance, other: Instance) -> bool:
    """Return whether an instance reads a file that the other writes."""
    return any(_overlap(path, file) for path in instance.inputs for file in other.outputs + other.metrics)


def _overlap(one: str, other: str) -> bool:
    """Return whether two paths are equal or one contains the other."""
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")


def _changed_addresses(project: Project) -> set[str]:
    """Return the addresses that `dvc status` calls changed."""
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"],
        cwd=project.root, env=child_environment(project), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if status.returncode:
        raise RuntimeError(f"dvc status: {(status.stderr.strip().splitlines() or ['failed without output'])[-1]}")
    return set(json.loads(status.stdout or "{}"))
