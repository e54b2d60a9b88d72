"""Stage `leaderboard`: collect the metrics of all arms in `metrics/leaderboard.json` and write `report/`."""

from defect_core.data.files import write_json
from defect_core.project.paths import Project
from defect_core.report.leaderboard import LEADERBOARD_FILE, make_leaderboard
from defect_core.report.page import write_report


def run(project: Project) -> None:
    """Write the leaderboard and the report of a project."""
    leaderboard = make_leaderboard(project)
    with project.building("report", {}) as work:
        write_report(project, leaderboard, work)
    write_json(project.path(LEADERBOARD_FILE), leaderboard)
