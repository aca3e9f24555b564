"""One turn of a conversation, by the keys and roles of every toolkit: who speaks, what, and whether it is learned."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.rows.readings import Noted, Reading
from finetune_trainer.rows.row_format import Message
from finetune_trainer.rows.turns import turn_of
from finetune_trainer.sources.findings import InvalidRow
from finetune_trainer.sources.row_keys import LEARN, LEARN_UNCLEAR, ROLES, TOOL_ROLES


def turn(**keys: Any) -> Message | None:
    return turn_of(keys, 1, Noted())


def fault(value: Any) -> str:
    with pytest.raises(InvalidRow) as caught:
        turn_of(value, 2, Noted())
    return f"{caught.value.kind} ({caught.value.detail})"


@pytest.mark.parametrize("role", ["Human", "USER", " prompter "])
def test_a_user_is_known_by_other_names(role: str) -> None:
    assert turn(role=role, content="q") == Message("user", "q")


@pytest.mark.parametrize("role", ["gpt", "Assistant", "AI", "bot", "MODEL", "chatgpt"])
def test_an_assistant_is_known_by_other_names(role: str) -> None:
    assert turn(**{"from": role, "value": "a"}) == Message("assistant", "a")


@pytest.mark.parametrize("role", ["developer", "System"])
def test_a_system_message_is_known_by_other_names(role: str) -> None:
    assert turn(role=role, content="s") == Message("system", "s")


@pytest.mark.parametrize("content", ["", " \n", None])
def test_an_empty_system_message_says_that_there_is_no_system_prompt(content: str | None) -> None:
    assert turn(role="system", content=content) is None


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_an_empty_turn_of_another_is_a_fault(role: str) -> None:
    assert (
        fault({"role": role, "content": ""}) == "a message has content that is not valid: content is empty (message 2)"
    )


@pytest.mark.parametrize("role", ["tool", "Function", "function_call", "observation", "ipython", "tool-response"])
def test_a_tool_is_named(role: str) -> None:
    assert fault({"role": role, "content": "x"}) == (
        "a message is from a tool, and tool calls are not supported: write each call into an answer and its result "
        f"into the next user message, as text, or remove the row (message 2 is from {role})"
    )


@pytest.mark.parametrize(
    ("role", "shown"),
    [("narrator", " is from narrator"), ("I went to the shop, and then home.", ""), ("a\nb", ""), (3, ""), (None, "")],
)
def test_an_unknown_role_is_named_unless_it_reads_like_content(role: Any, shown: str) -> None:
    said = f"a message's role is not system, user or assistant (message 2{shown})"
    assert fault({"role": role, "content": "x"}) == said


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "Look "}, {"type": "text", "text": "here."}],
        [{"type": "input_text", "text": "Look here."}],
        [{"text": "Look here."}],
        [{"type": "text", "text": "Look here.", "image_url": None}],
        ["Look ", "here."],
        {"type": "text", "text": "Look here."},
    ],
)
def test_parts_of_text_are_read_as_their_text(content: Any) -> None:
    assert turn(role="user", content=content) == Message("user", "Look here.")


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video", "tool_use", "file", "refusal"])
def test_a_part_of_another_type_is_named(kind: str) -> None:
    content = [{"type": "text", "text": "Look"}, {"type": kind, kind: "x"}]
    assert fault({"role": "user", "content": content}) == (
        "a message has content that is not valid: content has a part that is not text, and this operator trains only "
        f"on text (message 2, type {kind})"
    )


@pytest.mark.parametrize(
    "parts",
    [[{"text": "Look "}, {"text": "here."}], [{"text": "Look here.", "inlineData": None}], {"text": "Look here."}],
)
def test_parts_as_gemini_writes_them_are_read_as_their_text(parts: Any) -> None:
    assert turn(role="user", parts=parts) == Message("user", "Look here.")
    assert turn(role="model", parts=parts) == Message("assistant", "Look here.")
    assert turn(role="user", content=None, parts=parts) == Message("user", "Look here.")
    assert turn(role="user", content="Look here.", parts=[{"type": "step-start"}]) == Message("user", "Look here.")


@pytest.mark.parametrize("key", ["inlineData", "file_data", "functionCall", "functionResponse", "executableCode"])
@pytest.mark.parametrize("text", [{}, {"text": "x"}])
def test_a_part_of_gemini_that_is_not_text_is_named(key: str, text: dict[str, str]) -> None:
    said = fault({"role": "model", "parts": [{"text": "Look"}, text | {key: {"name": "f"}}]})
    assert said.endswith(
        f"content has a part that is not text, and this operator trains only on text (message 2, type {key})"
    )


@pytest.mark.parametrize("part", [{"text": "so", "thought": True}, {"type": "thinking", "thinking": "so"}])
def test_a_part_that_is_a_thought_is_the_thought_of_the_answer(part: dict[str, Any]) -> None:
    thought = Message("assistant", "<think>\nso\n</think>\n\na")
    assert turn(role="assistant", content=[part, {"type": "text", "text": "a"}]) == thought
    assert turn(role="assistant", content=[part, {"type": "text", "text": "a"}], reasoning="so") == thought
    said = fault({"role": "assistant", "content": [part]})
    assert said == "a message has content that is not valid: content is empty (message 2)"


@pytest.mark.parametrize("key", ["content", "parts"])
def test_a_message_without_parts_is_empty(key: str) -> None:
    assert turn(role="system", **{key: []}) is None
    assert fault({"role": "user", key: []}).startswith("a message has content that is not valid: content is empty")


@pytest.mark.parametrize("key", sorted(LEARN))
@pytest.mark.parametrize(
    ("flag", "learned"),
    [(True, True), (1, True), (1.0, True), (None, True), (False, False), (0, False), ("false", False)],
)
def test_a_flag_says_whether_an_answer_is_learned(key: str, flag: Any, learned: bool) -> None:
    noted = Noted()
    found = turn_of({"role": "assistant", "content": "a", key: flag}, 1, noted)
    assert found == Message("assistant", "a", learned)
    assert noted == ({} if learned else {(Reading.NOT_LEARNED, key): 1})


@pytest.mark.parametrize("flag", [0.5, 2, -1, "some", [], {}, float("nan")])
def test_a_flag_between_is_refused_by_name(flag: Any) -> None:
    assert fault({"role": "assistant", "content": "a", "weight": flag}) == (
        "a message has a weight that is neither 0 nor 1: write 1 to train on the answer, or 0 to exclude it (message 2)"
    )


@pytest.mark.parametrize("key", sorted(LEARN_UNCLEAR))
def test_a_flag_that_toolkits_read_differently_is_refused_by_name(key: str) -> None:
    said = fault({"role": "assistant", "content": "a", key: True})
    assert said.startswith(f"a message has {key}, which has different meanings in different toolkits: write train")
    assert turn(role="user", content="q", **{key: True}) == Message("user", "q")


def test_flags_that_differ_are_refused() -> None:
    said = fault({"role": "assistant", "content": "a", "weight": 1, "Train": False})
    assert said == "a message's weight and Train contradict each other (message 2)"


@pytest.mark.parametrize("role", ["user", "system"])
def test_only_answers_are_learned_and_a_flag_that_asks_for_more_is_noted(role: str) -> None:
    noted = Noted()
    assert turn_of({"role": role, "content": "q", "weight": 0}, 1, noted) == Message(role, "q")
    assert not noted
    assert turn_of({"role": role, "content": "q", "weight": 1}, 1, noted) == Message(role, "q")
    assert noted == {(Reading.ASKED_TO_LEARN, "weight"): 1}


def test_a_key_with_text_that_nothing_reads_is_noted_but_none_of_ids_and_the_like() -> None:
    noted = Noted()
    keys = {"critique": "this answer is quite wrong", "name": "Dr of the old school", "score": 3, "note": "too short"}
    turn_of({"role": "assistant", "content": "a", **keys}, 1, noted)
    assert noted == {(Reading.UNREAD_KEY, "critique"): 1}


names = st.sampled_from(
    [
        "role",
        "content",
        "parts",
        "from",
        "value",
        "weight",
        "train",
        "mask",
        "tool_calls",
        "thinking",
        "thought",
        "type",
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
roles = st.sampled_from([*ROLES, *TOOL_ROLES, "x"])
values = st.recursive(
    scalars | roles | st.just("text"),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(names | st.just("text"), children, max_size=4),
    max_leaves=8,
)


@given(value=st.dictionaries(names, values | roles, max_size=5) | values)
def test_whatever_a_turn_is_it_ends_in_a_message_or_a_named_fault(value: Any) -> None:
    with suppress(InvalidRow):
        message = turn_of(value, 1, Noted())
        assert message is None or (message.role in ("system", "user", "assistant") and message.content.strip())
