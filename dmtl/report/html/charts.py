"""Draw line charts as inline SVG.

Colours come from the page's style sheet (classes s0, s1, ...), so they follow light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from markupsafe import Markup, escape

from dmtl.report.runs.curves import Chart
from dmtl.text import number

WIDTH, HEIGHT = 420, 236
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40
MAX_POINTS = 160  # longer series are averaged in equal groups: more points than pixels only thicken the line
COLOURS = 8

Scale = Callable[[float], float]  # from a value to its position in the picture


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` equidistant round numbers in [low, high]; the step is 1, 2, 2.5 or 5 times
    10^n."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"nice_ticks: low and high must be finite, got {low} and {high}")
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten that cover [low, high]; both must be positive."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**e for e in exponents for m in (1, 2, 5)]
    below = [t for t in ticks if t <= low * 1.001] or ticks[:1]
    above = [t for t in ticks if t >= high * 0.999] or ticks[-1:]
    chosen = [t for t in ticks if below[-1] <= t <= above[0]]
    decades = [t for t in chosen if math.isclose(math.log10(t), round(math.log10(t)), abs_tol=1e-9)]
    return decades if len(chosen) > 9 and len(decades) > 2 else chosen


def _points(xs: Sequence[float], ys: Sequence[float], log_y: bool) -> list[tuple[float, float]]:
    if len(xs) != len(ys):
        raise ValueError(
            f"chart_svg: series must have equally many x and y values, got {len(xs)} x and {len(ys)} y"
        )
    pairs = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
    pairs = [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)]
    if len(pairs) <= MAX_POINTS:
        return pairs
    group = math.ceil(len(pairs) / MAX_POINTS)
    parts = [pairs[i : i + group] for i in range(0, len(pairs), group)]
    return [(p[-1][0], sum(y for _, y in p) / len(p)) for p in parts]


def _band_points(
    xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], log_y: bool
) -> list[tuple[float, float]]:
    """Return the outline of a band: along its upper edge and back along the lower one."""
    if log_y:  # a lower edge at or below 0 cannot be drawn; the upper one is used
        lows = [low if low > 0 else high for low, high in zip(lows, highs, strict=True)]
    return _points(xs, highs, log_y) + _points(xs, lows, log_y)[::-1]


def chart_svg(chart: Chart) -> Markup | None:
    """Return the chart as an `<svg>` element, or None if no series has a point to draw."""
    series = {name: _points(xs, ys, chart.log_y) for name, (xs, ys) in chart.series.items()}
    bands = {name: _band_points(*band, chart.log_y) for name, band in chart.bands.items()}
    everything = [p for points in series.values() for p in points]
    everything += [p for points in bands.values() for p in points]
    if not everything:
        return None
    x_low, x_high = min(x for x, _ in everything), max(x for x, _ in everything)
    y_low, y_high = min(y for _, y in everything), max(y for _, y in everything)
    x_ticks = nice_ticks(x_low, x_high, 5)
    y_ticks = log_ticks(y_low, y_high) if chart.log_y else nice_ticks(y_low, y_high, 4)
    if x_high > x_low:  # lines reach from edge to edge; only ticks inside are drawn
        x_ticks = [t for t in x_ticks if x_low <= t <= x_high]
    else:
        x_low, x_high = x_ticks[0], x_ticks[-1]
    y_scale = math.log10 if chart.log_y else float
    y0, y1 = y_scale(y_ticks[0]), y_scale(y_ticks[-1])

    def px(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return TOP + (y1 - y_scale(y)) / ((y1 - y0) or 1) * (HEIGHT - TOP - BOTTOM)

    parts = [*_axes(chart, x_ticks, y_ticks, px, py)]
    for index, name in enumerate(series):
        if len(points := bands.get(name, [])) > 2:
            path = "".join(f"{'L' if i else 'M'}{px(x):.1f} {py(y):.1f}" for i, (x, y) in enumerate(points))
            parts.append(f'<path class="band fill s{index % COLOURS}" d="{path}Z"/>')
    for index, (name, points) in enumerate(series.items()):
        parts += _line(chart, name, index, points, px, py)
    summary = "; ".join(
        f"{name} from {number(p[0][1])} to {number(p[-1][1])}" for name, p in series.items() if p
    )
    label = escape(
        f"Line chart, {chart.title}: {summary}, over {chart.x_label} {number(x_low)} to {number(x_high)}"
    )
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return Markup(head + "".join(parts) + "</svg>")


def _axes(
    chart: Chart, x_ticks: Sequence[float], y_ticks: Sequence[float], px: Scale, py: Scale
) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    for tick in y_ticks:
        y = py(tick)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>'
    yield f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    for tick in x_ticks:
        x = px(tick)
        anchor = "end" if x > WIDTH - RIGHT - 14 else "middle"
        yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{number(tick)}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    below = f'x="{middle:.0f}" y="{HEIGHT - 6}"'
    yield f'<text class="label" {below} text-anchor="middle">{escape(chart.x_label)}</text>'
    turned = f'transform="translate(11 {(TOP + bottom) / 2:.0f}) rotate(-90)"'
    yield f'<text class="label" {turned} text-anchor="middle">{escape(chart.y_label)}</text>'


def _line(
    chart: Chart, name: str, index: int, points: Sequence[tuple[float, float]], px: Scale, py: Scale
) -> Iterator[str]:
    if not points:
        return
    colour = f"s{index % COLOURS}"
    path = "".join(f"{'L' if i else 'M'}{px(x):.1f} {py(y):.1f}" for i, (x, y) in enumerate(points))
    yield f'<path class="line {colour}" d="{path}"/>'
    few = len(points) <= 24
    for x, y in points:
        title = escape(f"{name}: {number(y)} at {chart.x_label} {number(x)}")
        at = f'cx="{px(x):.1f}" cy="{py(y):.1f}"'
        dot = f'<circle class="dot {colour}" {at} r="2.6"/>' if few else ""
        yield f'<g class="point">{dot}<circle class="hit" {at} r="7"/><title>{title}</title></g>'
