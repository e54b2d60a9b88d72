"""Small charts as inline SVG: no picture files, no script, the same bytes again."""

from html import escape

COLOURS = ("#4b6584", "#c0392b", "#1e8449", "#8e44ad", "#b9770e", "#117a65", "#7b241c")


def bar_chart(bars: list[tuple[str, float, float]], width: int = 720) -> str:
    """Horizontal bars of (label, value, spread), values in [0, 1], shown in percent with ± spread whiskers."""
    top = max([value + spread for _, value, spread in bars] + [1e-6]) * 1.15
    row, left = 26, 190
    scale = (width - left - 70) / top
    parts = []
    for index, (label, value, spread) in enumerate(bars):
        y, end = 6 + index * row, left + value * scale
        colour = COLOURS[0] if label == "real_only" else COLOURS[2]
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{value * scale:.1f}" height="18" fill="{colour}"/>')
        low, high = end - spread * scale, end + spread * scale
        parts.append(f'<path d="M{low:.1f} {y + 9}H{high:.1f}" stroke="#222" stroke-width="2"/>')
        parts.append(f'<text x="{high + 6:.1f}" y="{y + 14}">{100 * value:.1f}</text>')
    return f'<svg viewBox="0 0 {width} {12 + row * len(bars)}" role="img">{"".join(parts)}</svg>'


def gain_chart(
    series: dict[str, list[tuple[float, float, float | None]]], title: str, width: int = 720, height: int = 220
) -> str:
    """Lines of (share 0 to 1, gain, spread) by name, in percent, with ± spread whiskers and a line at no gain."""
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    ends = [value + side * (spread or 0.0) for _, value, spread in points for side in (-1, 1)] + [0.0]
    low, high = min(ends), max(ends)
    left, right, top, bottom = 56, 190, 22, 40
    y_scale = (height - top - bottom) / max(high - low, 1e-9)

    def place(share: float, gain: float) -> tuple[float, float]:
        return left + share * (width - left - right), height - bottom - (gain - low) * y_scale

    zero = place(0, 0)[1]
    parts = [f'<text x="{left}" y="14">{escape(title)}</text>']
    parts.append(f'<path d="M{left} {top}V{height - bottom}" fill="none" stroke="#999"/>')
    parts.append(f'<path d="M{left} {zero:.1f}H{width - right}" stroke="#999" stroke-dasharray="4 3"/>')
    parts += [
        f'<text x="{left - 6}" y="{place(0, v)[1] + 4:.1f}" text-anchor="end">{100 * v:+.1f}</text>'
        for v in sorted({low, high})
    ]
    parts += [
        f'<text x="{place(share, 0)[0]:.1f}" y="{height - 22}" text-anchor="middle">{100 * share:.0f} %</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    for index, (name, line) in enumerate(series.items()):
        colour = COLOURS[(index + 1) % len(COLOURS)]
        placed = [(*place(share, gain), (spread or 0.0) * y_scale) for share, gain, spread in sorted(line)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        for x, y, spread in placed:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
            parts.append(f'<path d="M{x:.1f} {y - spread:.1f}V{y + spread:.1f}" stroke="{colour}"/>')
        parts.append(
            f'<text x="{width - right + 12}" y="{top + 14 + 18 * index}" fill="{colour}">{escape(name)}</text>'
        )
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def line_chart(series: dict[str, list[tuple[float, float]]], title: str, width: int = 720, height: int = 200) -> str:
    """Lines of (x, y) points by name, with the range of both axes written at their ends; "" without points."""
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    x_high = max(x for x, _ in points)
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    left, right, top, bottom = 56, 150, 22, 24
    x_scale = (width - left - right) / max(x_high, 1e-9)
    y_scale = (height - top - bottom) / max(y_high - y_low, 1e-9)
    parts = [f'<text x="{left}" y="14">{escape(title)}</text>']
    parts.append(f'<path d="M{left} {top}V{height - bottom}H{width - right}" fill="none" stroke="#999"/>')
    for value, y in ((y_high, top + 10), (y_low, height - bottom)):
        parts.append(f'<text x="{left - 6}" y="{y}" text-anchor="end">{value:.3g}</text>')
    parts.append(f'<text x="{width - right}" y="{height - 8}" text-anchor="end">{x_high:g}</text>')
    for index, (name, line) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{left + x * x_scale:.1f},{height - bottom - (y - y_low) * y_scale:.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts.append(f'<text x="{width - right + 8}" y="{top + 14 + 18 * index}" fill="{colour}">{escape(name)}</text>')
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
