"""Charts have every point within the axes and round numbers on them. Histograms count every row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.results.chart import (
    POINTS,
    Series,
    chart,
    histogram,
    moving_average,
    smoothed,
    thinned,
    tick_label,
    ticks,
    whiskers,
)


@given(st.floats(1e-9, 1e9))
def test_ticks_are_few_round_and_reach_the_highest_value(highest: float) -> None:
    found = ticks(highest)
    assert found[0] == 0
    assert found[-1] >= highest * (1 - 1e-6)
    assert 3 <= len(found) <= 7
    assert f"{found[1]:e}"[:8] in ("1.000000", "2.000000", "5.000000")
    assert found == pytest.approx([i * found[1] for i in range(len(found))])


@pytest.mark.parametrize(
    ("tick", "label"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (10_000, "10,000"),
        (2e6, "2e+06"),
        (0.0002, "2e-4"),
        (0.00015, "1.5e-4"),
        (0.001, "0.001"),
    ],
)
def test_tick_labels_are_short(tick: float, label: str) -> None:
    assert tick_label(tick) == label


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300), st.lists(st.floats(0, 200), min_size=1, max_size=9))
def test_every_point_is_within_the_axes(values: list[float], others: list[float]) -> None:
    steps = list(range(1, len(values) + 1))
    other = Series("validation", [7 * i for i in range(len(others))], others, "second", dotted=True)
    drawn = chart("Loss", "nats", [*smoothed("training", steps, values), other], height=100)
    places = [tuple(map(float, point.split(","))) for line in drawn.lines for point in line.points.split()]
    places += [(dot.at, dot.height) for line in drawn.lines for dot in line.dots]
    assert all(0 <= x <= drawn.width and 0 <= y <= 100 for x, y in places)
    assert len(drawn.lines[-1].dots) == len(others)


def test_a_chart_has_a_summary_in_words() -> None:
    drawn = chart("Loss", "nats", [Series("training", [1, 2, 3], [2.0, 1.0, 0.5])])
    assert drawn.summary == "training from 2 to 0.5"


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_a_moving_average_starts_and_ends_with_the_values(values: list[float]) -> None:
    found = moving_average(values)
    assert len(found) == len(values)
    assert (found[0], found[-1]) == (values[0], values[-1])
    assert min(values) - 1e-6 <= min(found)
    assert max(found) <= max(values) + 1e-6


@given(st.integers(1, 20_000))
def test_a_long_line_is_thinned_to_the_resolution_of_a_screen(count: int) -> None:
    kept = thinned(count)
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert len(kept) <= POINTS + 1
    assert list(kept) == sorted(set(kept))


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=300))
def test_a_histogram_counts_every_row_once(values: list[int]) -> None:
    found = histogram(np.array(values))
    counts = [int(bar.label.rpartition(": ")[2].split()[0].replace(",", "")) for bar in found.bars]
    assert sum(counts) == len(values)
    assert all(0 <= bar.x <= bar.x + bar.width <= found.width + 0.5 for bar in found.bars)
    assert all(0 <= bar.y <= found.height for bar in found.bars)
    for bar, count in zip(found.bars, counts, strict=True):
        low, _, high = bar.label.replace(",", "").partition(" to ")
        assert count == sum(int(low) <= value <= int(high.split()[0]) for value in values)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4))
def test_whiskers_surround_their_value_on_separate_lines(values: list[tuple[float, float, float]]) -> None:
    rows = [(f"model {i}", sorted(v)[1], min(v), max(v)) for i, v in enumerate(values)]
    found = whiskers(rows, "{:.3f}".format)
    assert [row.name for row in found.rows] == [name for name, *_ in rows]
    assert all(0 <= row.low <= row.at <= row.high <= found.width for row in found.rows)
    assert [row.y for row in found.rows] == sorted({row.y for row in found.rows})
    assert found.rows[-1].y < found.height
