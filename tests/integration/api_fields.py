"""What a spec can say: every field and every word of a choice, and which of them a spec says."""

import types
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


def everything(model: type[BaseModel]) -> set[str]:
    """CLASS.FIELD for every field below `model` that can be left out, and CLASS=WORD for every word of every enum."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        if not field.is_required():
            found.add(f"{model.__name__}.{name}")
        for kind in _kinds(field.annotation):
            if issubclass(kind, BaseModel):
                found |= everything(kind)
            elif issubclass(kind, StrEnum):
                found |= {f"{kind.__name__}={word}" for word in kind}
    return found


def said(value: Any) -> set[str]:
    """The same of what an instance says: fields set to something else than their default, and every word in force."""
    found: set[str] = set()
    if isinstance(value, StrEnum):
        found.add(f"{type(value).__name__}={value}")
    elif isinstance(value, list):
        found |= {word for item in value for word in said(item)}
    elif isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            own = getattr(value, name)
            if own != field.get_default(call_default_factory=True):
                found.add(f"{type(value).__name__}.{name}")
            found |= said(own)
    return found


def paths(model: type[BaseModel], within: str = "") -> set[str]:
    """The path of every field below `model` that holds a value and no other fields, as `kubectl explain` takes it."""
    found: set[str] = set()
    for field in model.model_fields.values():
        path = f"{within}{field.alias}"
        parts = [kind for kind in _kinds(field.annotation) if issubclass(kind, BaseModel)]
        found |= {inner for part in parts for inner in paths(part, f"{path}.")} or {path}
    return found


def set_paths(value: Any, within: str = "") -> set[str]:
    """Those of an instance: of the fields that are set to something else than their default."""
    found: set[str] = set()
    if isinstance(value, list):
        found |= {path for item in value for path in set_paths(item, within)}
    elif isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            own, path = getattr(value, name), f"{within}{field.alias}"
            if own != field.get_default(call_default_factory=True):
                found |= set_paths(own, f"{path}.") or {path}
    return found


def _kinds(annotation: Any) -> Iterator[type]:
    """The classes an annotation is made of."""
    if get_origin(annotation) in (Annotated, Union, types.UnionType, list):
        for argument in get_args(annotation):
            yield from _kinds(argument)
    elif isinstance(annotation, type):
        yield annotation
