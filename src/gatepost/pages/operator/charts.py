"""Bar charts, as numbers for an SVG: the template only draws them."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

WIDTH, HEIGHT = 300, 80


class Bar(NamedTuple):
    """A rectangle. ``series``: which of several it belongs to, counted from 0."""

    x: float
    y: float
    width: float
    height: float
    series: int


class Chart(NamedTuple):
    """Bars of one or several series, each on top of the one before; with what was counted in all."""

    bars: list[Bar]
    totals: list[int]
    most: int
    """What the highest column stands for."""


def chart(series: Sequence[Mapping[datetime, int]], begin: datetime, step: timedelta, columns: int) -> Chart:
    """A column for each step from ``begin`` on."""
    times = [begin + step * index for index in range(columns)]
    most = max((sum(each.get(time, 0) for each in series) for time in times), default=0)
    width = WIDTH / columns
    bars = []
    for index, time in enumerate(times):
        top = float(HEIGHT)
        for number, counts in enumerate(series):
            if count := counts.get(time, 0):
                height = max(count / most * HEIGHT, 1.0)
                top -= height
                bars.append(
                    Bar(round(index * width, 2), round(top, 2), round(width * 0.8, 2), round(height, 2), number)
                )
    return Chart(bars, [sum(each.get(time, 0) for time in times) for each in series], most)
