"""A run that was stopped is continued, and the page shows what is in the record."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.judge import Outcome
from tests.chaos.page import lower_bound, page
from tests.chaos.record import Record
from tests.chaos.table import FAULTS

FAULT, OTHER = FAULTS[0], FAULTS[1]
RIGHT = Outcome(FAULT.name, "load", 0, "Complete", ["Killed"], "Better.", True, True, True, 12, 3.5, 20.0, 60.0)


def test_every_fault_gets_its_first_try_before_any_gets_its_second(tmp_path: Path) -> None:
    tasks = Record(tmp_path / "r.json").to_do([FAULT, OTHER], 2)

    assert [(task.fault.name, task.seed) for task in tasks] == [
        (FAULT.name, 0),
        (OTHER.name, 0),
        (FAULT.name, 1),
        (OTHER.name, 1),
    ]
    assert tasks[2].phase == FAULT.phases[1]


def test_tries_in_the_file_are_not_made_again(tmp_path: Path) -> None:
    record = Record(tmp_path / "r.json", {"load": 1.0})
    record.add(RIGHT)

    again = Record.open(tmp_path / "r.json")

    assert (again.outcomes, again.phase_seconds) == ([RIGHT], {"load": 1.0})
    assert [task.seed for task in again.to_do([FAULT], 3)] == [1, 2]


def test_the_time_left_is_that_of_the_tries_so_far(tmp_path: Path) -> None:
    record = Record(tmp_path / "r.json")
    assert record.seconds_left(record.to_do([FAULT], 3)) is None
    record.add(RIGHT)
    assert record.seconds_left(record.to_do([FAULT], 3)) == 120.0


def test_twenty_right_tries_show_at_least_86_percent() -> None:
    assert lower_bound(20, 20) == pytest.approx(0.861, abs=0.001)
    assert lower_bound(0, 20) == 0.0
    assert lower_bound(19, 20) < lower_bound(20, 20)


def test_the_page_has_a_row_for_each_fault_with_a_try_and_names_every_wrong_one(tmp_path: Path) -> None:
    record = Record(tmp_path / "r.json", {"load": 1.25}, [RIGHT, replace(RIGHT, seed=1, state="Failed", said="a|b")])
    record.outcomes[1] = replace(record.outcomes[1], ended_right=False)

    text = page(record)

    assert f"| `{FAULT.name}`: {FAULT.told} | Complete | 2 | 1 | 2 | 2 | 3% | 12 | 3.5 | 20, 20 |" in text
    assert OTHER.name not in text
    assert "| `trainer-sigkill` | load | 1 | Failed | Killed | a\\|b |" in text
    assert "load 1.2" in text


def test_the_page_says_so_where_nothing_went_wrong(tmp_path: Path) -> None:
    assert page(Record(tmp_path / "r.json", {}, [RIGHT])).endswith("None.\n")


def test_the_page_says_so_while_there_are_no_figures(tmp_path: Path) -> None:
    assert page(Record(tmp_path / "r.json")).endswith("No figures have been recorded yet.\n")
