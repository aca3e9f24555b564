"""A status that a later version wrote is read as far as this version can read it, and never stops anything."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.status.attempts import RECORDED
from finetune_api.status.job import ConditionType, FineTuneJobStatus
from finetune_api.status.reading import read_status

TIME = "2026-01-02T03:04:05Z"
STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "state": "Running",
    "stage": "Training",
    "conditions": [
        {"type": "Validated", "status": "True", "reason": "DataValid", "message": "M.", "lastTransitionTime": TIME},
        {"type": "Ready", "status": "False", "reason": "Training", "message": "M.", "lastTransitionTime": TIME},
    ],
    "counts": {"attempts": 2, "reasons": {"Preempted": 1}},
    "attempts": [
        {"number": 1, "name": "a1", "reason": "Preempted", "startTime": TIME, "completionTime": TIME},
        {"number": 2, "name": "a2", "startTime": TIME, "pods": [{"name": "p", "startTime": TIME}]},
    ],
    "startTime": TIME,
    "cost": "1.50",
    "training": {"attempt": 2, "step": 3, "totalSteps": 9, "observedTime": TIME},
    "evaluation": {
        "rows": 9,
        "observedTime": TIME,
        "passed": True,
        "decision": {"metric": "ExactMatch", "over": "Base", "outcome": "Better"},
    },
    "artifacts": {"report": "s3://r/r", "manifest": "s3://r/m", "digest": "0"},
}
WHOLE = FineTuneJobStatus.model_validate(STATUS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def places(whole: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The place of every value in a status."""
    below = whole.items() if isinstance(whole, dict) else enumerate(whole) if isinstance(whole, list) else ()
    inner = [place for key, value in below for place in places(value, (*at, key))]
    return [*([at] if at else []), *inner]


def changed(place: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    status: Any = copy.deepcopy(STATUS)
    holder = status
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return dict(status)


def test_a_status_of_this_version_is_read_as_it_is() -> None:
    assert read_status(STATUS) == WHOLE
    assert read_status({}) == FineTuneJobStatus()


@pytest.mark.parametrize("field", ["state", "stage"])
def test_an_unknown_word_is_left_out_and_everything_else_is_read(field: str) -> None:
    assert read_status(changed((field,), "Rewinding")) == WHOLE.model_copy(update={field: None})


def test_a_condition_with_an_unknown_status_is_left_out_and_the_others_are_read() -> None:
    found = read_status(changed(("conditions", 1, "status"), "Perhaps"))

    assert found.condition(ConditionType.READY) is None
    assert found.is_true(ConditionType.VALIDATED)


def test_a_record_keeps_what_can_be_read() -> None:
    found = read_status(changed(("attempts", 0, "exitCode"), "none"))

    assert found.attempts == WHOLE.attempts


def test_an_unreadable_pod_of_a_record_leaves_the_record() -> None:
    found = read_status(changed(("attempts", 1, "pods", 0, "startTime"), "yesterday"))

    assert [record.number for record in found.attempts or []] == [1, 2]
    assert found.attempts is not None
    assert found.attempts[1].pods == []


def test_an_unknown_metric_leaves_the_verdict() -> None:
    found = read_status(changed(("evaluation", "decision", "metric"), "Humour"))

    assert found.evaluation is not None
    assert (found.evaluation.passed, found.evaluation.decision) == (True, None)


def test_of_a_longer_list_the_newest_records_are_read() -> None:
    many = [{"number": number, "name": f"a{number}"} for number in range(1, 31)]

    found = read_status(changed(("attempts",), many))

    assert [record.number for record in found.attempts or []] == list(range(31 - RECORDED, 31))


def test_a_longer_text_is_cut() -> None:
    found = read_status(changed(("attempts", 1, "name"), "a" * 5000))

    assert found.attempts is not None
    assert found.attempts[1].name == "a" * 1024


def test_the_stored_object_is_not_changed() -> None:
    raw = changed(("state",), "Rewinding")
    before = copy.deepcopy(raw)

    read_status(raw)

    assert raw == before


@given(place=st.sampled_from(places(STATUS)), value=JSON)
def test_any_value_anywhere_leaves_the_other_parts(place: tuple[str | int, ...], value: Any) -> None:
    found = read_status(changed(place, value))

    for field in FineTuneJobStatus.model_fields:
        if FineTuneJobStatus.model_fields[field].alias != place[0]:
            assert getattr(found, field) == getattr(WHOLE, field)


@given(changes=st.lists(st.tuples(st.sampled_from(places(STATUS)), JSON), max_size=6))
def test_any_number_of_such_values_is_read(changes: list[tuple[tuple[str | int, ...], Any]]) -> None:
    status: Any = copy.deepcopy(STATUS)
    for place, value in changes:
        holder = status
        for key in place[:-1]:
            is_item = isinstance(holder, list) and isinstance(key, int) and key < len(holder)
            is_there = is_item or (isinstance(holder, dict) and key in holder)
            holder = holder[key] if is_there else None
        if isinstance(holder, dict):
            holder[place[-1]] = value

    read_status(status)
