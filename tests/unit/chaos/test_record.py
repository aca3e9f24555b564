"""A run that was stopped is continued, and the page shows what is in the record."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.chaos.figures.judge import Outcome
from tests.chaos.figures.page import lower_bound, page
from tests.chaos.figures.record import Record
from tests.chaos.phases import Phase
from tests.chaos.table import FAULTS

FAULT, OTHER = FAULTS[0], FAULTS[1]
RIGHT = Outcome(
    FAULT.name,
    "train",
    0,
    "Complete",
    ["Killed"],
    "",
    True,
    True,
    True,
    True,
    12,
    3.5,
    20.0,
    6.0,
    60.0,
    "2026-01-02",
    "abc",
    7,
)
WITHOUT_A_FAULT = {7: dict.fromkeys(Phase, 1.25)}


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
    record = Record(tmp_path / "r.json", "abc", 7, WITHOUT_A_FAULT)
    record.add(replace(RIGHT, commit="", side_by_side=0))

    again = Record.open(tmp_path / "r.json")

    assert [replace(entry, date=RIGHT.date) for entry in again.outcomes] == [RIGHT]
    assert again.phase_seconds == WITHOUT_A_FAULT
    assert [task.seed for task in again.to_do([FAULT], 3)] == [1, 2]


def test_a_run_can_be_limited_to_some_phases(tmp_path: Path) -> None:
    tasks = Record(tmp_path / "r.json").to_do([FAULT], 3 * len(Phase), [Phase.TRAIN])

    first = Phase.TRAIN.rank
    assert [task.seed for task in tasks] == [first, first + len(Phase), first + 2 * len(Phase)]
    assert {task.phase for task in tasks} == {Phase.TRAIN}


def test_a_try_is_a_line_in_the_order_of_the_table_with_its_date_and_commit(tmp_path: Path) -> None:
    record = Record(tmp_path / "r.json", "abc")
    for entry in (replace(RIGHT, seed=10), replace(RIGHT, fault=OTHER.name), replace(RIGHT, seed=2)):
        record.add(entry)

    lines = (tmp_path / "r.json").read_text().splitlines()[2:-1]

    tries = [json.loads(line.rstrip(",")) for line in lines]
    assert [(entry["fault"], entry["seed"]) for entry in tries] == [(FAULT.name, 2), (FAULT.name, 10), (OTHER.name, 0)]
    assert {(entry["date"], entry["commit"]) for entry in tries} == {(datetime.now(UTC).date().isoformat(), "abc")}


def test_twenty_right_tries_show_at_least_86_percent() -> None:
    assert lower_bound(20, 20) == pytest.approx(0.861, abs=0.001)
    assert lower_bound(0, 20) == 0.0
    assert lower_bound(19, 20) < lower_bound(20, 20)


def test_the_page_has_a_row_for_each_fault_with_a_try_and_names_every_wrong_one(tmp_path: Path) -> None:
    record = Record(
        tmp_path / "r.json",
        "",
        7,
        WITHOUT_A_FAULT,
        [RIGHT, replace(RIGHT, seed=1, state="Failed", said="a|b", note="Why.")],
    )
    record.outcomes[1] = replace(record.outcomes[1], ended_right=False)

    text = page(record)

    assert f"| `{FAULT.name}`: {FAULT.told} | Complete | 2 | 1 | 2 | 2 | 2 of 2 | 3% | 12 | 3.5 | 20, 20 |" in text
    assert f"| `{OTHER.name}`: " not in text
    assert "| `trainer-sigkill` | train | 1 | abc | Failed | Killed | yes | a\\|b | Why. |" in text
    assert f"| jobs | {' | '.join(Phase)} |\n" in text
    assert f"| 7 |{' 1.2 |' * len(Phase)}\n" in text
    assert "1 of 2 tries are right" in text


def test_the_page_tells_what_a_kill_costs_while_the_model_trains(tmp_path: Path) -> None:
    elsewhere = replace(RIGHT, seed=2, phase="load", seconds_to_recover=500.0)
    slower = replace(RIGHT, seed=1, seconds_to_recover=30.0, seconds_loading=20.0)

    alone = replace(RIGHT, seed=3, seconds_to_recover=9.0, side_by_side=1)

    text = page(Record(tmp_path / "r.json", outcomes=[RIGHT, slower, elsewhere, alone]))

    assert "| SIGKILL | 1 | 1 | 9, 9 | 3, 3 | 12 | 3.5 |\n| SIGKILL | 7 | 2 | 25, 30 | 12, 14 | 12 | 3.5 |\n" in text


def test_the_page_says_so_where_nothing_went_wrong(tmp_path: Path) -> None:
    assert page(Record(tmp_path / "r.json", outcomes=[RIGHT])).endswith("None.\n")


def test_the_page_says_so_while_there_are_no_figures(tmp_path: Path) -> None:
    assert page(Record(tmp_path / "r.json")).endswith("No figures have been recorded yet.\n")


def test_a_try_that_led_to_a_change_is_told_made_again_and_counts_no_longer(tmp_path: Path) -> None:
    found = replace(RIGHT, ended_right=False, state="Failed", said="why", note="Mended.", mended=True)
    record = Record(tmp_path / "r.json", outcomes=[found, replace(RIGHT, seed=1)])

    text = page(record)

    assert [task.seed for task in record.to_do([FAULT], 3)] == [0, 2]
    assert "1 of 1 tries are right" in text
    assert f"| `{FAULT.name}` | train | 0 | abc | Failed | Killed | yes | why | Mended. |" in text.partition("found")[2]
    assert "## What the tries found" not in page(replace(record, outcomes=record.outcomes[1:]))
