"""Recognises shapes of rows that no format reads, and says how to write them so that a format reads them.

The texts show names of columns and known keys only, never the content of a row."""

import re
from collections.abc import Callable, Container, Iterable
from typing import Any

from finetune_trainer.sources.findings import name_shown
from finetune_trainer.sources.row_keys import CHOICES, ROLES, SPEAKERS, is_turn, plain
from finetune_trainer.sources.turn_lists import is_chat

MESSAGES = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
TALKS = frozenset(
    ("messages", "conversation", "conversations", "dialog", "dialogs", "dialogue", "chat", "turns", "data")
)
"""Columns whose list of texts is a conversation."""
SEVERAL, NAMED = 2, 12
"""Fewest turns of a conversation that is one text; most columns that a message names."""

_SPOKEN = re.compile(
    r"^\s*(?:\[?\|?(?:Human|User|Assistant|System|Bot|AI|Q|A)\|?\]?:|<\|(?:im_start|user|assistant|system)\|>)",
    re.IGNORECASE | re.MULTILINE,
)
"""The beginning of a turn in a conversation that is one text."""


def way_to_write(row: dict[str, Any], field: str) -> str | None:
    """Returns what the row contains and how to write it, as one or two sentences, or None for an unknown shape.
    `field`: the field of the source in the spec, dataset.train[0]."""
    if is_single_message(row):
        return (
            f"Each row is one message of a conversation. Write all messages of a conversation into one row: {MESSAGES}."
        )
    if segments := _first(row, _is_segments):
        return (
            f"{segments} is a list of segments, as in Axolotl's template-free format: its texts already contain a "
            f"prompt format. Write the texts without these marks as {MESSAGES}, with train: false in each answer whose "
            f"label is false. To train on every token, join the texts of a row in one column and set "
            f"{field}.columns.text to it."
        )
    if talk := _first(row, _is_foreign_talk):
        return (
            f"{talk} seems to be a conversation, but its messages do not have role and content. Write each "
            f"message with both: {MESSAGES}."
        )
    if texts := _first(row, _is_texts, TALKS):
        return f"{texts} is a list of texts without roles. Write each text as a message: {MESSAGES}."
    if options := next((name for name in row if plain(name) in CHOICES), None):
        return (
            f"{name_shown(options)} contains the options of a question. Write the question and its options as one text "
            f"into a column prompt, and the text or the letter of the right option into a column completion."
        )
    if spoken := _first(row, _is_spoken):
        return f"{spoken} is a conversation in one text. Write its turns as messages: {MESSAGES}."
    return None


def is_single_message(row: dict[str, Any]) -> bool:
    """Returns whether a row is one message: a text with the role of its speaker."""
    roles = (value for name, value in row.items() if plain(name) in SPEAKERS)
    return any(isinstance(role, str) and plain(role) in ROLES for role in roles)


def to_flatten(row: dict[str, Any]) -> str:
    """Returns a sentence, with a space before it, that names the columns whose objects and lists no mapping reaches, or
    "" if there are none."""
    objects = [name for name, value in row.items() if (isinstance(value, dict) and value) or _is_objects(value)]
    objects = [name for name in objects if not is_chat(row[name])]
    lists = [name for name, value in row.items() if _is_list(value)]
    said = []
    if objects:
        said.append(f"move the values inside the objects ({_shown(objects)}) into separate columns")
    if lists:
        said.append(f"write the lists ({_shown(lists)}) as text")
    return f" First {', and '.join(said)}." if said else ""


def _first(row: dict[str, Any], fits: Callable[[Any], bool], names: Container[str] | None = None) -> str | None:
    """Returns the first column with a fitting value, as messages show it. `names`: the only columns that are tried."""
    found = (name for name, value in row.items() if (names is None or plain(name) in names) and fits(value))
    return next(map(name_shown, found), None)


def _is_segments(value: Any) -> bool:
    return _is_objects(value) and value[0].keys() >= {"label", "text"} and isinstance(value[0]["label"], bool)


def _is_foreign_talk(value: Any) -> bool:
    if not _is_objects(value) or is_turn(value[0]):
        return False
    return any(key in SPEAKERS or key in ROLES for key in map(plain, value[0]))


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _is_spoken(value: Any) -> bool:
    return isinstance(value, str) and len(_SPOKEN.findall(value)) >= SEVERAL


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and not isinstance(value[0], dict)


def _shown(names: Iterable[str]) -> str:
    names = list(map(name_shown, names))
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
