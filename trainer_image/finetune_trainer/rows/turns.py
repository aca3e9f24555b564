"""Reads one message of a conversation: its role, its content, and whether it is trained."""

from typing import Any

from finetune_trainer.rows.cells import as_text, text_of
from finetune_trainer.rows.readings import Noted, Reading
from finetune_trainer.rows.row_columns import column_names, is_name
from finetune_trainer.rows.row_format import Message, thinks, with_thought
from finetune_trainer.sources.findings import InvalidRow
from finetune_trainer.sources.records import kind_of
from finetune_trainer.sources.row_keys import (
    ASSISTANT,
    CALLS,
    LEARN,
    LEARN_UNCLEAR,
    REASONINGS,
    ROLES,
    SPEAKER,
    SYSTEM,
    TOOL_ROLES,
    is_metadata,
    plain,
)

KNOWN = "system, user or assistant"
LEARNED = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
"""Whether a message is trained, by the value of its flag. In Python, 1 and 0 equal True and False."""
TEXT_PARTS = (None, "text", "input_text", "output_text")
"""Types of content parts that are text."""
WORDS = 4
"""Number of words from which a text is more than an id or the name of a class."""
_FLAGS = LEARN | LEARN_UNCLEAR
_READ = _FLAGS | frozenset(("role", "content", "from", "value", *REASONINGS, *CALLS))


def turn_of(turn: Any, number: int, noted: Noted) -> Message | None:
    """Returns the message, or None for an empty system message, which means that there is no system prompt. `number`
    counts from 1 and is used in error messages. Raises InvalidRow."""
    if not isinstance(turn, dict):
        raise InvalidRow("a message is not an object", f"message {number} is {kind_of(turn)}")
    if any(turn.get(name) for name in CALLS):
        raise InvalidRow("tool calls are not supported", f"message {number}")
    speaker, key = _keys(turn, number)
    role = _role(turn[speaker], number)
    try:
        content = text_of({"content": _content(turn[key], noted)}, "content", required=role != SYSTEM)
        thought = _thought(turn) if role == ASSISTANT and not thinks(content) else ""
    except InvalidRow as problem:
        detail = f", {problem.detail}" if problem.detail else ""
        raise InvalidRow(
            f"a message has content that is not valid: {problem.kind}", f"message {number}{detail}"
        ) from problem
    if not content:
        return None
    learned = _learned(turn, role, number, noted)
    _note_unread(turn, noted)
    return Message(role, with_thought(thought, content), learned)


def _keys(turn: dict[str, Any], number: int) -> tuple[str, str]:
    """Returns the key of the role and the key of the content. Raises InvalidRow if one is missing."""
    speaker = next((key for key in SPEAKER if key in turn), None)
    if speaker is not None and SPEAKER[speaker] in turn:
        return speaker, SPEAKER[speaker]
    found = f"message {number}, keys found: {column_names(turn)}"
    if speaker is None:
        raise InvalidRow("a message has no role", found)
    what = "mixes keys of two kinds" if any(key in turn for key in SPEAKER.values()) else "has no content"
    raise InvalidRow(f"a message {what}: it must have role and content, or from and value", found)


def _role(name: Any, number: int) -> str:
    if isinstance(name, str) and (role := ROLES.get(plain(name))):
        return role
    shown = f" is from {name}" if isinstance(name, str) and name and is_name(name) and name.isprintable() else ""
    if isinstance(name, str) and plain(name) in TOOL_ROLES:
        raise InvalidRow("a message is from a tool, and tool calls are not supported", f"message {number}{shown}")
    raise InvalidRow(f"a message's role is not {KNOWN}", f"message {number}{shown}")


def _content(value: Any, noted: Noted) -> Any:
    """Returns the content as text. The texts of several parts are joined."""
    if isinstance(value, dict) and value.keys() >= {"type", "text"}:
        value = [value]
    if isinstance(value, list) and value:
        return "".join(map(_part, value))
    return as_text(value, "content", noted)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise InvalidRow(f"content is a list that contains {kind_of(part)}; it must contain only parts of type text")
    kind = part.get("type")
    if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
        shown = kind if isinstance(kind, str) and is_name(kind) and kind.isprintable() else "another type"
        raise InvalidRow("content has a part that is not text, and this operator trains only on text", f"type {shown}")
    text: str = part["text"]
    return text


def _learned(turn: dict[str, Any], role: str, number: int, noted: Noted) -> bool:
    """Returns whether the message is trained. An answer without a flag is trained."""
    flags: dict[str, bool] = {}
    for key, value in turn.items():
        name = plain(key)
        if value is None or name not in _FLAGS:
            continue
        flag = flag_of(value)
        if role == ASSISTANT and name in LEARN_UNCLEAR:
            raise InvalidRow(
                f"a message has {name}, which has different meanings in different toolkits: write train, true or "
                "false, instead",
                f"message {number}",
            )
        if role == ASSISTANT and flag is None:
            raise InvalidRow(
                f"a message has a {name} that is neither 0 nor 1: write 1 to train on the answer, or 0 to exclude it",
                f"message {number}",
            )
        if flag is not None and name in LEARN:
            flags[key] = flag
    if len(set(flags.values())) > 1 and role == ASSISTANT:
        raise InvalidRow(f"a message's {' and '.join(flags)} contradict each other", f"message {number}")
    for key, flag in list(flags.items())[:1]:
        if flag is (role != ASSISTANT):
            noted[Reading.ASKED_TO_LEARN if flag else Reading.NOT_LEARNED, key] += 1
    return role != ASSISTANT or all(flags.values())


def flag_of(value: Any) -> bool | None:
    """Returns the value of a flag, or None if it is not true, false, 1 or 0."""
    if isinstance(value, str):
        value = value.strip().lower()
    return LEARNED.get(value) if isinstance(value, bool | int | float | str) else None


def _thought(turn: dict[str, Any]) -> str:
    texts = (text_of(turn, name, required=False) for name in REASONINGS if name in turn)
    return next(filter(None, texts), "")


def _note_unread(turn: dict[str, Any], noted: Noted) -> None:
    for key, value in turn.items():
        if key not in _READ and isinstance(value, str) and len(value.split(None, WORDS - 1)) == WORDS:
            name = plain(key)
            if name not in _READ and not is_metadata(name) and is_name(key):
                noted[Reading.UNREAD_KEY, key] += 1
