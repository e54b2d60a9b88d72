"""Charts of the report as inline SVG, plotted with matplotlib.

Equal data gives equal bytes: the output has no date, no version and a fixed salt for the identifiers. Text stays text.
Axes and labels take the colour of the page's text. Arms take the custom properties `--arm-0`, `--arm-1`, ... of the
page, so that one chart serves the light and the dark theme.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from defect_core.project.arms import Arm

# Grey for the baseline, then the "muted" and "light" schemes of P. Tol, "Colour schemes", SRON/EPS/TN/09-002 (2021).
# Both are safe for colour-blind readers; the first is dark enough for a white page, the second light enough for black.
LIGHT_THEME = ("#5d6b7a", "#332288", "#cc6677", "#117733", "#aa4499", "#999933", "#882255", "#44aa99")
DARK_THEME = ("#a4b0bc", "#77aadd", "#ee8866", "#44bb99", "#ffaabb", "#bbcc33", "#eedd88", "#99ddff")
_LINE_STYLES = ("-", "--", ":", "-.")
_INK = "#1d2630"  # replaced by `currentColor` in the output
_WIDTH = 7.2  # inches
_LEGEND_LINE = 0.2  # inches
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "defectory",
    "text.parse_math": False,
    "font.size": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}


class ArmStyle(NamedTuple):
    """Colour and line style of one arm in every chart.

    Attributes:
        colour: a colour of `LIGHT_THEME`.
        line_style: a line style of matplotlib; separates arms that share a colour.
    """

    colour: str
    line_style: str


class Point(NamedTuple):
    """One value of an arm.

    Attributes:
        fraction: synthetic fraction of the batch slots, 0 to 1.
        value: score or gain, 0 to 1 or -1 to 1; None where it is undefined.
        std: standard deviation of the value, or None.
    """

    fraction: float
    value: float | None
    std: float | None


def arm_styles(arms: Sequence["Arm"]) -> dict[str, ArmStyle]:
    """Return the style of every arm and of every base arm, by name.

    The arms of a sweep share the colour of their base arm and differ in line style.
    """
    bases = list(dict.fromkeys(arm.base for arm in arms))
    styles: dict[str, ArmStyle] = {}
    used: dict[str, int] = {}
    for arm in arms:
        colour = LIGHT_THEME[bases.index(arm.base) % len(LIGHT_THEME)]
        styles[arm.name] = ArmStyle(colour, _LINE_STYLES[used.get(colour, 0) % len(_LINE_STYLES)])
        used[colour] = used.get(colour, 0) + 1
    return {base: ArmStyle(LIGHT_THEME[i % len(LIGHT_THEME)], "-") for i, base in enumerate(bases)} | styles


def bar_chart(bars: Mapping[str, Point], styles: Mapping[str, ArmStyle], title: str) -> str:
    """Return horizontal bars in percent with ± one standard deviation; "" without bars.

    Args:
        bars: by arm, from top to bottom; an undefined value has no bar.
        styles: of the arms, see `arm_styles`.
        title: shown above the chart.
    """
    if not bars:
        return ""
    with _figure(0.5 + 0.28 * len(bars)) as (figure, axes):
        for row, (name, bar) in enumerate(bars.items()):
            value, std = 100 * (bar.value or 0.0), 100 * (bar.std or 0.0 if bar.value is not None else 0.0)
            axes.barh(row, value, xerr=std or None, height=0.7, color=_colour(styles, name), ecolor=_INK)
            axes.annotate(_percent(bar.value), (value + std, row), (5, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(bars)), list(bars))
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        axes.set_title(title)
        return _to_svg(figure, title, "; ".join(f"{name} {_percent(bar.value)}" for name, bar in bars.items()))


def gain_chart(series: Mapping[str, Sequence[Point]], styles: Mapping[str, ArmStyle], title: str) -> str:
    """Return the gain in percent over the synthetic fraction, with ± one standard deviation; "" without points.

    Args:
        series: by base arm, its points in any order.
        styles: of the base arms, see `arm_styles`.
        title: shown above the chart.
    """
    if not any(series.values()):
        return ""
    with _figure(max(2.4, 0.4 + _LEGEND_LINE * len(series))) as (figure, axes):
        axes.axhline(0, color=_INK, linewidth=0.8, linestyle="--")
        for name, points in series.items():
            line = _by_fraction(points)
            axes.errorbar(
                [100 * point.fraction for point in line],
                [100 * (point.value or 0.0) for point in line],
                [100 * (point.std or 0.0) for point in line],
                label=name,
                color=_colour(styles, name),
                marker="o",
                markersize=4,
                linewidth=1.4,
                capsize=2,
            )
        axes.set_xlim(-3, 103)
        axes.set_xlabel("synthetic fraction of the batch slots, %")
        axes.set_title(title)
        figure.legend(loc="outside right upper")
        return _to_svg(figure, title, "; ".join(f"{name}: {_gains(points)}" for name, points in series.items()))


def line_chart(series: Mapping[str, Sequence[tuple[float, float]]], styles: Mapping[str, ArmStyle], title: str) -> str:
    """Return lines over the training steps; "" without points.

    Args:
        series: by name, its points as (step, value).
        styles: by name of the series; a series without one takes the first colour.
        title: shown above the chart.
    """
    if not any(series.values()):
        return ""
    with _figure(max(2.0, 0.4 + _LEGEND_LINE * len(series))) as (figure, axes):
        for name, points in series.items():
            style = styles.get(name, ArmStyle(LIGHT_THEME[0], "-"))
            x, y = zip(*points, strict=True) if points else ((), ())
            axes.plot(x, y, label=name, color=style.colour, linestyle=style.line_style, linewidth=1.4)
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        axes.set_title(title)
        if len(series) > 1:
            figure.legend(loc="outside right upper")
        ends = (f"{name} ends at {points[-1][1]:.3g}" for name, points in series.items() if points)
        return _to_svg(figure, title, "; ".join(ends))


@contextmanager
def _figure(height: float) -> Iterator[tuple["Figure", "Axes"]]:
    """Yield a figure of `height` inches and its axes, under settings that no matplotlibrc changes.

    The figure is made without pyplot, so it needs no display and is freed like any other object.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", _SETTINGS]):
        figure = Figure((_WIDTH, height), facecolor="none", layout="constrained")
        axes = figure.add_subplot()
        axes.set_facecolor("none")
        yield figure, axes


def _to_svg(figure: "Figure", title: str, description: str) -> str:
    """Return a figure as an `<svg>` element with a title and a description for screen readers."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg")
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", stream.getvalue(), flags=re.DOTALL)
    # Numbered identifiers repeat from chart to chart, and nothing refers to them.
    text = re.sub(r' id="[\w.]+_\d{1,4}"', "", text)
    text = text.replace(_INK, "currentColor")
    for index, colour in enumerate(LIGHT_THEME):
        text = text.replace(colour, f"var(--arm-{index}, {colour})")
    width, height = (72 * side for side in figure.get_size_inches())
    opening = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}" stroke-linejoin="round"><title>{escape(title)}</title>'
        f"<desc>{escape(description)}</desc>"
    )
    return opening + text[text.index(">", text.index("<svg")) + 1 :].strip()


def _colour(styles: Mapping[str, ArmStyle], name: str) -> str:
    return styles[name].colour if name in styles else LIGHT_THEME[0]


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.1f}"


def _by_fraction(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: point.fraction)


def _gains(points: Sequence[Point]) -> str:
    return ", ".join(f"{100 * (p.value or 0.0):+.1f} at {100 * p.fraction:.0f} %" for p in _by_fraction(points))
