"""What is said of columns that tell no format: names, never content, and no suggestion but one that works."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.reasons import FailureReason
from finetune_api.spec.dataset import RowFormat, Source
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.rows.row_columns import column_names, detect_format, quoted

PARTS = [{"role": "user", "parts": [{"text": "secret"}]}, {"role": "model", "parts": [{"text": "secret"}]}]
CHAT = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]


def refusal(row: dict[str, Any], **source: Any) -> str:
    """What is said of a source whose first row this is."""
    with pytest.raises(TrainerFailure) as caught:
        detect_format(
            row, Source.model_validate({"uri": "t.jsonl", **source}), "spec.dataset.train[0]", "t.jsonl line 1"
        )
    assert caught.value.reason is FailureReason.DATASET_INVALID
    return caught.value.message


def texts(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "secret")


def test_columns_that_fit_no_format_are_listed_with_what_to_write() -> None:
    assert refusal(texts("question", "answer")) == (
        "t.jsonl line 1: the columns question, answer match no format. Set spec.dataset.train[0].columns to the names "
        "of your columns, for example {prompt: question, completion: answer}."
    )


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        (texts("answer", "question"), "{prompt: question, completion: answer}"),
        (texts("label", "sentence"), "{prompt: sentence, completion: label}"),
        (texts("id", "Input", "Output"), "{prompt: Input, completion: Output}"),
        (texts("prompt", " completion"), '{prompt: prompt, completion: " completion"}'),
        (texts("instruction", "context", "response"), "{instruction: instruction, input: context, output: response}"),
        (texts("context", "question", "answer"), "{instruction: question, input: context, output: answer}"),
        ({"id": "x", "conversations": [{"from": "human", "value": "u"}]}, "{messages: conversations}"),
        ({"chat log": CHAT}, '{messages: "chat log"}'),
        ({"chat": json.dumps(CHAT), "id": "x"}, "{messages: chat}"),
        ({"conversations": CHAT, "system_prompt": "secret"}, "{messages: conversations, system: system_prompt}"),
        (
            {"contents": PARTS, "systemInstruction": {"parts": [{"text": "secret"}]}},
            "{messages: contents, system: systemInstruction}",
        ),
        (texts("input_text", "output_text"), "{prompt: input_text, completion: output_text}"),
        (texts("task_id", "prompt", "canonical_solution"), "{prompt: prompt, completion: canonical_solution}"),
        ({"question": "secret", "answer": 3}, "{prompt: question, completion: answer}"),
        (texts("inputs", "targets"), "{prompt: inputs, completion: targets}"),
        (
            texts("id", "system_prompt", "question", "response"),
            "{prompt: question, completion: response, system: system_prompt}",
        ),
        (
            texts("Question", "Complex_CoT", "Response"),
            "{prompt: Question, completion: Response, reasoning: Complex_CoT}",
        ),
        (
            texts("context", "question") | {"answers": {"text": ["secret"], "answer_start": [1]}},
            "{instruction: question, input: context, output: answers}",
        ),
    ],
)
def test_a_mapping_is_suggested_by_names_and_not_by_order(row: dict[str, Any], mapping: str) -> None:
    assert refusal(row).endswith(
        f"Set spec.dataset.train[0].columns to the names of your columns, for example {mapping}."
    )


@pytest.mark.parametrize(
    "row",
    [
        {"frage": "secret", "antwort": "secret"},
        {"question": "secret", "answer": None},
        {"sentence1": "secret", "sentence2": "secret", "label": "A"},
        {"first": CHAT, "second": CHAT},
        {},
    ],
)
def test_where_no_mapping_is_likely_none_is_suggested(row: dict[str, Any]) -> None:
    said = (
        "Set spec.dataset.train[0].columns.prompt to the column with the question, and "
        "spec.dataset.train[0].columns.completion to the column with its answer."
    )
    assert refusal(row).endswith(f" match no format. {said}")


def test_columns_with_objects_are_named_because_no_mapping_can_use_them() -> None:
    row = {"id": 1, "data": {"text": "secret"}, "annotations": [{"result": "secret"}], "meta": {}}
    assert refusal(row).endswith(
        "with its answer. First move the values inside the objects (data, annotations) into separate columns."
    )


@pytest.mark.parametrize(
    ("row", "way"),
    [
        ({"question": "secret", "answer": ["secret"]}, "First write the lists (answer) as text."),
        ({"tokens": ["secret"], "ner_tags": [3]}, "First write the lists (tokens, ner_tags) as text."),
        (
            {"translation": texts("de", "en")},
            "First move the values inside the objects (translation) into separate col",
        ),
        (
            {"a": {"b": 1}, "c": [1]},
            "First move the values inside the objects (a) into separate columns, and write the",
        ),
    ],
)
def test_objects_and_lists_that_no_mapping_reaches_are_named(row: dict[str, Any], way: str) -> None:
    assert f"with its answer. {way}" in refusal(row)


SEGMENTS = [{"label": False, "text": "secret"}, {"label": True, "text": "secret"}]
SPOKEN = "\n\nHuman: secret\n\nAssistant: secret"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"segments": SEGMENTS}, "segments is a list of segments, as in Axolotl's template-free format: its texts alr"),
        ({"data": ["secret", "secret"]}, "data is a list of texts without roles. Write each text as a message: "),
        ({"conversations": ["secret"], "source": "x"}, "conversations is a list of texts without roles. Write each"),
        (
            {"dialog": [texts("speaker", "text")]},
            "dialog seems to be a conversation, but its messages do not have role",
        ),
        (
            {"turns": [texts("human", "assistant")]},
            "turns seems to be a conversation, but its messages do not have role",
        ),
        ({"talk": [texts("role", "value")]}, "talk seems to be a conversation, but its messages do not have role and"),
        ({"chat": SPOKEN, "system": "secret"}, "chat is a conversation in one text. Write its turns as messages: "),
        ({"role": "user", "content": "secret"}, "Each row is one message of a conversation. Write all messages of a c"),
        (
            {"question": "secret", "choices": ["secret"], "answer": "A"},
            "choices contains the options of a question. Write the question and its options as one text into a column",
        ),
        ({"ctx": "secret", "endings": ["secret"], "label": "1"}, "endings contains the options of a question. Write"),
    ],
)
def test_a_shape_that_no_format_reads_is_named_with_how_to_write_it(row: dict[str, Any], said: str) -> None:
    message = refusal(row)
    assert f" match no format. {said}" in message
    assert "secret" not in message


def test_messages_in_rows_of_their_own_are_no_texts() -> None:
    message = refusal({"message_id": "x", "role": "prompter", "text": "secret"})
    assert "Set spec.dataset.train[0].format to Text" in message
    assert "Each row is one message of a conversation. Write all messages of a conversation into one row: " in message


@pytest.mark.parametrize(
    ("row", "way"),
    [
        (
            texts("prompt", "chosen", "rejected"),
            "set spec.dataset.train[0].columns to {prompt: prompt, completion: chosen}",
        ),
        ({"chosen": CHAT, "rejected": CHAT}, "set spec.dataset.train[0].columns to {messages: chosen}"),
        (
            {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": CHAT[1:]},
            "set spec.dataset.train[0].columns to {prompt: prompt, completion: chosen}",
        ),
        (
            {"prompt": "secret", "chosen": CHAT, "rejected": CHAT},
            "set spec.dataset.train[0].columns to {messages: chosen}",
        ),
        ({"chosen": CHAT[1:], "rejected": CHAT[1:]}, "provide rows with a prompt and its answer"),
        (texts("chosen", "rejected"), "provide rows with a prompt and its answer"),
    ],
)
def test_preference_pairs_are_refused_with_a_mapping_to_the_chosen_answers(row: dict[str, Any], way: str) -> None:
    said = (
        "match no format. Training on pairs of a chosen and a rejected answer is not supported. To train on the chosen "
        "answers, "
    )
    assert refusal(row).endswith(f"{said}{way}.")


@pytest.mark.parametrize(
    "names",
    [
        ("Question number 0: which city lies at the lake?", "The city called C0."),
        ("What is the password of user 0?",),
        ("how do I read my meter", "by night"),
        ("天安门在哪里\uff1f", "北京"),
        tuple(f"column-{n}" + "x" * 1000 for n in range(100)),
    ],
)
def test_names_that_read_like_data_are_not_shown_and_a_header_is_missed(names: tuple[str, ...]) -> None:
    columns = f"{len(names)} column{'s' * (len(names) > 1)}"
    assert refusal(texts(*names)) == (
        f"t.jsonl line 1: the names of its {columns} look like data, so the header line seems to be missing. Write the "
        "names of the columns into the first line of a .csv file, or as the keys of each object."
    )
    assert column_names(names) == f"{len(names)}, not shown because the names look like data"


@pytest.mark.parametrize(
    ("row", "beside", "mapping"),
    [
        (texts("text", "label"), "label", "{prompt: text, completion: label}"),
        (texts("text", "code"), "code", "{prompt: text, completion: code}"),
        (texts("text", "Summary"), "Summary", "{prompt: text, completion: Summary}"),
        (texts("text", "question", "answer"), "answer", "{instruction: question, input: text, output: answer}"),
        ({"text": "secret", "label": 1}, "label", "{prompt: text, completion: label}"),
        ({"text": "secret", "label": None}, "label", None),
        (texts("text", "role"), "role", None),
        (texts("text", "system"), "system", None),
    ],
)
def test_a_text_column_next_to_a_possible_answer_is_refused(
    row: dict[str, Any], beside: str, mapping: str | None
) -> None:
    way = f", or set spec.dataset.train[0].columns, for example {mapping}, to train on an answer" if mapping else ""
    assert refusal(row) == (
        f"t.jsonl line 1: the row has the column text and also {beside}, so it is not clear which text to train on. "
        f"Set spec.dataset.train[0].format to Text to train on the whole column text and nothing else{way}."
    )
    mapped = Source.model_validate({"uri": "t.jsonl", "columns": {"text": "text"}})
    assert detect_format(row, mapped, "", "") is RowFormat.TEXT


@pytest.mark.parametrize(
    ("row", "columns", "name", "format"),
    [
        (texts("text", "sys"), {"text": "text", "system": "sys"}, "system", "Text"),
        ({"messages": CHAT, "cot": "secret"}, {"reasoning": "cot"}, "reasoning", "Messages"),
    ],
)
def test_a_column_that_the_format_has_none_for_cannot_be_mapped(
    row: dict[str, Any], columns: dict[str, str], name: str, format: str
) -> None:
    source = Source.model_validate({"uri": "t.jsonl", "columns": columns})
    with pytest.raises(TrainerFailure) as caught:
        detect_format(row, source, "spec.dataset.train[0]", "t.jsonl line 1")
    assert caught.value.reason is FailureReason.SPEC_INVALID
    said = f"spec.dataset.train[0].columns maps {name}, which the format {format} does not use. Remove {name}."
    assert caught.value.message == said


names = st.sampled_from(
    ["role", "from", "text", "content", "label", "parts", "choices", "segments", "data", "chosen", "rejected"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just("user") | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@given(row=st.dictionaries(names, values, max_size=4))
def test_whatever_the_columns_are_there_is_a_format_or_a_sentence(row: dict[str, Any]) -> None:
    with suppress(TrainerFailure):
        assert detect_format(row, Source.model_validate({"uri": "t.jsonl"}), "dataset.train[0]", "t.jsonl line 1")


@given(st.text())
def test_any_name_can_be_written_as_yaml_and_read_back(name: str) -> None:
    shown = quoted(name + "\udcf6")
    assert json.loads(shown) == name + "\udcf6"
    for found in (shown, quoted(name), column_names([name, "\ud800"])):
        assert found.encode().decode() == found
        assert found.isprintable()


@pytest.mark.parametrize("name", ["yes", "Null", "12", "a: b", "# a", " a", "a ", "", "-", "a.b", "&a", "1e3"])
def test_a_name_that_yaml_would_change_is_quoted(name: str) -> None:
    assert quoted(name) == f'"{name}"'


def test_many_columns_are_counted() -> None:
    assert column_names([f"c{n}" for n in range(20)]).endswith("c10, c11 and 8 more")
