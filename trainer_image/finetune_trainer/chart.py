"""Lines and axis marks of a chart, as numbers an SVG can draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

WIDTH = 640.0
"""Width of the plotting area, in the SVG's own units."""

WORTH_SMOOTHING = 100
"""Steps from which on a moving average says more than the steps themselves."""


@dataclass(frozen=True)
class Mark:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """One line, and a smoothed one where there is enough to smooth, over optimizer steps."""

    line: str
    """Points as SVG's polyline takes them."""
    trend: str
    x_marks: Sequence[Mark]
    y_marks: Sequence[Mark]
    height: float
    width: float = WIDTH


def chart(values: Sequence[float], height: float, trend: bool = False) -> Chart:
    """`values` of steps 1, 2, ... over a value axis that starts at 0. `trend`: with a moving average beside it."""
    y_ticks = ticks(max(values))
    x_ticks = [tick for tick in ticks(len(values)) if 0 < tick <= len(values)] or [len(values)]
    first = 1 if len(values) > 1 else 0
    span = max(1, len(values) - first)

    def x(step: float) -> float:
        return round((step - first) / span * WIDTH, 1)

    def y(value: float) -> float:
        return round(height - value / y_ticks[-1] * height, 1)

    def points(series: Sequence[float]) -> str:
        return " ".join(f"{x(step)},{y(value)}" for step, value in enumerate(series, start=1))

    return Chart(
        line=points(values),
        trend=points(moving_average(values)) if trend and len(values) >= WORTH_SMOOTHING else "",
        x_marks=[Mark(x(tick), f"{tick:,.0f}") for tick in x_ticks],
        y_marks=[Mark(y(tick), f"{tick:g}") for tick in y_ticks],
        height=height,
    )


def ticks(highest: float) -> list[float]:
    """Round numbers from 0 up to at least `highest`, four to six steps of 1, 2 or 5 times a power of ten."""
    if highest < 1e-300:  # nothing, or so little that a fifth of it is no number any more
        return [0.0, 1.0]
    raw = highest / 5
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [float(f"{i * step:.12g}") for i in range(ceil(highest / step - 1e-9) + 1)]


def moving_average(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbours: a twentieth of all on either side, at most 25."""
    reach = max(1, min(25, len(values) // 20))
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
