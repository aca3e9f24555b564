"""Collects the errors and warnings of the data check: counts for the status, and the message of the failure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.reasons import FailureReason
from finetune_api.status.preflight import FINDING_PLACES, FINDINGS, Advice, Estimate, Finding, Severity
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sources.cleaning_record import Cleaned
from finetune_trainer.sources.data_files import kind_of_file

COUNTS = ("rows", "invalid", "duplicates", "overlength", "taken_apart", "near_duplicates")
"""Attributes of Findings that count rows."""
SHOWN = 5
"""Most kinds of errors that a message names, each with its first row. Other errors are counted."""
URI_CHARACTERS = 300
"""Most characters of a URI in a message. Of a longer URI the end is shown, because it identifies the file."""
NAME_CHARACTERS = 40
"""Most characters of a column's name in a message. Of a longer name the beginning is shown."""


class InvalidRow(Exception):  # noqa: N818 - a finding, not an error of the program
    """The reason why a row cannot be used. `kind` is the same for all rows with the same error. `detail` is about this
    row. Neither quotes the content of the row."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind, self.detail = kind, detail


@dataclass
class _Kind:
    said: str
    """The message about the first row with this error; empty for a warning."""
    rows: int = 0
    places: list[str] = field(default_factory=list)


class Findings:
    """Collects errors and warnings while rows are read. Its size is limited: there are few kinds, and it stores a few
    places of each."""

    def __init__(self) -> None:
        self.rows = 0
        self.invalid = 0
        """Number of rows that cannot be used."""
        self.duplicates = 0
        self.overlength = 0
        self.taken_apart = 0
        """Number of conversations that became one row per answer."""
        self.estimates: list[Estimate] = []
        self.cleaned: Cleaned | None = None
        """The results of cleaning so far; None if it has not started."""
        self.near_duplicates: int | None = None
        """Number of near-duplicates of an earlier row; None until it is known."""
        self.advice: list[Advice] | None = None
        self.leaked: int | None = None
        self._kinds: dict[tuple[Severity, str], _Kind] = {}

    def invalid_row(self, place: str, problem: InvalidRow) -> None:
        """Records a row that cannot be used. `place`: FILE:LINE."""
        self.invalid += 1
        listed = _listed(place, problem.detail)
        detail = f" ({problem.detail})" if problem.detail else ""
        self._note(Severity.ERROR, problem.kind, listed, f"{place_of(place)}: {problem.kind}{detail}.")

    def suspicious_row(self, place: str, kind: str, detail: str = "") -> None:
        """Records a row that is used but looks wrong. Call it at most once per row and kind."""
        self._note(Severity.WARNING, kind, _listed(place, detail))

    def raise_if_invalid(self, allowed: float = 0.0) -> None:
        """Raises TrainerFailure DatasetInvalid if more than the share `allowed` of the rows cannot be used."""
        if self.invalid <= allowed * self.rows:
            return
        beginning = (
            f"{self.invalid:,} of {self.rows:,} rows are not valid, which is more than spec.dataset.maxInvalidFraction "
            f"({allowed:g}). "
            if allowed
            else ""
        )
        faults = [found for (severity, _), found in self._kinds.items() if severity is Severity.ERROR]
        said = " ".join(found.said + _the_same(found.rows - 1) for found in faults[:SHOWN])
        left = sum(found.rows for found in faults[SHOWN:])
        ending = f" {left:,} more rows have other errors: see status.preflight.findings." if left else ""
        raise TrainerFailure(FailureReason.DATASET_INVALID, beginning + said + ending)

    def listed(self) -> list[Finding]:
        """Returns the findings by kind: errors before warnings, the most frequent first."""
        found = sorted(self._kinds.items(), key=lambda item: (item[0][0] is not Severity.ERROR, -item[1].rows))
        return [
            Finding(severity=severity, message=kind[:256], rows=kind_found.rows, places=kind_found.places)
            for (severity, kind), kind_found in found[:FINDINGS]
        ]

    def as_json(self) -> dict[str, Any]:
        """Returns as JSON what was found until the rows are stored: counts, problems, and the results of cleaning."""
        kinds = [
            [severity, kind, found.said, found.rows, found.places] for (severity, kind), found in self._kinds.items()
        ]
        counts = {name: getattr(self, name) for name in COUNTS}
        return {"counts": counts, "kinds": kinds, "cleaned": self.cleaned.as_json() if self.cleaned else None}

    def take_over(self, saved: Mapping[str, Any]) -> None:
        """Replaces what was found by the result of `as_json`."""
        for name in COUNTS:
            setattr(self, name, saved["counts"][name])
        self._kinds = {
            (Severity(severity), kind): _Kind(said, rows, list(places))
            for severity, kind, said, rows, places in saved["kinds"]
        }
        self.cleaned = Cleaned.of_json(saved["cleaned"]) if saved["cleaned"] else None

    def _note(self, severity: Severity, kind: str, place: str, said: str = "") -> None:
        found = self._kinds.setdefault((severity, kind), _Kind(said))
        found.rows += 1
        if len(found.places) < FINDING_PLACES:
            found.places.append(place)


def _the_same(rows: int) -> str:
    return f" The same error is in {rows:,} more row{'s' * (rows != 1)}." if rows else ""


def place_of(place: str, characters: int = URI_CHARACTERS) -> str:
    """Returns the place FILE:LINE in the form of a message, FILE line LINE. Keeps the last `characters` of FILE."""
    uri, _, number = place.rpartition(":")
    shown = uri if len(uri) <= characters else f"...{uri[-characters:]}"
    unit = {"json": "item", "parquet": "row"}.get(kind_of_file(uri), "line")
    return f"{shown} {unit} {number}"


def name_shown(name: str) -> str:
    """Returns a column's name in the form of a message: shortened, with escapes for characters that cannot be printed
    (a line end) or sent (half of a surrogate pair)."""
    shown = repr(name)[1:-1]
    return shown if len(shown) <= NAME_CHARACTERS else f"{shown[: NAME_CHARACTERS - 3]}..."


def _listed(place: str, detail: str) -> str:
    return f"{place_of(place)} ({detail})"[:512] if detail else place_of(place)
