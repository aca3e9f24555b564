"""Reads rows that are inside one JSON object: a list under a key, or a data frame."""

from typing import Any

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sources.findings import name_shown
from finetune_trainer.sources.row_keys import is_turn
from finetune_trainer.sources.turn_lists import is_chat

ARRAY = "A .json file must contain one array of objects. If it has one object per line, rename it to .jsonl."


def rows_within(value: dict[str, Any], uri: str) -> list[Any]:
    """Returns the rows in the only object of a .json file. They are the list of objects under a key ({"data": [...]}),
    or a data frame in any of pandas' orients except `values`. Raises TrainerFailure DatasetInvalid if there is neither,
    or if there are several lists."""
    lists = {key: found for key, found in value.items() if _is_rows(found)}
    if len(lists) > 1:
        keys = ", ".join(map(name_shown, lists))
        raise refusal(uri, f"contains several lists of rows ({keys})", "Write each list to a separate file.")
    if lists:
        return next(iter(lists.values()))
    if rows := _frame(value):
        return rows
    raise refusal(uri, "contains an object, not an array of objects")


def is_frame_of_columns(value: Any) -> bool:
    """Returns whether a value is a data frame in pandas' default orient, {"column": {"0": value}}."""
    parts = list(value.values()) if isinstance(value, dict) else []
    return bool(parts) and all(
        isinstance(part, dict) and part and part.keys() == parts[0].keys() and all(map(str.isdecimal, part))
        for part in parts
    )


def _is_rows(value: Any) -> bool:
    """Returns whether a value is a list of objects that are not the messages of one conversation."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and not is_turn(value[0])


def _frame(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Returns the rows of a data frame in any supported orient, or None if the value is not a data frame."""
    columns, data = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(data, list):  # orient="split"
        return [dict(zip(map(str, columns), row, strict=False)) for row in data if isinstance(row, list)]
    parts = list(value.values())
    if is_frame_of_columns(value):
        return [{name: part[key] for name, part in value.items()} for key in parts[0]]
    if parts and all(isinstance(part, dict) and part for part in parts):
        return parts if all(map(str.isdecimal, value)) else None  # orient="index"
    if len(parts) > 1 and all(isinstance(part, list) and len(part) == len(parts[0]) for part in parts):
        if any(is_chat(part) for part in parts):  # one row that is a conversation
            return None
        return [dict(zip(value, row, strict=True)) for row in zip(*parts, strict=True)]  # a dict of lists
    return None


def refusal(uri: str, what: str, remedy: str = ARRAY) -> TrainerFailure:
    """Returns the failure for a .json file without usable rows. `what`: the rest of the sentence that begins with the
    file."""
    return TrainerFailure(FailureReason.DATASET_INVALID, f"{uri} {what}.", remedy)
