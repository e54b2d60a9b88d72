"""Results for people: the leaderboard, contact sheets of images, charts, and the HTML report.

A module here reads metrics and images of a project and presents them. It computes no score of an image.
"""

from typing import TYPE_CHECKING

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "leaderboard": ["leaderboard_frame", "load_leaderboard", "make_leaderboard", "read_leaderboard"],
        "page": ["write_report"],
        "prediction": ["predict_gain"],
        "sheets": ["contact_sheet"],
        "table": ["print_leaderboard"],
    },
)

if TYPE_CHECKING:
    from defect_core.report.leaderboard import leaderboard_frame as leaderboard_frame
    from defect_core.report.leaderboard import load_leaderboard as load_leaderboard
    from defect_core.report.leaderboard import make_leaderboard as make_leaderboard
    from defect_core.report.leaderboard import read_leaderboard as read_leaderboard
    from defect_core.report.page import write_report as write_report
    from defect_core.report.prediction import predict_gain as predict_gain
    from defect_core.report.sheets import contact_sheet as contact_sheet
    from defect_core.report.table import print_leaderboard as print_leaderboard
