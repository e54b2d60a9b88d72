"""leaderboard: one table over everything, and the report, into `metrics/leaderboard.json` and `report/`."""

from defect_core.project.paths import Project, write_json
from defect_core.report.leaderboard import make_leaderboard
from defect_core.report.page import write_report


def run(project: Project) -> None:
    board = make_leaderboard(project)
    with project.building("report", {}) as work:
        write_report(project, board, work)
    write_json(project.path("metrics/leaderboard.json"), board)
