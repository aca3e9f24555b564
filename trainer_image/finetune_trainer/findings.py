"""What the check of the data has found so far: counts for the status, and the sentence about what is wrong."""

from collections import Counter

from finetune_api.reasons import FailureReason
from finetune_api.status import Advice, Estimate
from finetune_trainer.cleaned import Cleaned
from finetune_trainer.failure import TrainerFailure

SHOWN = 5
"""Invalid rows that are named one by one; the rest is counted."""


class InvalidRow(Exception):  # noqa: N818 - a finding, not an error of the program
    """Why one row cannot be used. `kind` is the same for all rows with the same fault, `detail` is this row's; neither
    quotes the row's content."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind, self.detail = kind, detail


class Findings:
    """Counts while rows are read."""

    def __init__(self) -> None:
        self.rows = 0
        self.duplicates = 0
        self.overlength = 0
        self.estimates: list[Estimate] = []
        self.cleaned: Cleaned | None = None
        """What cleaning did so far."""
        self.near_duplicates: int | None = None
        """Rows that nearly repeat an earlier one, once that is known."""
        self.advice: list[Advice] | None = None
        self._kinds: Counter[str] = Counter()
        self._shown: list[str] = []
        self._shown_kinds: Counter[str] = Counter()

    @property
    def invalid(self) -> int:
        """Rows that cannot be used."""
        return self._kinds.total()

    def invalid_row(self, source: str, problem: InvalidRow) -> None:
        """Notes a row that cannot be used. `source`: FILE:LINE."""
        self._kinds[problem.kind] += 1
        if len(self._shown) < SHOWN:
            self._shown_kinds[problem.kind] += 1
            self._shown.append(f"{place_of(source)}: {problem.kind}{f' ({problem.detail})' if problem.detail else ''}.")

    def raise_if_invalid(self) -> None:
        """Raises TrainerFailure DatasetInvalid if a row was noted."""
        if self.invalid:
            more = self._kinds - self._shown_kinds
            rest = ", ".join(f"{count:,} x {kind}" for kind, count in more.most_common(SHOWN))
            ending = f" And {more.total():,} more: {rest}." if more else ""
            raise TrainerFailure(FailureReason.DATASET_INVALID, " ".join(self._shown) + ending)


def place_of(source: str) -> str:
    """FILE:LINE as it is written in sentences: FILE line LINE."""
    uri, _, number = source.rpartition(":")
    return f"{uri} {'item' if uri.endswith('.json') else 'line'} {number}"
