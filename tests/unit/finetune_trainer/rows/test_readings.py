"""What was read otherwise is counted by row and by time, in bounded memory."""

from collections import Counter

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
