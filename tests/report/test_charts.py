"""Ticks and lines."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmtl.report import Chart
from dmtl.report.html.charts import MAX_POINTS, chart_svg, log_ticks, nice_ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 8))
def test_nice_ticks_cover_the_range_in_even_steps(low, span, count):
    ticks = nice_ticks(low, low + span, count)
    step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    assert ticks[0] <= low + 1e-6 * step and ticks[-1] >= low + span - 1e-6 * step
    assert len(ticks) <= count + 3
    assert all(b - a == pytest.approx(step, rel=1e-6) for a, b in itertools.pairwise(ticks))


def test_nice_ticks_of_familiar_ranges():
    assert nice_ticks(0, 1000) == [0, 200, 400, 600, 800, 1000]
    assert nice_ticks(0.31, 0.47, 4) == [0.3, 0.35, 0.4, 0.45, 0.5]
    assert nice_ticks(5, 5)[0] <= 5 <= nice_ticks(5, 5)[-1]
    with pytest.raises(ValueError, match="must be finite"):
        nice_ticks(0, float("nan"))


@pytest.mark.parametrize(("low", "high"), [(0.9, 4.3), (1, 1), (1e-5, 1e4), (0.02, 0.03)])
def test_log_ticks_cover(low, high):
    ticks = log_ticks(low, high)
    assert ticks[0] <= low * 1.01 and ticks[-1] >= high * 0.99 and ticks == sorted(ticks)


def test_line_goes_through_its_points_and_says_them_on_hover():
    svg = chart_svg(Chart("t", "step", "loss", {"a": ([0, 50, 100], [0, 10, 20])}))
    path = re.search(r'd="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', svg)
    x0, y0, x1, y1, x2, y2 = map(float, path.groups())
    assert (
        x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
        and y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
        and y2 < y0
    )
    assert "a: 10 at step 50" in svg and 'aria-label="Line chart, t: a from 0 to 20' in svg


def test_long_series_are_averaged_and_bad_points_left_out():
    ys = [float(i % 2) for i in range(1000)] + [float("nan")]
    svg = chart_svg(Chart("t", "x", "y", {"a": (range(1001), ys)}))
    assert svg.count("<title>") <= MAX_POINTS and "nan" not in svg
    assert chart_svg(Chart("t", "x", "y", {"a": ([], [])})) is None
    assert chart_svg(Chart("t", "x", "y", {"a": ([1], [-1.0])}, log_y=True)) is None
    assert chart_svg(Chart("t", "x", "y", {"a": ([1], [3.0])})) is not None
    with pytest.raises(ValueError, match="equally many x and y values, got 2 x and 1 y"):
        chart_svg(Chart("t", "x", "y", {"a": ([1, 2], [3.0])}))


def test_bands_lie_around_their_lines_below_them():
    series, bands = {"a": ([0, 1], [2, 4]), "b": ([0, 1], [3, 3])}, {"b": ([0, 1], [-1, 2], [4, 8])}
    svg = chart_svg(Chart("t", "step", "loss", series, bands=bands))
    assert svg.count('class="band') == 1 and svg.index('class="band fill s1"') < svg.index('class="line s0"')
    assert re.search(r'class="band[^>]* d="M[^"]*Z"', svg) and ">10<" in svg  # the axis holds the band
    on_logs = chart_svg(Chart("t", "step", "loss", series, log_y=True, bands=bands))
    assert 'class="band fill s1"' in on_logs and "nan" not in on_logs
