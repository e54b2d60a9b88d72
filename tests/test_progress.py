"""Progress lines of a log."""

import pytest

from defect_core import progress


@pytest.fixture
def lines(monkeypatch, caplog):
    """A function that returns the lines which `track` logs if it logs after every item."""
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    caplog.set_level("INFO", logger="defect_core.progress")

    def log(count, total):
        caplog.clear()
        assert list(progress.track(iter(range(count)), "sampling", total=total)) == list(range(count))
        return caplog.messages

    return log


def test_a_line_shows_the_progress_and_the_remaining_time(lines):
    assert lines(2, 2) == ["sampling: 1/2 (50 %), 0 s, 0 s left", "sampling: 2/2 (100 %), 0 s, 0 s left"]


def test_more_items_than_expected_are_never_more_than_100_percent(lines):
    assert lines(3, 2)[-1] == "sampling: 3 done, 0 s"
