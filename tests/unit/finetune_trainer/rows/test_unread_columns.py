"""Columns that nothing reads: what says something is named with its share of the rows and what would read it."""

from typing import Any

import pytest

from finetune_api.spec.dataset import RowFormat, Source
from finetune_trainer.rows.readings import Noted
from finetune_trainer.rows.row_columns import ColumnMap
from finetune_trainer.rows.row_messages import RowReader
from finetune_trainer.rows.unread_columns import UnreadColumns

PAIR = {"prompt": "What is it called?", "completion": "It is called a pump."}
TEXT = "a text of some words"


def listed(rows: list[dict[str, Any]], read_as: RowFormat = RowFormat.PROMPT_COMPLETION, **source: Any) -> list[str]:
    """What is said of these rows of dataset.train[0]."""
    found = Source.model_validate({"uri": "t.jsonl", **source})
    unread, reader = UnreadColumns(read_as, found), RowReader(read_as, ColumnMap.of(found))
    for row in rows:
        unread.note_names(row)
        unread.note(row, reader.messages(row, Noted()))
    return unread.listed("spec.dataset.train[0]")


def said(value: Any, name: str = "extra") -> list[str]:
    return listed([PAIR | {name: value}])


def test_a_mapped_column_that_is_in_no_row_is_named() -> None:
    assert listed([PAIR], columns={"system": "sys: x"}) == [
        'spec.dataset.train[0].columns.system (no row has the column "sys: x": correct or remove this line)'
    ]


def test_a_text_is_named_with_its_share_and_the_line_that_asks_with_it() -> None:
    assert listed([PAIR | {"details": TEXT}, PAIR | {"details": ""}, PAIR]) == [
        "the column details of spec.dataset.train[0] (1 of 3 rows; set columns: {instruction: prompt, input: details, "
        "output: completion} to add it to the prompt)"
    ]


def test_the_line_says_where_the_format_changes_too() -> None:
    [told] = listed([PAIR | {"details": TEXT}], format="PromptCompletion")
    assert "output: completion} with format: Instruction to add it to the prompt" in told


@pytest.mark.parametrize(
    ("name", "value", "way"),
    [
        ("context", "short", "set columns: {instruction: prompt, input: context, output: completion} to add it to the"),
        ("system_prompt", "Be brief.", "set columns: {system: system_prompt} to use it as the system prompt"),
        (
            "systemInstruction",
            {"parts": [{"text": "Be brief."}]},
            "set columns: {system: systemInstruction} to use it as",
        ),
        ("rationale", "so", "set columns: {reasoning: rationale} to train on it as the thought before the answer"),
        ("deepseek_reasoning", "so", "set columns: {reasoning: deepseek_reasoning} to train on it as the"),
        ("image", {"bytes": None, "path": "a.png"}, "this operator trains only on text"),
        ("audio_path", "a.wav", "this operator trains only on text"),
        ("rejected", "no", "training on pairs of a chosen and a rejected answer is not supported"),
        ("choices", ["one", "two"], "to use it, write it as text into a column that the format reads"),
        ("hints", ["one two three four"], "to use it, write it as text into a column that the format reads"),
        ("label", "positive", "to use it, write it as text into a column that the format reads"),
        ("label", 3, "to use it, write it as text into a column that the format reads"),
    ],
)
def test_each_meaning_has_its_way(name: str, value: Any, way: str) -> None:
    [told] = said(value, name)
    assert told.startswith(f"the column {name} of spec.dataset.train[0] (1 of 1 rows; {way}")


@pytest.mark.parametrize("name", ["label", "train", "weight", "is_correct"])
def test_rows_that_say_they_are_wrong_or_not_to_be_learned_are_counted(name: str) -> None:
    [told] = listed([PAIR | {name: flag} for flag in (True, False, False)])
    assert told.startswith(
        f"the column {name} of spec.dataset.train[0] (false in 2 of 3 rows; training uses these rows"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_id", "one two three four"),
        ("source", "Stack Exchange dump of 2020"),
        ("created_at", "Mon 3 May 2020 at noon"),
        ("model", "a very large language model"),
        ("Unnamed: 0", 7),
        ("category", "closed question and answer set"),
        ("difficulty", "hard"),
        ("extra", "three words only"),
        ("extra", 3),
        ("extra", {"a": TEXT}),
        ("extra", [0.5, 0.25]),
        ("weight", 0.7),
        ("label", None),
        ("tools", []),
    ],
)
def test_columns_without_meaning_for_a_model_are_not_reported(name: str, value: Any) -> None:
    assert said(value, name) == []


@pytest.mark.parametrize("value", ["What is it called?", "Q: What is it called?\nA: It is called a pump."])
def test_columns_that_repeat_used_text_are_not_reported(value: str) -> None:
    assert said(value) == []
    row = {
        "instruction": "Say it.",
        "input": "the long text here",
        "output": "so",
        "text": "Say it. the long text here so",
    }
    assert listed([row], RowFormat.INSTRUCTION) == []


def test_a_column_with_the_first_question_of_a_conversation_is_not_reported() -> None:
    talk = [{"role": "user", "content": "What is it called?"}, {"role": "assistant", "content": "A pump."}]
    rows = [{"messages": talk, "prompt": "What is it called?", "prompt_id": "x", "summary": TEXT}]
    assert listed(rows, RowFormat.MESSAGES) == [
        "the column summary of spec.dataset.train[0] (1 of 1 rows; to use it, write it into a column that the format "
        "reads)"
    ]


def test_instructions_without_an_input_can_have_one() -> None:
    row = {"instruction": "Say it.", "output": "so", "details": TEXT}
    [told] = listed([row], RowFormat.INSTRUCTION)
    assert "set columns: {input: details} to add it to the prompt" in told
    [told] = listed([row | {"input": "x"}], RowFormat.INSTRUCTION)
    assert "to use it, write it into a column that the format reads" in told


def test_columns_are_listed_by_their_importance() -> None:
    row = PAIR | {"details": TEXT, "context": "x", "cot": "so", "image": "a.png", "label": False}
    order = [told.split()[2] for told in listed([row])]
    assert order == ["label", "image", "cot", "context", "details"]


def test_rows_whose_keys_are_data_are_looked_at_in_bounded_memory() -> None:
    rows = [PAIR | {f"key {number}": TEXT} for number in range(1000)]
    assert len(listed(rows)) <= 64
