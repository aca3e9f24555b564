"""A list of turns, in whatever way a file stores it."""

import ast
import json
import re
import warnings
from typing import Any

from finetune_trainer.sources.row_keys import is_turn

_PYTHON = re.compile(r"\s*\[\s*\{\s*'")
"""How Python prints a list of objects."""


def list_of(value: Any) -> Any:
    """A list as it is, also where it is written as text (JSON, or as Python prints it), or as an object of equally long
    lists, by which some libraries store a list of objects. Any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        return _parsed(value)
    if isinstance(value, dict) and is_turn(value) and all(isinstance(part, list) for part in value.values()):
        lengths = {len(part) for part in value.values()}
        if len(lengths) == 1:
            return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    return value


def is_chat(value: Any) -> bool:
    """Whether a value is a list of turns, as `list_of` reads it."""
    found = list_of(value)
    return isinstance(found, list) and bool(found) and is_turn(found[0])


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
