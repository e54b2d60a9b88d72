"""`python -m pipelines.report`: reports to Dagster what ran without it.

While `make dev` runs, the sensor `report_dvc_runs` does the same within a minute.
"""

import argparse
import sys

import dagster as dg

from defect_core.errors import InputError
from defect_core.project.paths import Project
from pipelines.dev import prepare_home
from pipelines.events import Report, Reporter


def report(project: Project) -> Report:
    """Report to the Dagster of a project; print one line per instance."""
    with dg.DagsterInstance.from_config(str(prepare_home(project))) as instance:
        return Reporter(project, instance).report(print)


def main() -> None:
    """Exit with status 1 if an instance could not be reported yet, and with 2 for a mistake of the user."""
    argparse.ArgumentParser(prog="python -m pipelines.report", description=__doc__).parse_args()
    try:
        result = report(Project.find())
    except InputError as error:
        print(f"defectory: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{len(result.reported)} instances reported, {result.pending} pending")
    sys.exit(1 if result.pending else 0)


if __name__ == "__main__":
    main()
