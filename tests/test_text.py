"""Numbers as people read them."""

from __future__ import annotations

import math

from dmtl.text import duration, fixed, mebibytes, number, percent, plural, shortened


def test_metrics_have_four_significant_digits_or_as_many_as_asked_for():
    values = (0, 12.3456, -0.00123, 1234.5, float("nan"), None)
    assert [fixed(v) for v in values] == ["0.0", "12.35", "−0.0012", "1234", "n/a", "n/a"]
    assert fixed(2.0, 1, sign=True) == "+2.0"


def test_amounts_have_separated_thousands_and_no_zeros_at_the_end():
    values = (0, 1000, 12345.678, 0.05, 37.84, -2.5, 1e8, math.nan)
    expected = ["0", "1,000", "12,346", "0.05", "37.84", "-2.5", "1e+08", "n/a"]
    assert [number(v) for v in values] == expected
    assert number(0.12345, 3) == "0.123"


def test_units():
    seconds = (0, 3.5e-5, 0.0009996, 0.012, 0.9996, 3.4, 59.99, 75, 7500)
    expected = ["0 s", "35 us", "1 ms", "12 ms", "1 s", "3.4 s", "1 min 00 s", "1 min 15 s", "2 h 05 min"]
    assert [duration(s) for s in seconds] == expected
    assert [percent(x) for x in (0, 0.0001, 0.1234)] == ["0 %", "< 0.1 %", "12.3 %"]
    assert (mebibytes(3 * 2**30), plural(1, "seed"), plural(2000, "run")) == (
        "3,072 MiB",
        "1 seed",
        "2,000 runs",
    )


def test_lists_are_shortened():
    assert (shortened([]), shortened("abc", 3), shortened("abcd", 3)) == ("", "a, b, c", "a, b, c, ...")
    assert shortened(iter(range(9))) == "0, 1, 2, 3, 4, 5, 6, 7, ..."
