"""What was read otherwise is counted by row and by time, in bounded memory."""

import json
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.rows.readings import NAMES, Noted, Reading, Readings


def test_rows_and_times_are_counted_by_name() -> None:
    readings = Readings()
    for noted in (Counter({(Reading.NOT_LEARNED, "train"): 2, (Reading.NUMBER, "label"): 1}), Noted()):
        readings.add(noted)
    assert readings.rows == 2
    assert readings.rows_with(Reading.NOT_LEARNED) == {"train": 1}
    assert readings.times(Reading.NOT_LEARNED) == 2
    assert readings.rows_with(Reading.BOOLEAN) == {}


def test_names_that_are_data_do_not_fill_the_memory() -> None:
    readings = Readings()
    for number in range(1000):
        readings.add(Counter({(Reading.UNREAD_KEY, f"key {number}"): 1}))
    assert len(readings.rows_with(Reading.UNREAD_KEY)) == NAMES


NOTED = st.dictionaries(st.tuples(st.sampled_from(Reading), st.text(max_size=5)), st.integers(1, 9), max_size=4)


@given(st.lists(NOTED, max_size=5), st.lists(st.text(max_size=5), max_size=3))
def test_counts_are_the_same_after_they_were_written_as_json(rows: list[Noted], unused: list[str]) -> None:
    readings = Readings()
    for noted in rows:
        readings.add(Counter(noted))
    readings.unused += unused
    again = Readings.of_json(json.loads(json.dumps(readings.as_json())))
    assert (again.rows, again.unused) == (readings.rows, readings.unused)
    for reading in Reading:
        assert list(again.rows_with(reading).items()) == list(readings.rows_with(reading).items())
        assert again.times(reading) == readings.times(reading)
