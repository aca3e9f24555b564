"""Replaces class numbers in a Parquet file by their names, which Hugging Face's `datasets` writes into the metadata.

`datasets` stores a column of the feature type ClassLabel as integers. The names of the classes are in the schema's
metadata: {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

METADATA = b"huggingface"
"""The key of the schema's metadata under which `datasets` writes its features."""
HIDDEN = -1
"""The class number of a row without a label. Public test sets use it."""
Named = Callable[[Any], Any]
"""Returns a value with names in place of its class numbers."""


class ClassName(str):
    """The name of a class, in place of its number."""

    __slots__ = ()


@dataclass(frozen=True)
class NoClass:
    """A class number without a name."""

    number: int


def naming(metadata: Mapping[bytes, bytes] | None) -> dict[str, Named]:
    """Returns a function for each column with class numbers, also inside its lists and structs, by the column's name.
    `metadata`: the schema's metadata. Metadata that is not of the form that `datasets` writes is ignored."""
    try:
        features = json.loads((metadata or {})[METADATA])["info"]["features"]
        found = {name: _of(feature) for name, feature in features.items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {name: named for name, named in found.items() if named}


def _of(feature: Any) -> Named | None:
    """Returns the function for the values of a feature, or None if no part of it is a ClassLabel."""
    if isinstance(feature, list):  # [feature] is a list in the form of older versions
        return _in_list(_of(feature[0])) if feature else None
    if not isinstance(feature, dict):
        return None
    kind = feature.get("_type")
    if kind == "ClassLabel":
        return _class(feature.get("names"))
    if isinstance(kind, str) and "feature" in feature:  # List, LargeList, Sequence
        return _in_list(_of(feature["feature"]))
    if isinstance(kind, str):
        return None
    parts = {name: named for name, part in feature.items() if (named := _of(part))}
    return _in_struct(parts) if parts else None


def _class(names: Any) -> Named | None:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None

    def named(value: Any) -> Any:
        if isinstance(value, list):  # of a Sequence of structs
            return [named(item) for item in value]
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        return ClassName(names[value]) if 0 <= value < len(names) else NoClass(value)

    return named


def _in_list(named: Named | None) -> Named | None:
    """Returns the function for a list of values. A Sequence of structs is stored as one struct of lists, so any other
    value gets the function of a single one."""
    if not named:
        return None
    return lambda value: [named(item) for item in value] if isinstance(value, list) else named(value)


def _in_struct(parts: dict[str, Named]) -> Named:
    def named(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: parts[name](item) if name in parts else item for name, item in value.items()}

    return named
