"""Answers that are JSON, field by field."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

Path = tuple[str | int, ...]
"""Where a value stands: names of objects, positions in arrays."""
SHOWN = 100
"""Fields that are told apart; an answer can hold any number."""


def parse(text: str) -> dict[str, Any] | list[Any] | None:
    """The JSON object or array that `text` is as a whole, by RFC 8259 (no NaN); None where it is none. Nothing is
    repaired and no code fence taken off: a program that reads the answer would stumble as well."""
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | list) else None


def fields(value: Any) -> dict[Path, Any]:
    """Every value that holds no other, by its path. An empty object or array is such a value."""
    found: dict[Path, Any] = {}
    nodes: list[tuple[Path, Any]] = [((), value)]
    for path, node in nodes:  # which grows on the way
        children = dict(enumerate(node)) if isinstance(node, list) else node if isinstance(node, dict) else {}
        if children:
            nodes += [((*path, key), child) for key, child in children.items()]
        else:
            found[path] = node
    return found


def valid_json(answer: str, expected: str) -> tuple[int, int]:
    """Whether the answer is JSON; (0, 0) where `expected` is none."""
    wanted = parse(expected) is not None
    return int(wanted and parse(answer) is not None), int(wanted)


def field_match(answer: str, expected: str) -> tuple[int, int]:
    """Fields with the expected value, and all fields that are expected or given: what is made up costs as much as what
    is missing. (0, 0) where `expected` is no JSON."""
    right = parse(expected)
    if right is None:
        return 0, 0
    written = parse(answer)
    wanted, given = fields(right), fields(written) if written is not None else {}
    matching = sum(path in given and same(given[path], value) for path, value in wanted.items())
    # The root is a field only where there is no other: an empty answer made nothing up.
    return matching, max(1, len((wanted.keys() | given.keys()) - {()}))


def same(first: Any, second: Any) -> bool:
    """Whether two values are equal in JSON: 1 and 1.0 are, 1 and true are not."""
    return isinstance(first, bool) == isinstance(second, bool) and bool(first == second)


@dataclass(frozen=True)
class FieldCount:
    """One field over all rows. Positions in arrays are not told apart."""

    path: str
    expected: int
    """How often the expected answers have it."""
    right: int
    """How often the answer had the same value in its place."""


def field_counts(answers: Iterable[tuple[str, str]]) -> list[FieldCount]:
    """The fields of the expected answers, the most frequent first, from pairs (answer, expected)."""
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
    """A path as people write it: items[].name."""
    return "".join("[]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
