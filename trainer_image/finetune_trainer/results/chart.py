"""Computes the SVG coordinates of charts: lines, bars and axis marks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray

WORTH_SMOOTHING = 100
"""Smallest number of steps for which the chart shows a moving average."""
POINTS = 800
"""Approximate largest number of points of a line. A screen cannot show more."""

Style = Literal["line", "raw", "second"]


@dataclass(frozen=True)
class Series:
    """Values over optimizer steps. `steps` and `values` have the same length."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    style: Style = "line"
    dotted: bool = False
    """Whether each value gets a dot."""


@dataclass(frozen=True)
class Mark:
    """A labelled position on an axis. For a point, `height` is the other coordinate."""

    at: float
    label: str
    height: float = 0.0


@dataclass(frozen=True)
class Line:
    """A drawn series."""

    name: str
    style: Style
    points: str
    """The `points` attribute of an SVG polyline."""
    dots: Sequence[Mark] = ()


@dataclass(frozen=True)
class Chart:
    """A line chart over optimizer steps."""

    title: str
    unit: str
    lines: Sequence[Line]
    x_marks: Sequence[Mark]
    y_marks: Sequence[Mark]
    width: float
    height: float
    summary: str
    """Text description of the chart for screen readers."""


def chart(title: str, unit: str, series: Sequence[Series], width: float = 640, height: float = 210) -> Chart:
    """Returns a chart of all series, with one value axis that starts at 0. Needs at least one series with one step."""
    y_ticks = ticks(max(max(one.values) for one in series), 4 if height < 150 else 5)
    last = max(one.steps[-1] for one in series)
    first = min(min(one.steps[0] for one in series), last - 1)
    x_ticks = [tick for tick in ticks(last, max(3, round(width / 130))) if 0 < tick <= last] or [last]

    def x(step: float) -> float:
        return round((step - first) / (last - first) * width, 1)

    def y(value: float) -> float:
        return round(height - value / y_ticks[-1] * height, 1)

    def line(one: Series) -> Line:
        kept = thinned(len(one.steps))
        points = " ".join(f"{x(one.steps[i])},{y(one.values[i])}" for i in kept)
        places = zip(one.steps, one.values, strict=True) if one.dotted else ()
        dots = [Mark(x(step), f"{one.name}, step {step:,}: {value:.4g}", y(value)) for step, value in places]
        return Line(one.name, one.style, points, dots)

    return Chart(
        title,
        unit,
        [line(one) for one in series],
        [Mark(x(tick), f"{tick:,.0f}") for tick in x_ticks],
        [Mark(y(tick), tick_label(tick)) for tick in y_ticks],
        width,
        height,
        "; ".join(
            f"{one.name} from {one.values[0]:.4g} to {one.values[-1]:.4g}" for one in series if one.style != "raw"
        ),
    )


def smoothed(name: str, steps: Sequence[int], values: Sequence[float]) -> list[Series]:
    """Returns the values as one series. From WORTH_SMOOTHING values on, returns the raw values and a moving average."""
    if len(values) < WORTH_SMOOTHING:
        return [Series(name, steps, values)]
    return [Series("each step", steps, values, "raw"), Series(name, steps, moving_average(values))]


def thinned(count: int) -> Sequence[int]:
    """Returns about POINTS of `count` positions at most, evenly spread, with the first and the last."""
    step = ceil(count / POINTS)
    return [*range(0, count - 1, step), count - 1]


def ticks(highest: float, wanted: int = 5) -> list[float]:
    """Returns round numbers from 0 to at least `highest`, in about `wanted` steps of 1, 2 or 5 times a power of ten."""
    if highest < 1e-300:  # zero, or so small that a fifth of it underflows
        return [0.0, 1.0]
    raw = highest / wanted
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [float(f"{i * step:.12g}") for i in range(ceil(highest / step - 1e-9) + 1)]


def tick_label(tick: float) -> str:
    """Returns the shortest form of a round number: 10,000, 0.05, 1.5e-4."""
    if tick == 0 or abs(tick) >= 0.001:
        return f"{tick:,g}" if abs(tick) < 1e6 else f"{tick:g}"
    exponent = floor(log10(abs(tick)) + 1e-9)
    return f"{tick / 10.0**exponent:g}e{exponent}"


def moving_average(values: Sequence[float]) -> list[float]:
    """Returns the mean of each value and its neighbours.

    The window has equally many neighbours on each side: a twentieth of all values, at most 25, fewer at the ends."""
    reach = max(1, min(25, len(values) // 20))
    reaches = [min(reach, i, len(values) - 1 - i) for i in range(len(values))]
    return [fmean(values[i - r : i + r + 1]) for i, r in enumerate(reaches)]


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Histogram:
    """A histogram of row lengths."""

    bars: Sequence[Bar]
    x_marks: Sequence[Mark]
    y_marks: Sequence[Mark]
    width: float
    height: float


def histogram(values: NDArray[np.int64], width: float = 640, height: float = 130) -> Histogram:
    """Returns a histogram of non-negative integers with about 40 equal bins from 0. Needs at least one value."""
    longest = int(values.max())
    bin_width = max(1, ceil((longest + 1) / 40))
    counts: list[int] = np.bincount(values // bin_width).tolist()
    y_ticks = ticks(max(counts), 3)
    scale, top = width / (len(counts) * bin_width), y_ticks[-1]
    bars = [
        Bar(
            round(i * bin_width * scale + 0.5, 1),
            round(height - count / top * height, 1),
            round(max(0.5, bin_width * scale - 1), 1),
            round(count / top * height, 1),
            f"{i * bin_width:,} to {(i + 1) * bin_width - 1:,} tokens: {count:,} rows",
        )
        for i, count in enumerate(counts)
        if count
    ]
    return Histogram(
        bars,
        [Mark(round(tick * scale, 1), tick_label(tick)) for tick in ticks(longest) if tick <= longest],
        [Mark(round(height - tick / top * height, 1), tick_label(tick)) for tick in y_ticks],
        width,
        height,
    )


@dataclass(frozen=True)
class Whisker:
    """One row of the chart: a value with its interval."""

    name: str
    y: float
    at: float
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Whiskers:
    """A chart of values with intervals, one row for each value."""

    rows: Sequence[Whisker]
    x_marks: Sequence[Mark]
    width: float
    height: float


def whiskers(
    rows: Sequence[tuple[str, float, float, float]], shown: Callable[[float], str], width: float = 540
) -> Whiskers:
    """Returns a chart of the rows (name, value, interval's low end, interval's high end), on an axis that starts at 0.

    Values must not be negative. `shown` formats a value."""
    marks = ticks(max(high for _, _, _, high in rows))

    def x(value: float) -> float:
        return round(value / marks[-1] * width, 1)

    height = 26.0
    drawn = [
        Whisker(name, (i + 0.5) * height, x(value), x(low), x(high), f"{shown(value)}, {shown(low)} to {shown(high)}")
        for i, (name, value, low, high) in enumerate(rows)
    ]
    return Whiskers(drawn, [Mark(x(mark), shown(mark)) for mark in marks], width, height * len(rows))
