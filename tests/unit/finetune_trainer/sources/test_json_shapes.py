"""Rows in one JSON object, as data frames and people write them."""

import io
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sources import json_rows
from finetune_trainer.sources.json_rows import array_items, json_lines

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": None}]
TALK = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
COLUMNS = {name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ROWS[0]}


def items(value: Any) -> list[Any]:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return [item for _, item in array_items(io.BytesIO(data), "t.json")]


def refusal(value: Any) -> str:
    with pytest.raises(TrainerFailure) as caught:
        items(value)
    assert caught.value.reason is FailureReason.DATASET_INVALID
    return caught.value.message


@pytest.mark.parametrize(
    "value",
    [
        {"data": ROWS},
        {"version": "1.1", "info": {"by": "x"}, "train": ROWS},
        COLUMNS,
        {str(n): row for n, row in enumerate(ROWS)},
        {"columns": ["prompt", "completion"], "index": [0, 1], "data": [list(row.values()) for row in ROWS]},
        {name: list(column.values()) for name, column in COLUMNS.items()},
    ],
    ids=["below data", "below train", "by columns", "by index", "split", "lists"],
)
def test_rows_in_one_object_are_read(value: Any) -> None:
    assert items(value) == ROWS


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            {"train": ROWS, "test": ROWS},
            "contains several lists of rows (train, test). Write each list to a separate file.",
        ),
        (ROWS[0], "contains an object, not an array of objects. A .json file must contain one array of objects. If it"),
        ({"messages": TALK}, "contains an object, not an array of objects."),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, "contains an object, not an array of objects."),
        (b'{"prompt": "a"}\n{"prompt": "b"}', "contains several objects, one after another."),
        (b'{"messages": [{"role": "user"}]} x', "has more content after its object."),
        (b'{"data": [1, }', "is not JSON ("),
        (b'{"data": [{"a": 1, "a": 2}]}', "contains no rows: an object has the same key twice (a)."),
        ({}, "contains an object, not an array of objects."),
    ],
)
def test_another_object_is_refused_with_what_it_is(value: Any, said: str) -> None:
    assert f"t.json {said}" in refusal(value)


def test_an_object_that_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "LINE_BYTES", 1 << 20)
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", 1 << 10)
    assert "contains one object of more than 1 MiB, not an array" in refusal({"data": [{"a": "x" * (3 << 20)}]})


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_an_array_in_a_jsonl_file_is_refused_with_the_right_name(indent: int | None, mark: bytes) -> None:
    data = mark + json.dumps(ROWS, indent=indent).encode()
    with pytest.raises(
        TrainerFailure,
        match=r"starts a JSON array, but a \.jsonl file must have one object per line\. Rename the file to \.json",
    ):
        list(json_lines(io.BytesIO(data), "t.jsonl"))


def test_a_data_frame_in_a_file_of_lines_is_not_taken_for_a_row() -> None:
    with pytest.raises(
        TrainerFailure, match=r"t\.jsonl line 1 is a data frame stored by columns\. Rename the file to \.json"
    ):
        list(json_lines(io.BytesIO(json.dumps(COLUMNS).encode()), "t.jsonl"))


def test_a_conversation_a_line_is_not_taken_for_an_array_of_rows() -> None:
    data = json.dumps(TALK).encode() * 1
    assert list(json_lines(io.BytesIO(data), "t.jsonl")) == [(1, TALK)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from("01ab"), children, max_size=3),
    max_leaves=12,
)


@given(value=st.dictionaries(st.sampled_from(["data", "columns", "index", "0", "1", "role"]), json_values, max_size=4))
def test_any_object_ends_in_rows_or_a_typed_failure(value: Any) -> None:
    with suppress(TrainerFailure):
        assert items(value)
