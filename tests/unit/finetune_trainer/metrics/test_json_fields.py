"""JSON answers: which texts count as JSON, and which fields are correct."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.metrics.json_fields import FieldCount, field_counts, field_match, fields, parse, valid_json

LEAVES = st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=3)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
)
OBJECTS = st.dictionaries(st.text(max_size=2), JSON, max_size=4)


@pytest.mark.parametrize("text", ['{"a": 1}', "[]", ' {"a": [1, {"b": null}]} \n'])
def test_objects_and_arrays_are_json(text: str) -> None:
    assert parse(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        *("", "5", '"text"', "null", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1,}', "{'a': 1}", '{"a": 1} yes'),
        *('```json\n{"a": 1}\n```', "[" * 100_000, "9" * 5000),
    ],
)
def test_anything_else_is_not(text: str) -> None:
    assert parse(text) is None


def test_missing_wrong_and_invented_fields_cost_the_same() -> None:
    expected = '{"team": "billing", "tags": ["a", "b"], "user": {"id": 7}}'
    assert field_match(expected, expected) == (4, 4)
    assert field_match('{"user": {"id": 7.0}, "team": "billing", "tags": ["a", "b"]}', expected) == (4, 4)
    assert field_match('{"team": "billing", "tags": ["a"], "user": {"id": "7"}}', expected) == (2, 4)
    assert field_match('{"team": "billing", "tags": ["a", "b"], "user": {"id": 7}, "x": 1}', expected) == (4, 5)
    assert field_match("billing", expected) == (0, 4)
    assert field_match('{"a": true}', '{"a": 1}') == (0, 1)
    assert field_match('{"tags": []}', '{"tags": []}') == field_match('{"user": {}}', '{"user": {}}') == (1, 1)


def test_an_empty_answer_made_nothing_up() -> None:
    assert (
        field_match("{}", '{"a": 1}') == field_match("[]", '{"a": 1}') == field_match("no idea", '{"a": 1}') == (0, 1)
    )
    assert field_match("{}", '{"a": 1, "b": 2}') == (0, 2)
    assert field_match('{"a": 1}', "{}") == field_match("no idea", "{}") == field_match("[]", "{}") == (0, 1)
    assert field_match('{"a": 1, "b": 2}', "{}") == (0, 2)
    assert field_match("{}", "{}") == field_match("[]", "[]") == (1, 1)


def test_rows_that_expect_no_json_do_not_count() -> None:
    assert field_match('{"a": 1}', "yes") == (0, 0)
    assert valid_json('{"a": 1}', "yes") == (0, 0)
    assert valid_json("yes", '{"a": 1}') == (0, 1)
    assert valid_json("{}", '{"a": 1}') == (1, 1)


@given(OBJECTS)
def test_an_object_matches_itself_in_any_order(value: dict[str, Any]) -> None:
    shuffled = dict(reversed(value.items()))
    right, all_fields = field_match(json.dumps(shuffled), json.dumps(value))
    assert right == all_fields == len(fields(value))


@given(OBJECTS, OBJECTS)
def test_a_match_is_a_share(first: dict[str, Any], second: dict[str, Any]) -> None:
    right, all_fields = field_match(json.dumps(first), json.dumps(second))
    assert 0 <= right <= all_fields
    assert (right == all_fields) == (
        first == second and json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    )


def test_each_field_is_counted_over_all_rows() -> None:
    expected = '{"team": "billing", "items": [{"id": 1}, {"id": 2}]}'
    answers = ['{"team": "billing", "items": [{"id": 1}, {"id": 3}]}', "no idea"]
    assert field_counts((answer, expected) for answer in answers) == [
        FieldCount("items[].id", expected=4, right=1),
        FieldCount("team", expected=2, right=1),
    ]
