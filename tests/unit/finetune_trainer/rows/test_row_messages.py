"""What each format's columns say, also where they hold turns, numbers, objects, thoughts or images."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.spec.dataset import RowFormat, Source
from finetune_trainer.rows.readings import Noted, Reading
from finetune_trainer.rows.row_columns import ColumnMap
from finetune_trainer.rows.row_format import DOCUMENT, Message
from finetune_trainer.rows.row_messages import RowReader
from finetune_trainer.sources.findings import InvalidRow

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
ASKED, ANSWERED = Message("user", "q"), Message("assistant", "a")
CONTEXT = ANSWERED._replace(learned=False)


def reader(format: RowFormat = RowFormat.PROMPT_COMPLETION, **columns: str) -> RowReader:
    return RowReader(format, ColumnMap.of(Source.model_validate({"uri": "t.jsonl", "columns": columns})))


def read(row: dict[str, Any], **columns: str) -> tuple[tuple[Message, ...], Noted]:
    """What a row of prompt and completion is read as, and what is noted of it."""
    noted = Noted()
    return reader(**columns).messages(row, noted), noted


def messages(found: Any, **row: Any) -> tuple[Message, ...]:
    return reader(RowFormat.MESSAGES).messages({"messages": found, **row}, Noted())


def fault(row: dict[str, Any], format: RowFormat = RowFormat.PROMPT_COMPLETION) -> str:
    with pytest.raises(InvalidRow) as caught:
        reader(format).messages(row, Noted())
    return f"{caught.value.kind} ({caught.value.detail})"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": "q", "completion": [ANSWER]},
        {"prompt": [USER], "completion": "a"},
        {"prompt": json.dumps([USER]), "completion": json.dumps([ANSWER])},
        {"prompt": [{"from": "human", "value": "q"}], "completion": [{"from": "gpt", "value": "a"}]},
    ],
)
def test_a_prompt_and_its_completion_may_be_turns(row: dict[str, Any]) -> None:
    assert read(row)[0] == (ASKED, ANSWERED)


def test_of_a_prompt_of_turns_the_answers_are_context_and_those_of_the_completion_learned() -> None:
    row = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER, USER, ANSWER], "system": "s"}
    said = (Message("system", "s"), ASKED, CONTEXT, ASKED, ANSWERED, ASKED, ANSWERED)
    assert read(row)[0] == said


def test_a_prompt_that_is_about_turns_in_json_stays_text() -> None:
    asked = json.dumps([USER])
    assert read({"prompt": asked, "completion": "one turn"})[0][0] == Message("user", asked)


@pytest.mark.parametrize(
    "found",
    [
        [USER, ANSWER],
        json.dumps([USER, ANSWER]),
        str([USER, ANSWER]),
        {"role": ["user", "assistant"], "content": ["q", "a"]},
        [{"role": "system", "content": ""}, USER, ANSWER],
    ],
    ids=["list", "JSON", "as Python prints it", "lists", "empty system message"],
)
def test_a_conversation_is_read_however_it_is_stored(found: Any) -> None:
    assert messages(found) == (ASKED, ANSWERED)


def test_the_system_column_replaces_an_empty_system_message() -> None:
    assert messages([{"role": "system", "content": ""}, USER, ANSWER], system="s")[0] == Message("system", "s")


def test_a_row_ends_with_its_last_learned_answer() -> None:
    unlearned = ANSWER | {"train": False}
    assert messages([USER, unlearned, USER, ANSWER, USER, unlearned]) == (ASKED, CONTEXT, ASKED, ANSWERED)


def test_a_row_without_an_answer_to_learn_is_a_fault() -> None:
    row = {"messages": [USER, ANSWER | {"weight": 0}]}
    assert fault(row, RowFormat.MESSAGES) == "all answers of the row are excluded from training ()"


@pytest.mark.parametrize(
    ("value", "text", "reading"),
    [
        (3, "3", Reading.NUMBER),
        (0.5, "0.5", Reading.NUMBER),
        (Decimal("12.50"), "12.50", Reading.NUMBER),
        (True, "true", Reading.BOOLEAN),
        ({"name": "Zoë", "tags": [1, None]}, '{"name": "Zoë", "tags": [1, null]}', Reading.OBJECT),
        ([{"a": 1}], '[{"a": 1}]', Reading.OBJECT),
        ([], "[]", Reading.OBJECT),
        ({"text": ["Rome", "rome"], "answer_start": [3, 9]}, "Rome", Reading.FIRST_ANSWER),
    ],
)
def test_an_answer_that_is_no_text_is_read_as_json_writes_it_and_noted(value: Any, text: str, reading: Reading) -> None:
    found, noted = read({"prompt": "q", "completion": value})
    assert found[-1] == Message("assistant", text)
    assert noted == {(reading, "completion"): 1}


@pytest.mark.parametrize(("answer", "noted"), [("3", True), (" -1\n", True), ("2024", False), ("3 of them", False)])
def test_an_answer_that_may_be_the_number_of_a_class_is_noted(answer: str, noted: bool) -> None:
    assert read({"prompt": "q", "completion": answer})[1] == ({(Reading.DIGITS, "completion"): 1} if noted else {})


def test_a_squad_row_with_one_answer_is_not_reported() -> None:
    found, noted = read({"prompt": "q", "completion": {"text": ["Rome"], "answer_start": [3]}})
    assert (found[-1].content, noted) == ("Rome", {})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "completion is null ()"),
        (["a", "b"], "completion is a list, so it is not clear if one item or all items are meant: write the one"),
        ({"text": [], "answer_start": []}, "completion contains no answer: write the text that the model must answer"),
        ({"a": float("nan")}, "completion contains a value that cannot be written as JSON ()"),
        (b"bytes", "completion is of type bytes, not text ()"),
        (float("inf"), "completion is infinite, not text ()"),
    ],
)
def test_an_answer_of_no_one_meaning_is_a_fault(value: Any, said: str) -> None:
    assert fault({"prompt": "q", "completion": value}).startswith(said)


@pytest.mark.parametrize("column", ["reasoning_content", "reasoning", "thinking"])
def test_the_thought_of_an_answer_is_trained_before_it_and_noted(column: str) -> None:
    found, noted = read({"prompt": "q", "completion": "a", column: "so\n"})
    assert found[-1].content == "<think>\nso\n</think>\n\na"
    assert noted == {(Reading.THOUGHT, column): 1}


def test_a_thought_may_stand_in_a_column_that_is_named_and_then_in_no_other() -> None:
    row = {"instruction": "q", "output": "a", "cot": "<think>so</think>", "reasoning": "not so"}
    found = reader(RowFormat.INSTRUCTION, reasoning="cot").messages(row, Noted())
    assert found[-1].content == "<think>\nso\n</think>\n\na"


def test_an_answer_with_its_own_thought_keeps_it() -> None:
    found, noted = read({"prompt": "q", "completion": "<think>so</think>a", "reasoning": "not so"})
    assert (found[-1].content, noted) == ("<think>so</think>a", {})


@pytest.mark.parametrize("mark", ["<image>", "<image_1>", "<|image|>", "<video>", "<audio>", "<|image_pad|>"])
@pytest.mark.parametrize("column", ["image", "images", "image_path", "videos", "Audio"])
def test_a_text_about_an_image_in_another_column_is_refused(mark: str, column: str) -> None:
    said = f"the row refers to an image, audio or video, and this operator trains only on text (column {column})"
    row = {"prompt": f"{mark}What is it?", "completion": "a"}
    assert fault(row | {column: ["1.png"]}) == said
    for nothing in (None, [], ""):
        assert read(row | {column: nothing})[0][-1] == ANSWERED


def test_html_with_an_image_tag_is_text_if_the_row_has_no_image() -> None:
    assert read({"prompt": "<image>", "completion": "a", "title": "x"})[0][-1] == ANSWERED
    assert read({"prompt": '<img src="a.png">', "completion": "a", "image": "a.png"})[0][-1] == ANSWERED


def test_a_text_may_be_a_number() -> None:
    noted = Noted()
    assert reader(RowFormat.TEXT).messages({"text": 12}, noted) == (Message(DOCUMENT, "12"),)
    assert noted == {(Reading.NUMBER, "text"): 1}


flags = st.sampled_from([{}, {"train": True}, {"train": False}, {"weight": 0}, {"weight": 1}])


@given(flagged=st.lists(st.tuples(flags, st.text("abc", min_size=1)), min_size=1, max_size=6))
def test_exactly_the_answers_that_are_to_be_learned_are(flagged: list[tuple[dict[str, Any], str]]) -> None:
    turns = [turn for flag, text in flagged for turn in (USER, {"role": "assistant", "content": text, **flag})]
    wanted = [text for flag, text in flagged if all(flag.values())]
    try:
        found = messages(turns)
    except InvalidRow:
        assert not wanted
        return
    assert [message.content for message in found if message.role == "assistant" and message.learned] == wanted
    assert found[-1].learned
    assert len(found) % 2 == 0
