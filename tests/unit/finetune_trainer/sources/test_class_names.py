"""Class numbers in Parquet files that Hugging Face's `datasets` wrote, read as the names of the classes."""

import io
import json
from typing import Any

import datasets
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from finetune_trainer.rows.cells import value_of
from finetune_trainer.rows.readings import Noted, Reading
from finetune_trainer.sources.class_names import NoClass, naming
from finetune_trainer.sources.findings import InvalidRow
from finetune_trainer.sources.tables import parquet_rows

LABEL = {"names": ["card_lost", "refund"], "_type": "ClassLabel"}
TEXT = {"dtype": "string", "_type": "Value"}


def metadata(**features: Any) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def first_row(columns: dict[str, Any], **features: Any) -> dict[str, Any]:
    data = io.BytesIO()
    parquet.write_table(pyarrow.table(columns).replace_schema_metadata(metadata(**features)), data)
    row = next(parquet_rows(data, "t.parquet"))[1]
    assert isinstance(row, dict)
    return row


def test_a_file_that_datasets_wrote_has_names_at_every_depth() -> None:
    label, text = datasets.ClassLabel(names=LABEL["names"]), datasets.Value("string")
    features = datasets.Features(
        label=label,
        tags=datasets.Sequence(label),
        meta={"intent": label, "note": text},
        parts=datasets.Sequence({"intent": label, "note": text}),
        turns=[{"intent": label, "note": text}],
        grid=datasets.Array2D((1, 2), "int32"),
        length=datasets.Value("int64"),
    )
    part = {"intent": 1, "note": "n"}
    row = {"label": 1, "tags": [0, 1], "meta": part, "turns": [part], "length": 1}
    row |= {"grid": [[1, 0]], "parts": {"intent": [1], "note": ["n"]}}
    data = io.BytesIO()
    datasets.Dataset.from_list([row], features=features).to_parquet(data)
    data.seek(0)
    named = part | {"intent": "refund"}
    assert next(parquet_rows(data, "t.parquet"))[1] == row | {
        "label": "refund",
        "tags": ["card_lost", "refund"],
        "meta": named,
        "parts": {"intent": ["refund"], "note": ["n"]},
        "turns": [named],
    }


@pytest.mark.parametrize(
    ("value", "feature", "wanted"),
    [
        ([[1]], {"feature": LABEL, "length": -1, "_type": "Sequence"}, ["refund"]),
        ([[1]], [LABEL], ["refund"]),
        ([{"a": [1]}], {"feature": {"a": LABEL}, "_type": "Sequence"}, {"a": ["refund"]}),
        ([[[0], None]], {"feature": {"feature": LABEL, "_type": "LargeList"}, "_type": "List"}, [["card_lost"], None]),
        ([1], LABEL | {"num_classes": 2, "names_file": None, "id": None}, "refund"),
        ([None], LABEL, None),
        (["refund"], LABEL, "refund"),
        ([1], {"num_classes": 2, "_type": "ClassLabel"}, 1),
        ([1], {"dtype": "int64", "_type": "Value"}, 1),
    ],
)
def test_the_forms_of_other_versions_are_read(value: list[Any], feature: Any, wanted: Any) -> None:
    assert first_row({"label": value}, label=feature) == {"label": wanted}


def test_dictionary_columns_are_read_as_their_values() -> None:
    text = pyarrow.array(["refund", None]).dictionary_encode()
    number = pyarrow.array([1, 0]).dictionary_encode()
    assert first_row({"answer": text, "label": number}, label=LABEL) == {"answer": "refund", "label": "refund"}


def test_names_reach_rows_that_have_a_value_without_a_python_type() -> None:
    late = pyarrow.array([2**60], pyarrow.timestamp("us"))
    assert first_row({"at": late, "label": [1]}, label=LABEL)["label"] == "refund"


def test_a_name_is_text_and_is_noted_once_for_the_row() -> None:
    noted = Noted()
    assert value_of(first_row({"label": [1]}, label=LABEL), "label", noted) == "refund"
    assert noted == {(Reading.CLASS, "label"): 1}


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (-1, "label contains the class number -1, which means that the label is not published: remove these rows"),
        (2, "label contains a class number without a name in the metadata of the file: correct the number or the name"),
    ],
)
@pytest.mark.parametrize("depth", ["a value", "in an object"])
def test_a_number_without_a_name_is_an_error_of_its_row(number: int, said: str, depth: str) -> None:
    value, feature = ({"a": number}, {"a": LABEL}) if depth == "in an object" else (number, LABEL)
    row = first_row({"label": [value]}, label=feature)
    with pytest.raises(InvalidRow) as caught:
        value_of(row, "label", Noted())
    assert caught.value.kind.startswith(said)


@pytest.mark.parametrize(
    "damaged", [None, {}, {b"huggingface": b"{"}, {b"huggingface": b"\xff"}, {b"huggingface": b"[]"}]
)
def test_metadata_of_another_form_changes_nothing(damaged: dict[bytes, bytes] | None) -> None:
    assert naming(damaged) == {}


anything = st.recursive(
    st.none() | st.integers() | st.sampled_from(["ClassLabel", "Sequence", "Value", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["_type", "names", "feature", "a"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(feature=anything, value=anything)
def test_whatever_the_metadata_says_a_value_is_named_or_stays(feature: Any, value: Any) -> None:
    for named in naming(metadata(column=feature)).values():
        assert type(named(value)) is type(value) or isinstance(named(value), NoClass)
