"""Tables as data frames, spreadsheets and people write them: what separates the columns, and which have names."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sources.findings import InvalidRow
from finetune_trainer.sources.tables import csv_rows

ROW = {"prompt": "a, x", "completion": "b"}


def rows(text: str, uri: str = "t.csv") -> list[Any]:
    return [value for _, value in csv_rows(io.BytesIO(text.encode()), uri)]


@pytest.mark.parametrize(
    "text",
    [
        'prompt,completion\n"a, x",b\n',
        ',prompt,completion\n0,"a, x",b\n',
        'prompt,completion,\n"a, x",b,\n',
        'prompt,completion,,\n"a, x",b\n',
        'prompt,completion\n"a, x",b,\n,,\n',
        'prompt, completion\n"a, x", "b"\n',
        '"prompt", "completion"\n"a, x",b\n',
        "prompt;completion\na, x;b\n",
        "prompt\tcompletion\na, x\tb\n",
        "prompt|completion\na, x|b\n",
        "prompt | completion\na, x | b\n",
        "prompt||completion\na, x||b\n",
        "sep=;\nprompt;completion\na, x;b\n",
        '"sep=|"\r\nprompt|completion\r\na, x|b\r\n',
    ],
)
def test_one_row_is_read_the_same_however_the_table_is_written(text: str) -> None:
    assert rows(text) == [ROW]


def test_a_tsv_file_is_separated_by_tabs_though_its_names_hold_more_commas() -> None:
    assert rows("a, b, c\td\nx\ty\n", "t.tsv.gz") == [{"a, b, c": "x", "d": "y"}]
    assert rows("prompt,completion\na,b\n", "t.tsv") == [{"prompt": "a", "completion": "b"}]


def test_pandas_named_index_is_a_column_like_others() -> None:
    assert rows("Unnamed: 0,prompt\n0,a\n") == [{"Unnamed: 0": "0", "prompt": "a"}]


@pytest.mark.parametrize(
    ("text", "kind", "detail"),
    [
        (",,prompt\n0,1,a\n", "a value is in a column without a name", "field 2"),
        ("prompt,\na,b\n", "a value is in a column without a name", "field 2"),
        ('prompt,completion\n"a", "b, c"\n', "a space is before a quoted field", ""),
        ('prompt;completion\n"a"; ""\n', "a space is before a quoted field", ""),
        ("prompt,completion\na\n", "the number of fields differs", "1 fields, 2 columns"),
    ],
)
def test_what_has_no_one_meaning_is_a_named_fault(text: str, kind: str, detail: str) -> None:
    [fault] = rows(text)
    assert isinstance(fault, InvalidRow)
    assert fault.kind.startswith(kind)
    assert fault.detail == detail


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            "prompt^completion",
            "t.csv line 1 seems to separate its columns by ^. Write the table with comma, semicolon, tab or | as",
        ),
        ("prompt::completion::id", "t.csv line 1 seems to separate its columns by ::. Write"),
        ("prompt\x01completion", r"t.csv line 1 seems to separate its columns by \x01. Write"),
        ("sep=;\na;a", "t.csv line 2 names the column a twice"),
    ],
)
def test_a_header_that_cannot_be_read_says_why(header: str, said: str) -> None:
    with pytest.raises(TrainerFailure) as caught:
        rows(f"{header}\na^b\n")
    assert said in caught.value.message


quoted = st.text(st.characters(codec="utf-8", exclude_characters='\0\ufeff"\r\n'), min_size=1, max_size=9).filter(
    str.strip
)


@given(cells=st.lists(st.tuples(quoted, quoted), min_size=1, max_size=4), delimiter=st.sampled_from(",;|\t"))
def test_quotes_are_never_part_of_a_value_where_spaces_follow_the_delimiter(
    cells: list[tuple[str, str]], delimiter: str
) -> None:
    lines = [f'"{first}"{delimiter} "{second}"' for first, second in [("prompt", "completion"), *cells]]
    assert [tuple(row.values()) for row in rows("\n".join(lines))] == cells
    late = rows_or_refusal("\n".join([f"prompt{delimiter}completion", *lines[1:]]))
    if isinstance(late, str):  # a separator inside the quotes can hide the end of the row
        assert "a space is between the separator and an opening quote" in late
    else:
        assert all(isinstance(row, InvalidRow) for row in late)


def rows_or_refusal(text: str) -> list[Any] | str:
    try:
        return rows(text)
    except TrainerFailure as failure:
        return failure.message


def test_a_row_whose_end_is_hidden_by_a_space_before_a_quote_names_the_space() -> None:
    with pytest.raises(TrainerFailure, match=r"t.csv line 2: a space is between the separator and an opening quote"):
        rows('prompt;completion\n"0"; ";"\n"0"; "0"')
