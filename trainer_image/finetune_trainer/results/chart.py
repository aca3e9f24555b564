"""Lines, bars and axis marks of a chart, as numbers an SVG can draw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray

WORTH_SMOOTHING = 100
"""Steps from which on a moving average says more than the steps themselves."""
POINTS = 800
"""Most points of a line: more are closer together than a screen shows."""

Style = Literal["line", "raw", "second"]


@dataclass(frozen=True)
class Series:
    """Numbers over optimizer steps. `steps` and `values` are of one length."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    style: Style = "line"
    dotted: bool = False
    """Whether each value gets a dot, where they are few."""


@dataclass(frozen=True)
class Mark:
    """A labelled place on an axis, or a point: `height` is its other coordinate."""

    at: float
    label: str
    height: float = 0.0


@dataclass(frozen=True)
class Line:
    """A series as it is drawn."""

    name: str
    style: Style
    points: str
    """As SVG's polyline takes them."""
    dots: Sequence[Mark] = ()


@dataclass(frozen=True)
class Chart:
    """Lines over optimizer steps."""

    title: str
    unit: str
    lines: Sequence[Line]
    x_marks: Sequence[Mark]
    y_marks: Sequence[Mark]
    width: float
    height: float
    summary: str
    """What it shows, for those who cannot see it."""


def chart(title: str, unit: str, series: Sequence[Series], width: float = 640, height: float = 210) -> Chart:
    """Every series over one value axis that starts at 0. At least one series with at least one step."""
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
    """The values, and where they are many their moving average over them."""
    if len(values) < WORTH_SMOOTHING:
        return [Series(name, steps, values)]
    return [Series("each step", steps, values, "raw"), Series(name, steps, moving_average(values))]


def thinned(count: int) -> Sequence[int]:
    """At most about POINTS of `count` positions, evenly spread, with the first and the last."""
    step = ceil(count / POINTS)
    return [*range(0, count - 1, step), count - 1]


def ticks(highest: float, wanted: int = 5) -> list[float]:
    """Round numbers from 0 up to at least `highest`, about `wanted` steps of 1, 2 or 5 times a power of ten."""
    if highest < 1e-300:  # nothing, or so little that a fifth of it is no number any more
        return [0.0, 1.0]
    raw = highest / wanted
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [float(f"{i * step:.12g}") for i in range(ceil(highest / step - 1e-9) + 1)]


def tick_label(tick: float) -> str:
    """A round number as short as it can be said: 10,000, 0.05, 1.5e-4."""
    if tick == 0 or abs(tick) >= 0.001:
        return f"{tick:,g}" if abs(tick) < 1e6 else f"{tick:g}"
    exponent = floor(log10(abs(tick)) + 1e-9)
    return f"{tick / 10.0**exponent:g}e{exponent}"


def moving_average(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbours: a twentieth of all on either side, at most 25, and fewer at the ends,
    where as many are taken from either side as there are."""
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
    """How many rows are how long."""

    bars: Sequence[Bar]
    x_marks: Sequence[Mark]
    y_marks: Sequence[Mark]
    width: float
    height: float


def histogram(values: NDArray[np.int64], width: float = 640, height: float = 130) -> Histogram:
    """Counts of whole numbers, none below 0, in about 40 even bins from 0. At least one value."""
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
    """A value with its interval, on a line of its own."""

    name: str
    y: float
    at: float
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Whiskers:
    """Values of one kind below each other."""

    rows: Sequence[Whisker]
    x_marks: Sequence[Mark]
    width: float
    height: float


def whiskers(
    rows: Sequence[tuple[str, float, float, float]], shown: Callable[[float], str], width: float = 540
) -> Whiskers:
    """Name, value and both ends of the interval of each row, none below 0, over an axis from 0 to the highest.
    `shown`: how a value is written."""
    marks = ticks(max(high for _, _, _, high in rows))

    def x(value: float) -> float:
        return round(value / marks[-1] * width, 1)

    height = 26.0
    drawn = [
        Whisker(name, (i + 0.5) * height, x(value), x(low), x(high), f"{shown(value)}, {shown(low)} to {shown(high)}")
        for i, (name, value, low, high) in enumerate(rows)
    ]
    return Whiskers(drawn, [Mark(x(mark), shown(mark)) for mark in marks], width, height * len(rows))
