"""Tables as spreadsheets and data frames write them, and damaged: no row is lost unseen, every fault is typed."""

import io
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sources import tables
from finetune_trainer.sources.findings import InvalidRow
from finetune_trainer.sources.records import kind_of
from finetune_trainer.sources.tables import csv_rows, parquet_rows


def csv_refusal(data: bytes) -> str:
    with pytest.raises(TrainerFailure) as caught:
        list(csv_rows(io.BytesIO(data), "t.csv"))
    assert caught.value.reason is FailureReason.DATASET_INVALID
    return caught.value.message


def parquet_refusal(data: bytes) -> str:
    with pytest.raises(TrainerFailure) as caught:
        list(parquet_rows(io.BytesIO(data), "t.parquet"))
    assert caught.value.reason is FailureReason.DATASET_INVALID
    return caught.value.message


def as_parquet(**columns: Any) -> bytes:
    data = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), data)
    return data.getvalue()


def rows_of(data: bytes) -> list[Any]:
    return [value for _, value in parquet_rows(io.BytesIO(data), "t.parquet")]


def test_a_header_in_another_encoding_is_named() -> None:
    assert csv_refusal("frage;antwört\nq;a\n".encode("cp1252")) == (
        't.csv line 1 is not UTF-8. Save the table as "CSV UTF-8".'
    )


def test_carriage_returns_alone_are_named() -> None:
    assert "t.csv uses only a carriage return as the line end" in csv_refusal(b"prompt,completion\rq,a\rr,b\r")


def test_a_spreadsheet_under_the_name_of_a_table_is_refused() -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr(zipfile.ZipInfo("[Content_Types].xml"), "<Types/>" * 50)
    assert 'Save the table as "CSV UTF-8"' in csv_refusal(data.getvalue())


def test_a_header_whose_quote_is_not_closed_is_refused() -> None:
    assert "line 1 has no column names" in csv_refusal(b'"prompt,completion\nq,a\n')


@pytest.mark.parametrize("after", [b"", b'what is "this"?,a pipe\n', b'"quoted",a\n'])
def test_a_quote_left_open_over_lines_ends_the_job_and_swallows_no_row(after: bytes) -> None:
    begun = b'prompt,completion\nq,a\n"What is the pipe for?,A pipe.\n'
    said = csv_refusal(begun + b"q,a\n" * 2000 + after)
    assert "t.csv line 3: the row that starts here has a quoted field without a correct closing quote" in said


def test_more_text_in_quotes_than_a_line_may_have_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LINE_BYTES", 99)
    assert "t.csv line 2: the row that starts here has a quoted field" in csv_refusal(
        b'a,b\n"' + b"q,a\n" * 50 + b'"\n'
    )


def test_a_row_with_too_few_fields_says_which_lines_it_took_in() -> None:
    rows = list(csv_rows(io.BytesIO(b'a,b\n"q,a\nq,a\nit measures 5"\nq,a\n'), "t.csv"))
    assert isinstance(rows[0][1], InvalidRow)
    assert rows[0][1].detail == "1 fields, 2 columns, lines 2 to 4"
    assert rows[1] == (5, {"a": "q", "b": "a"})


WIDE = {
    "a date after the year 9999": pyarrow.array([2**30], pyarrow.int32()).cast(pyarrow.date32()),
    "a time after the year 9999": pyarrow.array([2**60], pyarrow.timestamp("us")),
    "an unknown time zone": pyarrow.array([1], pyarrow.timestamp("us", "Europe/Foo")),
}


@pytest.mark.parametrize("column", WIDE.values(), ids=WIDE)
def test_a_value_python_cannot_hold_is_no_fault_of_the_row_and_no_text(column: pyarrow.Array) -> None:
    [row] = rows_of(as_parquet(prompt=["q"], at=column))
    assert row["prompt"] == "q"
    assert kind_of(row["at"]) == f"of type {type(column[0]).__name__}"


def test_the_content_of_a_message_is_read_if_another_key_has_such_a_value() -> None:
    at = WIDE["a time after the year 9999"]
    message = pyarrow.StructArray.from_arrays([pyarrow.array(["hello"]), at], names=["content", "at"])
    [row] = rows_of(as_parquet(messages=pyarrow.ListArray.from_arrays([0, 1], message)))
    assert row["messages"][0]["content"] == "hello"


def test_nanoseconds_are_no_fault_where_there_is_no_pandas(tmp_path: Path) -> None:
    """As in the trainer's image. Arrow asks once for pandas, so that a process of its own has to be without it."""
    types = {"at": pyarrow.timestamp("ns"), "took": pyarrow.duration("ns"), "daily": pyarrow.time64("ns")}
    columns = {name: pyarrow.array([1], type) for name, type in types.items()}
    (tmp_path / "t.parquet").write_bytes(as_parquet(prompt=["q"], **columns))
    program = (
        "import sys\n"
        "class NoPandas:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'pandas': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NoPandas())\n"
        "from finetune_trainer.sources.tables import parquet_rows\n"
        "[(_, row)] = parquet_rows(open(sys.argv[1], 'rb'), 't')\n"
        "print(row['prompt'], type(row['at']).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "t.parquet")], capture_output=True, text=True, check=False
    )
    assert done.stdout == "q TimestampScalar\n", done.stderr


def test_text_that_is_not_utf_8_is_the_fault_of_its_row() -> None:
    text = pyarrow.array([b"q", b"\xff", b"r"]).view(pyarrow.string())
    first, second, third = rows_of(as_parquet(prompt=text))
    assert (first, third) == ({"prompt": "q"}, {"prompt": "r"})
    assert isinstance(second, InvalidRow)
    assert second.kind == "not UTF-8"


def test_columns_of_one_name_are_refused_in_structs_too() -> None:
    data = io.BytesIO()
    text = pyarrow.array(["q"])
    parquet.write_table(pyarrow.Table.from_arrays([text, text], names=["prompt", "prompt"]), data)
    assert parquet_refusal(data.getvalue()) == ("t.parquet has two columns with the name prompt. Rename one of them.")
    struct = pyarrow.StructArray.from_arrays([text, text], names=["a", "a"])
    assert "two columns with the name meta.a." in parquet_refusal(as_parquet(prompt=text, meta=struct))


SOUND = as_parquet(
    prompt=[f"question {i} é" for i in range(60)], messages=[[{"role": "user", "content": str(i)}] for i in range(60)]
)


def test_a_damaged_name_of_a_column_is_a_typed_failure() -> None:
    assert "is not a Parquet file, or it is damaged" in parquet_refusal(SOUND.replace(b"prompt", b"pr\xffmpt"))


@given(damage=st.dictionaries(st.integers(0, len(SOUND) - 1), st.integers(0, 255), min_size=1, max_size=4))
def test_a_damaged_parquet_file_ends_in_rows_or_a_typed_failure(damage: dict[int, int]) -> None:
    data = bytearray(SOUND)
    for place, byte in damage.items():
        data[place] = byte
    with suppress(TrainerFailure):
        assert all(isinstance(value, dict | InvalidRow) for value in rows_of(bytes(data)))
