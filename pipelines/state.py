"""What DVC knows of a project: digests of outputs in dvc.lock, and which instances are stale."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from defect_core.graph import dvcfile
from defect_core.graph.code import code_digest
from defect_core.graph.instances import Instance, instances
from defect_core.graph.local import child_environment
from defect_core.graph.table import STAGES, Stage
from defect_core.lineage.lock import LOCK_FILE
from defect_core.project.paths import Project
from defect_core.project.sources import record_sources


def all_instances(project: Project) -> list[Instance]:
    """Every instance of every stage, each after the ones it depends on."""
    return [instance for stage in STAGES for instance in instances(stage, project.params)]


def data_version(instance: Instance, lock: dict[str, Any]) -> str:
    """The md5 of an instance's output in dvc.lock, of its metrics where it has no other output.

    Raises:
        KeyError: DVC never ran the instance.
    """
    wanted = (instance.outputs or instance.metrics)[0]
    for output in lock[instance.address].get("outs", []):
        if output["path"] == wanted:
            return output["md5"]
    raise KeyError(f"{LOCK_FILE}: {instance.address} has no output {wanted}")


def code_version(stage: Stage, project: Project) -> str:
    """A digest over the code of all instances of a stage: the files that dvc.yaml lists."""
    variants = {tuple(instance.code) for instance in instances(stage, project.params)}
    digests = sorted(code_digest(code) for code in variants)
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]


def stale_instances(project: Project) -> list[Instance]:
    """What `dvc repro` would run or look at: the stale instances and all that depends on them, in order.

    Raises:
        RuntimeError: DVC could not tell; its last line.
    """
    # a source that cannot be read counts as stale, so that the run says why, and does the rest
    unread = [f"ingest@{product}" for product in record_sources(project)]
    dvcfile.sync(project)
    return with_dependants([*_status(project), *unread], all_instances(project))


def with_dependants(addresses: Iterable[str], ordered: list[Instance]) -> list[Instance]:
    """The instances of those addresses and all that reads their files, directly or not, in the given order."""
    found = []
    written: list[str] = []
    known = set(addresses)
    for instance in ordered:
        if instance.address in known or any(_overlap(path, file) for path in instance.inputs for file in written):
            found.append(instance)
            written += instance.outputs + instance.metrics
    return found


def around(addresses: Iterable[str], ordered: list[Instance]) -> set[str]:
    """Addresses of those instances, of all that they are made from, and of all that is made from them."""
    addresses = list(addresses)
    found = {instance.address for instance in with_dependants(addresses, ordered)}
    needed = [instance for instance in ordered if instance.address in set(addresses)]
    for instance in reversed(ordered):
        if any(reads_from(other, instance) for other in needed):
            needed.append(instance)
    return found | {instance.address for instance in needed}


def reads_from(instance: Instance, other: Instance) -> bool:
    """Whether an instance reads a file that the other writes."""
    return any(_overlap(path, file) for path in instance.inputs for file in other.outputs + other.metrics)


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")


def _status(project: Project) -> set[str]:
    """The addresses that `dvc status` calls changed."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"],
        cwd=project.root, env=child_environment(project), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"dvc status: {(done.stderr.strip().splitlines() or ['failed without a word'])[-1]}")
    return set(json.loads(done.stdout or "{}"))
