"""Reads a list of messages from the different ways in which files store it."""

import ast
import json
import re
import warnings
from typing import Any

from finetune_trainer.sources.row_keys import is_turn

_PYTHON = re.compile(r"\s*\[\s*\{\s*'")
"""The beginning of a list of dictionaries in Python's syntax."""


def list_of(value: Any) -> Any:
    """Returns the list that a value stores as text (JSON or Python syntax) or as an object of lists of equal length,
    which some libraries write for a list of objects. Returns any other value unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        return _parsed(value)
    if isinstance(value, dict) and is_turn(value) and all(isinstance(part, list) for part in value.values()):
        lengths = {len(part) for part in value.values()}
        if len(lengths) == 1:
            return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    return value


def is_chat(value: Any) -> bool:
    """Returns whether `list_of` reads a value as a list of messages."""
    found = list_of(value)
    return isinstance(found, list) and bool(found) and is_turn(found[0])


def is_instruction(value: Any) -> bool:
    """Returns whether a value is a system prompt: a text, or an object or a list with the parts of one."""
    return isinstance(value, str) or isinstance(parts_of(value), str | list)


def parts_of(value: Any) -> Any:
    """Returns the parts of a system prompt that is stored as an object with parts (Gemini) or content, or as a list of
    objects (Bedrock, Anthropic). Returns None for any other value."""
    if isinstance(value, dict):
        value = value.get("parts") or value.get("content")
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and not (value and all(isinstance(part, dict) for part in value)):
        return None
    return value if isinstance(value, str | list) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if not _PYTHON.match(text):
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of a backslash in a text
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text
