from .leaderboard import leaderboard_frame as leaderboard_frame
from .leaderboard import load_leaderboard as load_leaderboard
from .leaderboard import make_leaderboard as make_leaderboard
from .leaderboard import read_leaderboard as read_leaderboard
from .page import write_report as write_report
from .prediction import predict_gain as predict_gain
from .sheets import contact_sheet as contact_sheet
from .table import print_leaderboard as print_leaderboard
