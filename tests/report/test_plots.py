"""Charts: equal bytes, colours of both themes, text for screen readers, no global settings of matplotlib."""

from xml.etree import ElementTree

import matplotlib
import pytest

from defect_core.project.arms import parse_arm
from defect_core.report.plots import LIGHT_THEME, Point, arm_styles, bar_chart, gain_chart, line_chart

GENERATORS = ("crop-paste", "seas")
NAMES = ("real_only", "crop-paste", "seas", "mix", "seas-at-25")
STYLES = arm_styles([parse_arm(name, GENERATORS) for name in NAMES])


def _bars():
    return bar_chart({"real_only": Point(0, 0.3, 0.01), "a<b>&$x$": Point(0, None, None)}, STYLES, "pixel AP, %")


def _gains():
    points = [Point(0.5, 0.1, 0.02), Point(0.0, 0.0, None), Point(0.25, -0.05, 0.01)]
    return gain_chart({"seas": points, "mix": [Point(0.5, 0.2, 0.1)]}, STYLES, "gain")


def _lines():
    return line_chart({name: [(0, 1.0), (5, 0.5)] for name in NAMES}, STYLES, "loss")


@pytest.mark.parametrize("chart", [_bars, _gains, _lines])
def test_chart_is_accessible_themed_and_deterministic(chart):
    settings = dict(matplotlib.rcParams)
    svg = chart()
    assert svg == chart() and dict(matplotlib.rcParams) == settings
    root = ElementTree.fromstring(svg)
    texts = {child.tag: child.text for child in root}
    assert root.get("role") == "img" and root.get("aria-label") == texts["title"] and texts["desc"]
    assert "currentColor" in svg and "var(--arm-" in svg
    assert not any(word in svg for word in ("<metadata", "<style", "<!DOCTYPE", "matplotlib", "#ffffff", 'id="text_'))


def test_text_of_a_chart_is_escaped_and_not_parsed_as_math():
    texts = [element.text for element in ElementTree.fromstring(_bars()).iter() if element.tag.endswith("text")]
    assert "a<b>&$x$" in texts and "undefined" in texts and "30.0" in texts


def test_description_lists_gains_by_fraction():
    assert "seas: +0.0 at 0 %, -5.0 at 25 %, +10.0 at 50 %; mix: +20.0 at 50 %" in _gains()


def test_an_arm_has_one_colour_and_arms_of_a_sweep_share_it():
    assert len({STYLES[name].colour for name in NAMES[:4]}) == 4
    assert STYLES["seas-at-25"].colour == STYLES["seas"].colour
    assert STYLES["seas-at-25"].line_style != STYLES["seas"].line_style
    assert STYLES["real_only"].colour == LIGHT_THEME[0]


def test_many_arms_repeat_colours_with_another_line_style():
    generators = tuple(f"g{number}" for number in range(12))
    styles = arm_styles([parse_arm(name, generators) for name in ("real_only", *generators)])
    assert len(set(styles.values())) == 13


def test_chart_without_data_is_empty():
    assert bar_chart({}, STYLES, "t") == gain_chart({}, STYLES, "t") == line_chart({"loss": []}, STYLES, "t") == ""
