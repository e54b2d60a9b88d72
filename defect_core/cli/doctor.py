"""What is installed and available, and whether the project is consistent."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

from defect_core.cli.git_setup import describe_git
from defect_core.cli.pull_weights import FILES, missing_files
from defect_core.errors import InputError
from defect_core.graph.dvcfile import render
from defect_core.project.paths import Project


def check_environment() -> dict[str, str]:
    """Return facts about the installation and the project, as text by name; something missing is no error."""
    facts = {"python": sys.version.split()[0]}
    for package in ("defectory", "torch", "diffusers", "dagster", "dvc"):
        facts[package] = version(package)
    import torch

    facts["accelerator"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none; the CPU is used"
    weights = os.environ.get("DEFECTORY_WEIGHTS")
    facts["DEFECTORY_WEIGHTS"] = "not set" if not weights else "found" if Path(weights).is_dir() else "not a folder"
    for file in FILES:
        facts[f"weights of {file.about}"] = "found"
    for file in missing_files():
        facts[f"weights of {file.about}"] = f"missing; `defectory weights pull` fetches {file.megabytes} MB"
    try:
        project = Project.find()
        params = project.params
        facts["project"] = f"{len(params.products)} products, {len(params.generators)} generators"
        facts["git"] = describe_git(project.root)
        stale = render(project) != project.path("dvc.yaml").read_text(encoding="utf-8")
        facts["dvc.yaml"] = "out of date; run `defectory sync`" if stale else "agrees with the stage table"
        for product in params.products:
            source = project.source_path(product)
            if source is not None and not source.is_dir():
                facts[f"source of {product}"] = f"{params.sources[product].path} is missing"
    except InputError as error:
        facts["project"] = str(error)
    return facts
