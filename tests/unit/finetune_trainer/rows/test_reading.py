"""Rows read from files: every format, every fault with its file and line."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_api.spec.dataset import Source
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.rows.reading import read_rows
from finetune_trainer.rows.readings import Readings
from finetune_trainer.rows.row_format import DOCUMENT, Message, Row
from finetune_trainer.rows.turns import AS_TEXT
from finetune_trainer.sources.findings import Findings
from finetune_trainer.storage.job_storage import open_storage

BUNDLE = Bundle.model_validate(
    {"spec": {"model": {"uri": "m"}, "dataset": {"train": [{"uri": "x.jsonl"}]}, "output": {"uri": "o"}}}
)

Read = Callable[..., tuple[list[Row], Findings]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Writes lines (text, or values as JSON) to a file and reads them back as rows, with what was found wrong."""

    def write_and_read(
        lines: Sequence[Any], name: str = "t.jsonl", uri: str | None = None, **source: Any
    ) -> tuple[list[Row], Findings]:
        texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (tmp_path / name).write_bytes(b"\n".join(texts))
        findings = Findings()
        found = Source.model_validate({"uri": str(tmp_path / (uri or name)), **source})
        rows = list(read_rows(open_storage(BUNDLE), [found], "spec.dataset.train", findings, Readings()))
        return rows, findings

    return write_and_read


def turns(row: Row) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in row.messages]


def complaint(findings: Findings) -> str:
    with pytest.raises(TrainerFailure) as caught:
        findings.raise_if_invalid()
    assert caught.value.reason is FailureReason.DATASET_INVALID
    return caught.value.message


def test_prompt_and_completion_become_a_question_and_its_answer(read: Read) -> None:
    rows, _ = read([{"prompt": "Say hi", "completion": "hi", "id": 7}])
    assert turns(rows[0]) == [("user", "Say hi"), ("assistant", "hi")]


def test_a_system_prompt_comes_first_and_may_be_missing(read: Read) -> None:
    rows, findings = read(
        [
            {"prompt": "a", "completion": "b", "system": "Be brief."},
            {"prompt": "a", "completion": "b", "system": None},
            {"prompt": "a", "completion": "b"},
        ]
    )
    assert [len(row.messages) for row in rows] == [3, 2, 2]
    assert rows[0].messages[0] == Message("system", "Be brief.")
    assert findings.invalid == 0


def test_an_instruction_is_followed_by_its_input_where_there_is_one(read: Read) -> None:
    rows, _ = read(
        [
            {"instruction": "Sort.", "input": "b a", "output": "a b"},
            {"instruction": "Sing.", "input": "", "output": "la"},
        ]
    )
    assert [row.messages[0].content for row in rows] == ["Sort.\n\nb a", "Sing."]


def test_a_text_is_one_message_and_told_by_its_column(read: Read) -> None:
    rows, findings = read([{"text": "Once upon a time.", "id": 1}, {"text": " "}])
    assert turns(rows[0]) == [(DOCUMENT, "Once upon a time.")]
    assert rows[0].is_document
    assert "t.jsonl line 2: text is empty" in complaint(findings)
    rows, _ = read([{"body": "x", "prompt": "p"}], columns={"text": "body"})
    assert turns(rows[0]) == [(DOCUMENT, "x")]


def test_messages_keep_their_turns(read: Read) -> None:
    conversation = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
        {"role": "assistant", "content": "b", "name": "Bo"},
    ]
    rows, _ = read([{"messages": conversation}])
    assert turns(rows[0]) == [(turn["role"], turn["content"]) for turn in conversation]


def test_the_thought_of_an_answer_is_rendered_before_it(read: Read) -> None:
    asked, answer = {"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2", "weight": 1}
    rows, _ = read([{"messages": [asked, answer | {"reasoning_content": "one, and one more\n"}]}])
    assert turns(rows[0])[1] == ("assistant", "<think>\none, and one more\n</think>\n\n2")
    rows, _ = read([{"messages": [asked | {"reasoning_content": "hm"}, answer | {"reasoning_content": None}]}])
    assert turns(rows[0]) == [("user", "1+1"), ("assistant", "2")]
    both = {"content": "<think>two</think>2", "reasoning_content": "two"}
    rows, _ = read([{"messages": [asked, answer | both]}])
    assert turns(rows[0])[1] == ("assistant", "<think>two</think>2")


@pytest.mark.parametrize("key", ["reasoning", "thinking"])
def test_a_thought_is_read_under_the_names_it_has_elsewhere(read: Read, key: str) -> None:
    rows, _ = read(
        [{"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2", key: "hm"}]}]
    )
    assert turns(rows[0])[1] == ("assistant", "<think>\nhm\n</think>\n\n2")


TALK = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]


def test_messages_as_share_gpt_has_them_are_read_alike(read: Read) -> None:
    said = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "u"},
        {"from": "gpt", "value": "a", "weight": 1},
    ]
    rows, _ = read([{"id": "x", "conversations": said}], columns={"messages": "conversations"})
    assert turns(rows[0]) == [("system", "s"), ("user", "u"), ("assistant", "a")]
    _, findings = read([{"messages": [{"from": ["human"], "value": "u"}]}])
    assert "line 1: a message's role is not system, user or assistant (message 1)" in complaint(findings)
    _, findings = read([{"messages": [{"from": "human"}]}])
    assert "line 1: a message has no content: it must have role and content, or from and value" in complaint(findings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("systemInstruction", {"role": "system", "parts": [{"text": "Be "}, {"text": "brief."}]}),
        ("system_instruction", {"parts": {"text": "Be brief."}}),
        ("system", [{"text": "Be brief."}]),
        ("system", [{"type": "text", "text": "Be brief."}]),
        ("system", {"role": "system", "content": "Be brief."}),
        ("system", "Be brief."),
    ],
    ids=["Gemini", "Gemini in Python", "Bedrock", "Anthropic", "message", "text"],
)
def test_a_system_prompt_is_read_in_the_form_of_each_toolkit(read: Read, name: str, value: Any) -> None:
    said = [{"role": "user", "parts": [{"text": "u"}]}, {"role": "model", "parts": [{"text": "a"}]}]
    rows, _ = read([{name: value, "contents": said}], columns={"messages": "contents", "system": name})
    assert turns(rows[0]) == [("system", "Be brief."), ("user", "u"), ("assistant", "a")]


def test_a_system_prompt_that_is_not_text_is_an_error(read: Read) -> None:
    rows, findings = read(
        [
            {"messages": TALK, "system": {"parts": [{"inlineData": {}}]}},
            {"messages": TALK, "system": ["a", "b"]},
            {"messages": TALK, "system": []},
        ]
    )
    assert not rows
    assert "line 1: content has a part that is not text" in complaint(findings)
    assert "line 2: system is a list, not text" in complaint(findings)


def test_the_system_column_becomes_the_first_message(read: Read) -> None:
    rows, _ = read([{"messages": TALK, "sys": "s"}, {"messages": TALK}], columns={"system": "sys"})
    assert [row.messages[0] for row in rows] == [Message("system", "s"), Message("user", "u")]
    within = [{"role": "system", "content": "t"}, *TALK]
    rows, findings = read([{"messages": within, "system": "t"}, {"messages": within, "system": "s"}])
    assert turns(rows[0])[0] == ("system", "t")
    assert "line 2: the column system and the system message differ: remove one of them" in complaint(findings)


@pytest.mark.parametrize("column", ["tools", "functions"])
def test_tools_a_conversation_may_call_are_refused_as_calls_are(read: Read, column: str) -> None:
    rows, findings = read([{"messages": TALK, column: "[]"}, {"messages": TALK, column: [{"name": "f"}]}])
    assert len(rows) == 1
    said = "tool definitions are not supported: write them into the system message, as text, and remove the column"
    assert f"line 2: {said} (column {column})" in complaint(findings)


def test_columns_are_mapped_and_tell_the_format(read: Read) -> None:
    rows, _ = read([{"q": "1+1", "a": "2"}], columns={"prompt": "q", "completion": "a"})
    assert turns(rows[0]) == [("user", "1+1"), ("assistant", "2")]
    rows, _ = read([{"task": "Go", "output": "gone", "ctx": "now"}], columns={"instruction": "task", "input": "ctx"})
    assert turns(rows[0]) == [("user", "Go\n\nnow"), ("assistant", "gone")]
    rows, _ = read(
        [{"chat": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}],
        columns={"messages": "chat"},
    )
    assert turns(rows[0]) == [("user", "u"), ("assistant", "a")]


def test_columns_of_two_formats_are_refused(read: Read) -> None:
    with pytest.raises(TrainerFailure, match=r"spec.dataset.train\[0\].columns maps .* \(Messages and Instr") as caught:
        read([{"a": "1", "b": "2"}], columns={"messages": "a", "output": "b"})
    assert caught.value.reason is FailureReason.SPEC_INVALID


def test_a_json_file_contains_one_array(read: Read) -> None:
    array = json.dumps([{"prompt": "a", "completion": "b"}, {"prompt": "c"}], indent=1).encode()
    rows, findings = read([array], "t.json")
    assert [row.place.rsplit("/")[-1] for row in rows] == ["t.json:1"]
    assert "t.json item 2: completion is missing" in complaint(findings)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"prompt": "a"}\n{"prompt": "b"}', "If it has one object per line, rename it to .jsonl"),
        (b'{"rows": []}', "contains an object, not an array"),
        (b"", "contains nothing, not an array"),
    ],
)
def test_a_json_file_without_an_array_is_refused(read: Read, content: bytes, said: str) -> None:
    with pytest.raises(TrainerFailure, match=said) as caught:
        read([content], "t.json")
    assert caught.value.reason is FailureReason.DATASET_INVALID


def test_sources_with_wildcards_are_read_file_by_file_in_order(read: Read, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"prompt": "2", "completion": "x"}')
    rows, _ = read([{"prompt": "1", "completion": "x"}], "a.jsonl", uri="*.jsonl")
    assert [row.messages[0].content for row in rows] == ["1", "2"]


def test_a_wildcard_that_matches_no_file_is_named(read: Read) -> None:
    with pytest.raises(TrainerFailure, match=r"spec.dataset.train\[0\].uri: no file matches .*none-\*.jsonl") as caught:
        read([], uri="none-*.jsonl")
    assert caught.value.reason is FailureReason.DATASET_NOT_FOUND


GOOD = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a"}, "completion is missing (columns found: prompt)"),
        ({"prompt": "a", "completion": None}, "completion is null"),
        ({"prompt": "a", "completion": " \n"}, "completion is empty"),
        (
            {"prompt": "a", "completion": ["b", "c"]},
            "completion is a list, so it is not clear if one item or all items are meant",
        ),
        ({"prompt": [1], "completion": "b"}, "prompt is a list, so it is not clear if one item or all items are meant"),
        (b'{"prompt": "a", "completion": -Infinity}', "completion is infinite, not text"),
        ({"prompt": "a", "completion": "b", "system": {}}, "system is an object, not text"),
        (b'{"prompt": "a", "completion": "\\ud800"}', "completion contains half of a Unicode surrogate pair"),
        (b'{"prompt": "a", "completion": "b"', "not JSON (Expecting ',' delimiter at column 34)"),
        (b'{"prompt": "a", "completion": "\xff"}', "not UTF-8 (byte 32)"),
        (b"[" * 100_000, "not JSON (it is nested too deeply, or a number is too long)"),
        (b"9" * 5000, "not JSON (it is nested too deeply, or a number is too long)"),
        (["a", "b"], "the row is a list, not an object"),
        (None, "the row is null, not an object"),
        (b'{"prompt": "a", "completion": NaN}', "completion is NaN, not text"),
        (b'{"prompt": "a", "completion": "b", "prompt": "c"}', "an object has the same key twice (prompt)"),
    ],
)
def test_a_bad_row_is_named_with_file_line_and_fault(read: Read, row: Any, said: str) -> None:
    rows, findings = read([GOOD, b"", row, GOOD])
    assert len(rows) == 2
    assert (findings.rows, findings.invalid) == (3, 1)
    assert f"t.jsonl line 3: {said}" in complaint(findings)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages is empty"),
        ("hello", "messages is text, not a JSON list"),
        ("[{'role': 'user'}\n {'role': 'assistant'}]", "messages is text, not a JSON list"),
        (None, "messages is null (columns found: messages)"),
        ([{"role": "user", "content": "u"}], "the last message is not from the assistant"),
        ([{"role": "assistant", "content": "a"}], "messages out of order (message 1 is from assistant, expected user)"),
        (
            [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "user", "content": "u"}],
            "messages out of order (message 3 is from user, expected assistant)",
        ),
        (
            [{"role": "Narrator", "content": "u"}],
            "a message's role is not system, user or assistant (message 1 is from Narrator)",
        ),
        (
            [{"role": "tool", "content": "u"}],
            f"a message is from a tool, and tool calls are not supported: {AS_TEXT} (message 1 is from tool)",
        ),
        (
            [{"from": "Observation", "value": "u"}],
            f"a message is from a tool, and tool calls are not supported: {AS_TEXT} (message 1 is from Observation)",
        ),
        (
            [{"role": "user", "value": "u"}],
            "a message mixes keys of two kinds: it must have role and content, or from and value (message 1, keys "
            "found: role, value)",
        ),
        ([{"role": "user", "content": ""}], "a message has content that is not valid: content is empty (message 1)"),
        (
            [{"role": "user", "body": "u"}],
            "a message has no content: it must have role and content, or from and value (message 1, keys found: role, "
            "body)",
        ),
        ([{"role": ["user"], "content": "a"}], "a message's role is not system, user or assistant (message 1)"),
        (["hi"], "a message is not an object (message 1 is text)"),
        ([{"role": "assistant", "tool_calls": [1]}], f"tool calls are not supported: {AS_TEXT} (message 1)"),
        (
            [{"role": "assistant", "function_call": {"name": "f"}}],
            f"tool calls are not supported: {AS_TEXT} (message 1)",
        ),
        ([{"speaker": "human", "text": "u"}], "a message has no role (message 1, keys found: speaker, text)"),
        (
            [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "weight": 0}],
            "all answers of the row are excluded from training",
        ),
        (
            [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "weight": 0.5}],
            "a message has a weight that is neither 0 nor 1: write 1 to train on the answer, or 0 to exclude it "
            "(message 2)",
        ),
        (
            [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "loss_mask": 1}],
            "a message has loss_mask, which has different meanings in different toolkits: write train, true or false, "
            "instead (message 2)",
        ),
        (
            [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "weight": 1, "train": False}],
            "a message's weight and train contradict each other (message 2)",
        ),
        (
            [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "reasoning_content": ["t"]}],
            "a message has content that is not valid: reasoning_content is a list, not text (message 2)",
        ),
        (
            [{"role": "user", "content": "u"}, {"role": "assistant", "content": "<think>\nso a"}],
            "a thought has no end (<think> without </think>)",
        ),
    ],
)
def test_a_bad_conversation_is_named_with_its_fault(read: Read, messages: Any, said: str) -> None:
    _, findings = read([{"messages": messages}], format="Messages")
    assert f"t.jsonl line 1: {said}." in complaint(findings)


def test_each_error_is_reported_once_with_its_first_row_and_the_number_of_rows(read: Read, tmp_path: Path) -> None:
    _, findings = read([GOOD, *[{"prompt": "a"}] * 7, b"{", b"{", None])
    assert complaint(findings) == (
        f"{tmp_path}/t.jsonl line 2: completion is missing (columns found: prompt). The same error is in 6 more rows. "
        f"{tmp_path}/t.jsonl line 9: not JSON (Expecting property name enclosed in double quotes at column 2). The "
        f"same error is in 1 more row. {tmp_path}/t.jsonl line 11: the row is null, not an object."
    )


def test_of_many_errors_five_are_named_and_the_others_counted(read: Read) -> None:
    kinds = [{"prompt": "a"}, {"completion": "b"}, GOOD | {"prompt": None}, GOOD | {"prompt": ""}, None, 1, 2]
    _, findings = read([GOOD, *kinds])
    assert complaint(findings).endswith("2 more rows have other errors: see status.preflight.findings.")


def test_an_enormous_line_is_left_out_before_it_fills_the_memory(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.sources.data_files.LINE_BYTES", 1000)
    rows, findings = read([GOOD, b"x" * 4001, GOOD])
    assert (len(rows), findings.invalid) == (2, 1)
    assert "t.jsonl line 2: the line is longer than" in complaint(findings)


def test_a_row_too_long_for_the_tokenizers_memory_is_left_out(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.rows.reading.ROW_CHARACTERS", 1000)
    rows, findings = read([{"text": "x" * 1000}, {"text": "x" * 1001}])
    assert len(rows) == 1
    assert "t.jsonl line 2: the row is longer than" in complaint(findings)


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(read: Read) -> None:
    rows, findings = read([b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r", json.dumps(GOOD).encode() + b"\r"])
    assert (len(rows), findings.invalid) == (2, 0)


names = st.sampled_from(["prompt", "completion", "messages", "role", "content", "instruction", "output"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["user", "assistant", "", "x"])
json_values = st.recursive(
    scalars | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(names, children, max_size=4),
    max_leaves=12,
)
file_line = st.binary(max_size=30) | json_values.map(lambda value: json.dumps(value).encode())


@given(lines=st.lists(file_line, min_size=1, max_size=6))
def test_any_content_of_a_file_gives_rows_or_a_typed_failure(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(b"\n".join(lines))
    findings = Findings()
    try:
        rows = list(
            read_rows(open_storage(BUNDLE), [Source(uri=str(path))], "spec.dataset.train", findings, Readings())
        )
    except TrainerFailure:  # columns that fit no format
        return
    assert len(rows) + findings.invalid == findings.rows
    assert all(row.messages[-1].role in ("assistant", DOCUMENT) and row.messages[-1].content.strip() for row in rows)
