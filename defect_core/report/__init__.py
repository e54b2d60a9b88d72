"""What people look at: the leaderboard, contact sheets, and the HTML report."""
