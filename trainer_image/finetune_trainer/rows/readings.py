"""Counts the values that were converted or not used, so that advice can report each kind once."""

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self


class Reading(StrEnum):
    """One way in which a value was converted or not used."""

    CLASS = "class numbers"
    NUMBER = "numbers"
    DIGITS = "numbers as text"
    BOOLEAN = "true or false"
    OBJECT = "objects"
    FIRST_ANSWER = "lists of answers"
    THOUGHT = "thoughts"
    NOT_LEARNED = "answers not to be learned"
    ASKED_TO_LEARN = "turns of others than the assistant to be learned"
    UNREAD_KEY = "keys of turns that nothing reads"


Noted = Counter[tuple[Reading, str]]
"""How often each kind occurs in one row, by the kind and the name of the column or key."""
NAMES = 64
"""Most names that are counted for each kind. Without a limit, keys that are data would fill the memory."""


class Readings:
    """Counts over the rows of all sources."""

    def __init__(self) -> None:
        self.rows = 0
        """Valid rows."""
        self.unused: list[str] = []
        """Columns that are not used, each with its field in the spec."""
        self._rows, self._times = Noted(), Noted()

    def add(self, noted: Noted) -> None:
        """Counts one valid row."""
        self.rows += 1
        for key, times in noted.items():
            if key in self._rows or sum(reading is key[0] for reading, _ in self._rows) < NAMES:
                self._rows[key] += 1
                self._times[key] += times

    def as_json(self) -> dict[str, Any]:
        """Returns the counts as JSON."""
        counts = [[reading, name, rows, self._times[reading, name]] for (reading, name), rows in self._rows.items()]
        return {"rows": self.rows, "unused": self.unused, "counts": counts}

    @classmethod
    def of_json(cls, saved: Mapping[str, Any]) -> Self:
        """Returns the counts from the result of `as_json`."""
        found = cls()
        found.rows, found.unused = saved["rows"], list(saved["unused"])
        for reading, name, rows, times in saved["counts"]:
            found._rows[Reading(reading), name], found._times[Reading(reading), name] = rows, times
        return found

    def rows_with(self, reading: Reading) -> dict[str, int]:
        """Returns the number of rows with this kind, by the name of the column or key, the most frequent first."""
        return {name: rows for (found, name), rows in self._rows.most_common() if found is reading}

    def times(self, reading: Reading) -> int:
        """Returns how often this kind occurs in all rows."""
        return sum(times for (found, _), times in self._times.items() if found is reading)
