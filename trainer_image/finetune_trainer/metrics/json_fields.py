"""Compares JSON answers field by field."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

Path = tuple[str | int, ...]
"""The path of a value: keys of objects and positions in arrays."""
SHOWN = 100
"""Maximum number of fields in the result. An answer can have any number of fields."""


def parse(text: str) -> dict[str, Any] | list[Any] | None:
    """Parses the whole of `text` as a JSON object or array by RFC 8259 (no NaN). Returns None if that fails. The text
    is not repaired and code fences are not removed, because a program that reads the answer would fail as well."""
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | list) else None


def fields(value: Any) -> dict[Path, Any]:
    """Returns every value without inner values, by its path. An empty object or array counts as such a value."""
    found: dict[Path, Any] = {}
    nodes: list[tuple[Path, Any]] = [((), value)]
    for path, node in nodes:  # the loop appends to this list
        children = dict(enumerate(node)) if isinstance(node, list) else node if isinstance(node, dict) else {}
        if children:
            nodes += [((*path, key), child) for key, child in children.items()]
        else:
            found[path] = node
    return found


def valid_json(answer: str, expected: str) -> tuple[int, int]:
    """Returns (1, 1) if the answer is JSON and (0, 1) if not. Returns (0, 0) if `expected` is not JSON."""
    wanted = parse(expected) is not None
    return int(wanted and parse(answer) is not None), int(wanted)


def field_match(answer: str, expected: str) -> tuple[int, int]:
    """Returns the number of fields with the expected value, and the number of fields that are expected or given. An
    invented field costs as much as a missing field. Returns (0, 0) if `expected` is not JSON."""
    right = parse(expected)
    if right is None:
        return 0, 0
    written = parse(answer)
    wanted, given = fields(right), fields(written) if written is not None else {}
    matching = sum(path in given and same(given[path], value) for path, value in wanted.items())
    # The root counts as a field only if there is no other field, because an empty answer invents nothing.
    return matching, max(1, len((wanted.keys() | given.keys()) - {()}))


def same(first: Any, second: Any) -> bool:
    """Returns whether two JSON values are equal: 1 and 1.0 are equal, 1 and true are not."""
    return isinstance(first, bool) == isinstance(second, bool) and bool(first == second)


@dataclass(frozen=True)
class FieldCount:
    """One field, counted over all rows. All positions of an array count as one field."""

    path: str
    expected: int
    """How often the expected answers contain the field."""
    right: int
    """How often the answer has the expected value in this field."""


def field_counts(answers: Iterable[tuple[str, str]]) -> list[FieldCount]:
    """Counts the fields of the expected answers, the most frequent first. `answers`: pairs (answer, expected)."""
    expected: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for answer, wanted in answers:
        given = fields(parse(answer))
        for path, value in fields(parse(wanted)).items():
            name = shown_path(path)
            expected[name] += 1
            right[name] += path in given and same(given[path], value)
    return [FieldCount(name, count, right[name]) for name, count in expected.most_common(SHOWN) if name]


def shown_path(path: Path) -> str:
    """Returns a path in readable form, for example items[].name."""
    return "".join("[]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
