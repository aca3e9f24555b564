"""What the check of the data has found so far: counts for the status, and the sentence about what is wrong."""

from dataclasses import dataclass, field

from finetune_api.reasons import FailureReason
from finetune_api.status.preflight import FINDING_PLACES, FINDINGS, Advice, Estimate, Finding, Severity
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sources.cleaning_record import Cleaned
from finetune_trainer.sources.data_files import kind_of_file

SHOWN = 5
"""Kinds of faults that a message names, each with its first row; the rest is counted."""
URI_CHARACTERS = 300
"""Of a longer URI the end is shown, which tells files apart."""
NAME_CHARACTERS = 40
"""Of a longer name of a column the beginning is shown."""


class InvalidRow(Exception):  # noqa: N818 - a finding, not an error of the program
    """Why one row cannot be used. `kind` is the same for all rows with the same fault, `detail` is this row's; neither
    quotes the row's content."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind, self.detail = kind, detail


@dataclass
class _Kind:
    said: str
    """The sentence about the first row, for a fault."""
    rows: int = 0
    places: list[str] = field(default_factory=list)


class Findings:
    """Counts while rows are read. What it holds is bounded: a few places of each kind of fault, and few kinds."""

    def __init__(self) -> None:
        self.rows = 0
        self.invalid = 0
        """Rows that cannot be used."""
        self.duplicates = 0
        self.overlength = 0
        self.taken_apart = 0
        """Conversations of which every answer became a row of its own."""
        self.estimates: list[Estimate] = []
        self.cleaned: Cleaned | None = None
        """What cleaning did so far."""
        self.near_duplicates: int | None = None
        """Rows that nearly repeat an earlier one, once that is known."""
        self.advice: list[Advice] | None = None
        self.leaked: int | None = None
        self._kinds: dict[tuple[Severity, str], _Kind] = {}

    def invalid_row(self, source: str, problem: InvalidRow) -> None:
        """Notes a row that cannot be used. `source`: FILE:LINE."""
        self.invalid += 1
        place = _place(source, problem.detail)
        detail = f" ({problem.detail})" if problem.detail else ""
        self._note(Severity.ERROR, problem.kind, place, f"{place_of(source)}: {problem.kind}{detail}.")

    def suspicious_row(self, source: str, kind: str, detail: str = "") -> None:
        """Notes a row that is used and yet looks wrong. A row is noted at most once for each kind."""
        self._note(Severity.WARNING, kind, _place(source, detail))

    def raise_if_invalid(self, allowed: float = 0.0) -> None:
        """Raises TrainerFailure DatasetInvalid if more than the share `allowed` of the rows cannot be used."""
        if self.invalid <= allowed * self.rows:
            return
        beginning = (
            f"{self.invalid:,} of {self.rows:,} rows are not valid, which is more than dataset.maxInvalidFraction "
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
        """What was found, by kind: what cannot be used before what looks wrong, the most frequent first."""
        found = sorted(self._kinds.items(), key=lambda item: (item[0][0] is not Severity.ERROR, -item[1].rows))
        return [
            Finding(severity=severity, message=kind[:256], rows=kind_found.rows, places=kind_found.places)
            for (severity, kind), kind_found in found[:FINDINGS]
        ]

    def _note(self, severity: Severity, kind: str, place: str, said: str = "") -> None:
        found = self._kinds.setdefault((severity, kind), _Kind(said))
        found.rows += 1
        if len(found.places) < FINDING_PLACES:
            found.places.append(place)


def _the_same(rows: int) -> str:
    return f" The same error is in {rows:,} more row{'s' * (rows != 1)}." if rows else ""


def place_of(source: str, characters: int = URI_CHARACTERS) -> str:
    """FILE:LINE as it is written in sentences: FILE line LINE. Of a longer FILE the last `characters`."""
    uri, _, number = source.rpartition(":")
    shown = uri if len(uri) <= characters else f"...{uri[-characters:]}"
    unit = {"json": "item", "parquet": "row"}.get(kind_of_file(uri), "line")
    return f"{shown} {unit} {number}"


def name_shown(name: str) -> str:
    """A column's name as it is written in sentences: not too long, with escapes for what cannot be printed (a line end)
    or not even be sent (half a surrogate pair)."""
    shown = repr(name)[1:-1]
    return shown if len(shown) <= NAME_CHARACTERS else f"{shown[: NAME_CHARACTERS - 3]}..."


def _place(source: str, detail: str) -> str:
    return f"{place_of(source)} ({detail})"[:512] if detail else place_of(source)
