"""Figures of the operator's benchmark: percentiles, goals and the gate."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.operator.figures import Better, Figure, Record, percentile, worse


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.floats(0.01, 100))
def test_a_percentile_is_the_smallest_value_that_enough_values_do_not_exceed(
    values: list[float], percent: float
) -> None:
    found = percentile(values, percent)
    enough = len(values) * percent / 100
    assert found in values
    assert sum(value <= found for value in values) >= enough
    assert sum(value < found for value in values) < enough


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_there_is_no_percentile_of_nothing_or_outside_of_0_to_100(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile(values, percent)


@pytest.mark.parametrize(
    ("value", "wanted", "better", "met"),
    [
        (0, 0, Better.LOWER, True),
        (1, 0, Better.LOWER, False),
        (50, 50, Better.HIGHER, True),
        (49, 50, Better.HIGHER, False),
        (7, None, Better.LOWER, None),
    ],
)
def test_a_figure_is_held_against_its_goal(value: float, wanted: float | None, better: Better, met: bool) -> None:
    figure = Figure("writes", value, "requests", wanted, better)
    assert figure.is_met is met
    assert ("MISSED" in str(figure)) == (met is False)


@pytest.mark.parametrize(
    ("recorded", "now", "better", "is_worse"),
    [
        (50, 40, Better.HIGHER, False),
        (50, 39.9, Better.HIGHER, True),
        (50, 90, Better.HIGHER, False),
        (10, 12, Better.LOWER, False),
        (10, 12.1, Better.LOWER, True),
        (0, 0, Better.LOWER, False),
        (0, 1, Better.LOWER, True),
    ],
)
def test_the_gate_fails_at_more_than_20_percent_worse(
    recorded: float, now: float, better: Better, is_worse: bool, tmp_path: Path
) -> None:
    before, after = (
        cases_of(tmp_path / f"{place}.json", Figure("ratio", value, "%", better=better, gated=True))
        for place, value in enumerate((recorded, now))
    )
    assert bool(worse(after, before)) == is_worse


def test_the_gate_compares_no_figure_that_is_not_gated_or_not_in_both_files(tmp_path: Path) -> None:
    before = cases_of(tmp_path / "before.json", Figure("s", 1, "s"), Figure("gone", 1, "%", gated=True))
    after = cases_of(tmp_path / "after.json", Figure("s", 9, "s"), Figure("new", 9, "%", gated=True))
    assert worse(after, before) == []
    assert worse(after, {}) == []


def test_a_record_can_be_read_after_each_figure(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    record = Record(path)
    for number in (1, 2):
        record.add("life", Figure(f"figure {number}", number, "requests"))
        stored = json.loads(path.read_text())["cases"]["life"]
        assert [figure["value"] for figure in stored] == list(range(1, number + 1))


def cases_of(path: Path, *figures: Figure) -> dict[str, list[dict[str, object]]]:
    record = Record(path)
    for figure in figures:
        record.add("throughput 100", figure)
    cases: dict[str, list[dict[str, object]]] = json.loads(path.read_text())["cases"]
    return cases
