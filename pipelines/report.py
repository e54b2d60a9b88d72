"""`python -m pipelines.report`: tells Dagster at once of what ran without it; the sensor `work_of_dvc` does so within a
minute where `make dev` is at work."""

import argparse
import sys

import dagster as dg

from defect_core.errors import InputError
from defect_core.project.paths import Project
from pipelines.dev import prepare_home
from pipelines.events import Reported, Reporter


def report(project: Project) -> Reported:
    """Report to the Dagster of a project; a line for each instance goes to standard output."""
    with dg.DagsterInstance.from_config(str(prepare_home(project))) as instance:
        return Reporter(project, instance).report(print)


def main() -> None:
    """Exit status 1 where something could not be reported yet, 2 for a mistake of the user."""
    argparse.ArgumentParser(prog="python -m pipelines.report", description=__doc__).parse_args()
    try:
        found = report(Project.find())
    except InputError as error:
        print(f"defectory: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{len(found.told)} instances reported, {found.left} not yet")
    sys.exit(1 if found.left else 0)


if __name__ == "__main__":
    main()
