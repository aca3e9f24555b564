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
    SYSTEM,
    TOOL_ROLES,
    TURN_KEYS,
    is_metadata,
    plain,
)
from finetune_trainer.sources.turn_lists import parts_of

KNOWN = "system, user or assistant"
AS_TEXT = "write each call into an answer and its result into the next user message, as text, or remove the row"
LEARNED = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
"""Whether a message is trained, by the value of its flag. In Python, 1 and 0 equal True and False."""
TEXT_PARTS = (None, "text", "input_text", "output_text")
"""Types of content parts that are text."""
OTHER_PARTS = frozenset(
    ("inlinedata", "inline_data", "filedata", "file_data", "functioncall", "function_call", "functionresponse")
) | {"function_response", "executablecode", "executable_code", "codeexecutionresult", "code_execution_result"}
"""Keys of Gemini's parts that are not text."""
WORDS = 4
"""Number of words from which a text is more than an id or the name of a class."""
_FLAGS = LEARN | LEARN_UNCLEAR
_READ = _FLAGS | frozenset(("role", "content", "parts", "from", "value", *REASONINGS, *CALLS))


def turn_of(turn: Any, number: int, noted: Noted) -> Message | None:
    """Returns the message, or None for an empty system message, which means that there is no system prompt. `number`
    counts from 1 and is used in error messages. Raises InvalidRow."""
    if not isinstance(turn, dict):
        raise InvalidRow("a message is not an object", f"message {number} is {kind_of(turn)}")
    if any(turn.get(name) for name in CALLS):
        raise InvalidRow(f"tool calls are not supported: {AS_TEXT}", f"message {number}")
    speaker, key = _keys(turn, number)
    role = _role(turn[speaker], number)
    try:
        said = [turn[key]] if key == "parts" and isinstance(turn[key], dict) else turn[key]
        said, thoughts = _thoughts_apart(said) if role == ASSISTANT else (said, "")
        content = text_of({"content": _content(said, noted)}, "content", required=role != SYSTEM)
        thought = _thought(turn) or thoughts if role == ASSISTANT and not thinks(content) else ""
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
    pairs = [(who, what) for who, what in TURN_KEYS if who in turn and what in turn]
    if pairs:
        return next((pair for pair in pairs if turn[pair[1]] not in (None, "", [])), pairs[0])
    found = f"message {number}, keys found: {column_names(turn)}"
    if not any(speaker in turn for speaker, _ in TURN_KEYS):
        raise InvalidRow("a message has no role", found)
    what = "mixes keys of two kinds" if any(key in turn for _, key in TURN_KEYS) else "has no content"
    raise InvalidRow(f"a message {what}: it must have role and content, or from and value", found)


def _role(name: Any, number: int) -> str:
    if isinstance(name, str) and (role := ROLES.get(plain(name))):
        return role
    shown = f" is from {name}" if isinstance(name, str) and name and is_name(name) and name.isprintable() else ""
    if isinstance(name, str) and plain(name) in TOOL_ROLES:
        kind = f"a message is from a tool, and tool calls are not supported: {AS_TEXT}"
        raise InvalidRow(kind, f"message {number}{shown}")
    raise InvalidRow(f"a message's role is not {KNOWN}", f"message {number}{shown}")


def _content(value: Any, noted: Noted) -> Any:
    """Returns the content as text. The texts of several parts are joined."""
    if isinstance(value, dict) and value.keys() >= {"type", "text"}:
        value = [value]
    if isinstance(value, list):
        return "".join(map(_part, value))
    return as_text(value, "content", noted)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise InvalidRow(f"content is a list that contains {kind_of(part)}; it must contain only parts of type text")
    kind = part.get("type")
    others = [key for key, value in part.items() if plain(key) in OTHER_PARTS and value is not None]
    if kind not in TEXT_PARTS or others or not isinstance(part.get("text"), str):
        kind = next(iter(others), kind)
        shown = kind if isinstance(kind, str) and is_name(kind) and kind.isprintable() else "another type"
        raise InvalidRow("content has a part that is not text, and this operator trains only on text", f"type {shown}")
    text: str = part["text"]
    return text


def _thoughts_apart(content: Any) -> tuple[Any, str]:
    """Returns the content without the parts that are thoughts, and the text of these parts."""
    if not isinstance(content, list):
        return content, ""
    thoughts = [(part, _thought_part(part)) for part in content]
    return [part for part, thought in thoughts if thought is None], "".join(thought or "" for _, thought in thoughts)


def _thought_part(part: Any) -> str | None:
    """Returns the text of a part that is a thought, as Gemini and Anthropic write it, or None."""
    if not isinstance(part, dict):
        return None
    thought = part.get("text") if part.get("thought") is True else None
    if part.get("type") in ("thinking", "reasoning"):
        thought = part.get("thinking") or part.get("text")
    return thought if isinstance(thought, str) else None


def instruction_of(value: Any) -> Any:
    """Returns a system prompt as text if it is stored in parts, otherwise the value itself. Raises InvalidRow if a part
    is not text."""
    parts = parts_of(value)
    return value if parts is None else "".join(map(_part, parts)) if isinstance(parts, list) else parts


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
