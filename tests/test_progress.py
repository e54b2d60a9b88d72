"""Progress lines of a log."""

import pytest

from defect_core import progress


@pytest.fixture
def lines(monkeypatch, capsys):
    """What `track` prints when every item is worth a line."""
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)

    def shown(count, total):
        assert list(progress.track(iter(range(count)), "drawing", total=total)) == list(range(count))
        return capsys.readouterr().err.splitlines()

    return shown


def test_a_line_tells_how_far_it_is_and_how_long_it_will_take(lines):
    assert lines(2, 2) == ["drawing: 1/2 (50 %), 0 s, 0 s left", "drawing: 2/2 (100 %), 0 s, 0 s left"]


def test_more_work_than_foreseen_is_never_more_than_all_of_it(lines):
    assert lines(3, 2)[-1] == "drawing: 3 done, 0 s"
