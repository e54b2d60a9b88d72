"""What DVC reads in the dvc.yaml of a project, compared with the stage table. DVC runs in a child process."""

import json
import subprocess
import sys
from typing import Any

from defect_core.errors import InputError
from defect_core.graph.instances import Instance, instances
from defect_core.graph.local import child_environment
from defect_core.graph.table import STAGES
from defect_core.project.paths import Project

_SCRIPT = """\
import json
from dvc.exceptions import DvcException
from dvc.repo import Repo
try:
    repo = Repo(".")
    stages = {
        stage.addressing: [stage.cmd, sorted(d.def_path for d in stage.deps if type(d).__name__ != "ParamsDependency"),
                           sorted(out.def_path for out in stage.outs)]
        for stage in repo.index.stages if stage.path_in_repo == "dvc.yaml"
    }
    found = {}
    for address in json.load(open(0, encoding="utf-8")):
        try:
            found[address] = [stage.addressing for stage in repo.stage.collect(address)]
        except DvcException as error:
            found[address] = [str(error)]
    print(json.dumps({"stages": stages, "found": found}))
except DvcException as error:
    print(json.dumps({"error": str(error)}))
"""


def check_read_back(project: Project, products: tuple[str, ...] = ()) -> None:
    """Check that DVC reads every instance with the command, inputs and outputs of the stage table.

    Args:
        project: the project; its dvc.yaml is up to date.
        products: products whose `ingest` DVC must also find by its address, as `dvc repro ingest@PRODUCT` does.

    Raises:
        InputError: DVC cannot read dvc.yaml, or reads something else in it.
    """
    cells = [cell for stage in STAGES for cell in instances(stage, project.params)] if project.params.products else []
    addresses = [f"ingest@{product}" for product in products]
    answer = ask_dvc(project, addresses)
    if "error" in answer:
        raise InputError(f"dvc.yaml: DVC cannot read it: {' '.join(answer['error'].split())}")
    for cell in cells:
        read = answer["stages"].get(cell.address)
        if read is None:
            raise InputError(f"dvc.yaml: DVC reads no stage {cell.address}; choose a name of letters and digits")
        command, inputs, outputs = read
        expected = [*cell.outputs, *cell.metrics]
        if command != _command(cell) or not set(cell.inputs) <= set(inputs) or sorted(expected) != outputs:
            raise InputError(
                f"dvc.yaml: DVC reads {cell.address} as {command!r} with the inputs {', '.join(inputs)}; expected "
                f"{_command(cell)!r} with {', '.join(cell.inputs)}; choose another name or path"
            )
    for address, found in answer["found"].items():
        if found != [address]:
            raise InputError(f"dvc.yaml: `dvc repro {address}` finds {', '.join(found)}; choose another name")


def _command(cell: Instance) -> str:
    options = "".join(f" --{axis} {cell.fields[axis]}" for axis in cell.stage.grid)
    return f"defectory stage {cell.stage.name}{options}"


def ask_dvc(project: Project, addresses: list[str]) -> dict[str, Any]:
    """Return what DVC reads.

    Args:
        project: the project.
        addresses: addresses that DVC is asked to find.

    Returns:
        `stages`: command, inputs and outputs by address; `found`: for each of `addresses` those that DVC finds, or its
        message. Or only `error`, the message of DVC.

    Raises:
        InputError: DVC ended with another error.
    """
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        input=json.dumps(addresses),
        cwd=project.root,
        env=child_environment(project),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        problem = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"dvc.yaml: DVC ended with status {done.returncode}: {problem}") from None
    return answer
