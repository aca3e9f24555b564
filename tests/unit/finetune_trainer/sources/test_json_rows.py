"""A name twice in an object is the fault of one row, wherever the object lies and whatever the name is."""

import io
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.sources import json_rows
from finetune_trainer.sources.findings import Finding, InvalidRow, Severity
from finetune_trainer.sources.json_rows import array_items, json_lines, parse

TWICE = '{"meta": {"a": 1, "a": 2}, "text": "%s"}'


@given(fill=st.integers(0, 40), chunk=st.integers(1, 20))
def test_a_name_twice_is_the_fault_of_its_item_wherever_reading_paused(fill: int, chunk: int) -> None:
    data = f"[1, {TWICE % ('x' * fill)}, [2]]".encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK_BYTES", chunk)
        first, (_, problem), third = array_items(io.BytesIO(data), "t.json")
    assert (first, third) == ((1, 1), (3, [2]))
    assert isinstance(problem, InvalidRow)
    assert problem.detail == "a"


@pytest.mark.parametrize(
    ("name", "shown"), [("naïve", "naïve"), ("\ud800x", r"\ud800x"), ("a\nb", r"a\nb"), ("y" * 50, "y" * 37 + "...")]
)
def test_a_name_twice_is_shown_as_what_a_status_can_carry(name: str, shown: str) -> None:
    with pytest.raises(InvalidRow) as caught:
        parse(f"{{{json.dumps(name)}: 1, {json.dumps(name)}: 2}}".encode())
    assert caught.value.detail == shown
    Finding(severity=Severity.ERROR, message="m", rows=1, places=[shown]).model_dump_json()


def test_a_name_twice_among_many_is_found_in_one_pass() -> None:
    names = [f'"{n}": 0' for n in range(20_000)]
    begun = time.process_time()
    with pytest.raises(InvalidRow):
        parse(f"{{{', '.join([*names, names[-1]])}}}".encode())
    assert time.process_time() - begun < 1  # counting each name took ten


@pytest.mark.parametrize("first", [b"\xef\xbb\xbf\n", b"\xef\xbb\xbf\r\n", b"\xef\xbb\xbf \t\n", b"\n"])
def test_a_line_with_nothing_but_a_byte_order_mark_is_blank(first: bytes) -> None:
    assert list(json_lines(io.BytesIO(first + b'{"a": 1}\n'), "rows.jsonl")) == [(2, {"a": 1})]
    assert list(json_lines(io.BytesIO(first), "rows.jsonl")) == []
