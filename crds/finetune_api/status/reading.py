"""Reads a stored status, which another version may have written. What this version cannot read is left out."""

import copy
from typing import Any

from pydantic import ValidationError

from finetune_api.status.job import FineTuneJobStatus


def read_status(raw: dict[str, Any]) -> FineTuneJobStatus:
    """Return the status without the values that this version cannot read. Never raises a ValidationError.

    An unknown word or a wrong type is left out; an object without one of its required fields is left out as a whole;
    a text or a list that is too long is cut, a list at its beginning, because its last items are the newest."""
    try:
        return FineTuneJobStatus.model_validate(raw)
    except ValidationError as error:
        return _without(copy.deepcopy(raw), error)


def _without(status: dict[str, Any], error: ValidationError) -> FineTuneJobStatus:
    """Return the status without what the errors name. Leaving out one value can make another one unreadable."""
    while True:
        first = error.errors()[0]
        _mend(status, first["loc"], first["type"], first.get("ctx", {}))
        try:
            return FineTuneJobStatus.model_validate(status)
        except ValidationError as another:
            error = another


def _mend(status: dict[str, Any], place: tuple[str | int, ...], fault: str, about: dict[str, Any]) -> None:
    """Cut the value at this place, or remove it; if it is missing, remove the object that lacks it."""
    if (found := _find(status, place)) is None:
        status.clear()
        return
    holder, key = found
    most = about.get("max_length")
    if fault in ("too_long", "string_too_long") and most and isinstance(holder[key], list | str):
        holder[key] = holder[key][-most:] if isinstance(holder[key], list) else holder[key][:most]
    else:
        del holder[key]


def _find(status: dict[str, Any], place: tuple[str | int, ...]) -> tuple[Any, Any] | None:
    """Return the deepest object or list on the way to this place, and its key there; None if there is none.

    pydantic's places can go on below the value, for example with the name of a validator, or name a missing key."""
    holder: Any = status
    found: list[tuple[Any, Any]] = []
    for key in place:
        is_there = isinstance(key, int) and isinstance(holder, list) and key < len(holder)
        if not is_there and not (isinstance(holder, dict) and key in holder):
            break
        found.append((holder, key))
        holder = holder[key]
    return found[-1] if found else None
