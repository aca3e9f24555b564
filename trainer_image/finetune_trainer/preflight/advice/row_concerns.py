"""Advice on how the columns and turns of the rows were read: each message gives the number of rows and the remedy.

Pure functions over counts. `concerns` lists these functions."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_trainer.rows.readings import Reading, Readings

COLUMNS_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class RowFacts:
    """The numbers that this advice depends on."""

    readings: Readings = field(default_factory=Readings)
    text_rows: int = 0
    """Training rows of format Text."""
    own_tokens: Mapping[str, int] = field(default_factory=dict)
    """Text rows that contain a special token of the model, by the first such token of each row."""
    foreign_marks: Mapping[str, int] = field(default_factory=dict)
    """Text rows that contain a mark of another model's prompt format and no special token of this model, by the first
    such mark of each row."""


def not_learned(facts: RowFacts) -> str | None:
    """Advice on turns with a flag that says whether to train on the turn."""
    readings, said = facts.readings, []
    if rows := readings.rows_with(Reading.NOT_LEARNED):
        said.append(
            f"{_counted(readings.times(Reading.NOT_LEARNED), 'answer')} in {_counted(sum(rows.values()), 'row')} "
            f"are excluded from training by {_names(rows)}. The model reads these answers as context only. Turns after "
            "the last answer that is trained on are left out."
        )
    if rows := readings.rows_with(Reading.ASKED_TO_LEARN):
        said.append(
            f"{_counted(readings.times(Reading.ASKED_TO_LEARN), 'turn')} in {_counted(sum(rows.values()), 'row')} "
            f"are included in training by {_names(rows)}, but are not answers. Only answers are trained on. Set "
            "spec.training.lossOn to All to train on every token."
        )
    return " ".join(said) or None


def values_as_text(facts: RowFacts) -> str | None:
    """Advice on values that are not text but are used as text, and on numbers that may be class numbers."""
    readings = facts.readings
    said = [
        f"{name} contains {reading} in {_share(rows, readings)}. These values become text in JSON notation."
        for reading in (Reading.NUMBER, Reading.BOOLEAN, Reading.OBJECT)
        for name, rows in readings.rows_with(reading).items()
    ][:COLUMNS_NAMED]
    if said:
        said.append("For another notation, store the values as text.")
    digits = {name: rows for name, rows in readings.rows_with(Reading.DIGITS).items() if rows == readings.rows}
    said += [f"{name} contains {Reading.DIGITS} in all {rows:,} rows." for name, rows in digits.items()]
    if digits or readings.rows_with(Reading.NUMBER):
        said.append("If the numbers are class numbers, replace them with class names. A model learns names better.")
    said += [
        f"{name} contains {Reading.CLASS} in {_share(rows, readings)}. The names of the classes in the metadata of the "
        "file are used instead."
        for name, rows in readings.rows_with(Reading.CLASS).items()
    ]
    said += [
        f"{name} contains several answers in {_share(rows, readings)}. Only the first answer is used."
        for name, rows in readings.rows_with(Reading.FIRST_ANSWER).items()
    ]
    return " ".join(said) or None


def thoughts(facts: RowFacts) -> str | None:
    """Advice on columns whose text becomes the reasoning before the answer."""
    found = facts.readings.rows_with(Reading.THOUGHT)
    if not found:
        return None
    return (
        f"{_names(found)} contains reasoning in {_share(sum(found.values()), facts.readings)}. The model is trained to "
        "write this reasoning before the answer, between <think> and </think>. To train on the answer only, remove the "
        "column from the file."
    )


def special_tokens_in_text(facts: RowFacts) -> str | None:
    """Advice on Text rows that already contain a prompt format."""
    said = []
    if own := facts.own_tokens:
        said.append(
            f"{sum(own.values()):,} of {facts.text_rows:,} Text rows contain special tokens of the model "
            f"({_most(own)}). They are read as special tokens. Tokens that begin and end a text are added "
            "only where they are missing. Every token of a Text row is trained on. To train on the answers only, use "
            "format Messages."
        )
    if foreign := facts.foreign_marks:
        said.append(
            f"{sum(foreign.values()):,} of {facts.text_rows:,} Text rows contain marks of another prompt format "
            f"({_most(foreign)}). This model reads the marks as plain text. Use format Messages, or remove the marks "
            "with spec.dataset.clean.remove."
        )
    return " ".join(said) or None


def unused_columns(facts: RowFacts) -> str | None:
    """Advice on columns and keys of messages that are not used."""
    readings = facts.readings
    keys = [
        f"the key {name} of messages ({_share(rows, readings)}; add its text to the content to use it)"
        for name, rows in readings.rows_with(Reading.UNREAD_KEY).items()
    ]
    unused = [*readings.unused, *keys]
    if not unused:
        return None
    more = len(unused) - COLUMNS_NAMED
    shown = ", ".join(unused[:COLUMNS_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"Not used: {shown}. The text in these places is neither in the prompts nor trained on."


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _share(rows: int, readings: Readings) -> str:
    return f"{rows:,} of {readings.rows:,} rows"


def _names(rows: Mapping[str, int]) -> str:
    return " and ".join(list(rows)[:COLUMNS_NAMED])


def _most(marks: Mapping[str, int]) -> str:
    mark, rows = max(marks.items(), key=lambda pair: pair[1])
    return f"{mark} in {rows:,} row{'s' * (rows != 1)}"
