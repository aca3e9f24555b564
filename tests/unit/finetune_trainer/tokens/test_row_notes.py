"""The notes on rows."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.rows.row_format import DOCUMENT, Message
from finetune_trainer.tokens.row_notes import Mark, RowNotes, format_mark


def says(prompt: str, answer: str) -> tuple[Message, ...]:
    return Message("user", prompt), Message("assistant", answer)


def test_the_most_frequent_answer_is_counted_among_the_rows_asked_for() -> None:
    notes = RowNotes()
    for answer in ["yes", " yes\n", "no", "yes", "maybe"]:
        notes.add(says("q", answer))
    assert notes.most_frequent_answer(np.arange(5)) == 3
    assert notes.most_frequent_answer(np.array([0, 2, 4])) == 1
    assert notes.most_frequent_answer(np.array([], dtype=np.int64)) == 0


def test_answers_that_differ_in_their_thoughts_are_one() -> None:
    notes = RowNotes()
    for answer in ["<think>\nlet me see\n</think>\n\nyes", "<think>hm</think>yes", "yes"]:
        notes.add(says("q", answer))
    assert notes.most_frequent_answer(np.arange(3)) == 3


def test_each_row_counts_for_its_first_mark() -> None:
    notes = RowNotes()
    for prompt, answer in [("[INST] q [/INST]", "### Response:"), ("q", "### Response: a"), ("q", "a")]:
        notes.add(says(prompt, answer))
    assert notes.marked(np.arange(3), Mark.FORMAT) == {"[INST]": 1, "### Response": 1}
    assert notes.marked(np.array([2]), Mark.FORMAT) == {}


def test_special_tokens_of_the_model_differ_from_marks_of_other_models() -> None:
    notes = RowNotes(lambda text: "<s>" if "<s>" in text else None)
    texts = ["<s>[INST] q [/INST]", "<|im_start|>user", "[INST] q", "<\uff5cUser\uff5c>q", "### Response: a", "plain"]
    for text in texts:
        notes.add((Message(DOCUMENT, text),))
    notes.add(says("<s>", "[INST]"))
    rows = np.arange(7)
    assert notes.documents(rows) == 6
    assert notes.marked(rows, Mark.OWN) == {"<s>": 1}
    assert notes.marked(rows, Mark.FOREIGN) == {"<|im_start|>": 1, "[INST]": 1, "<\uff5cUser\uff5c>": 1}
    assert notes.marked(rows, Mark.FORMAT) == {"[INST]": 1}


def test_marks_of_any_number_are_counted_in_bounded_memory() -> None:
    notes = RowNotes()
    for number in range(1000):
        notes.add((Message(DOCUMENT, f"<|mark {number}|>"),))
    counts = notes.marked(np.arange(1000), Mark.FOREIGN)
    assert sum(counts.values()) == 1000
    assert counts["others"] > 700


@pytest.mark.parametrize(
    "text",
    [
        "Below is an instruction.\n\n### Instruction:\nSum up",
        "<|im_start|>user\nhello",
        "[INST] hello [/INST]",
        "<start_of_turn>user",
        "<|start_header_id|>user<|end_header_id|>",
        "\nHuman: hello",
    ],
)
def test_marks_of_prompt_formats_are_known(text: str) -> None:
    assert format_mark(text)


@pytest.mark.parametrize(
    "text",
    ["A human: being", "### Installation", "if a < b | c > d: [INSTALL]", "The Assistant: a play", "instruction"],
)
def test_plain_text_has_none(text: str) -> None:
    assert format_mark(text) is None


TEXTS = st.sampled_from(["[INST] q", "### Response: a", "<s>", "yes", "No.", "<|user|>", "x <|é|>"])


@given(rows=st.lists(st.tuples(st.sampled_from(["user", DOCUMENT]), TEXTS, TEXTS), max_size=8))
def test_notes_are_the_same_after_they_were_written_to_files(rows: list[tuple[str, str, str]]) -> None:
    notes = RowNotes(lambda text: "<s>" if "<s>" in text else None)
    for role, prompt, answer in rows:
        notes.add((Message(role, prompt),) if role == DOCUMENT else says(prompt, answer))
    with TemporaryDirectory() as folder:
        notes.save(Path(folder) / "notes")
        again = RowNotes.load(Path(folder) / "notes")
    every = np.arange(len(rows))
    assert again.keys(every).tolist() == notes.keys(every).tolist()
    assert again.documents(every) == notes.documents(every)
    assert [again.marked(every, kind) for kind in Mark] == [notes.marked(every, kind) for kind in Mark]
