"""What cleaning did: counts for the status, examples for the report."""

from collections import Counter
from dataclasses import dataclass, field

from finetune_api.status import preflight as preflight_status

EXAMPLES = 3
"""Rows shown of each step."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a step did to one row, cut to the place it changed. Masked values are never shown."""

    step: str
    place: str
    """Where the row stands, as FILE:LINE."""
    before: str
    after: str


@dataclass
class Cleaned:
    """What cleaning did so far."""

    rows: int = 0
    """Rows that any step changed."""
    steps: Counter[str] = field(default_factory=Counter)
    """Rows each step changed; every step of the job is in it."""
    emptied: int = 0
    """Rows dropped because a question or an answer was empty afterwards."""
    examples: list[Change] = field(default_factory=list)

    def status(self) -> preflight_status.Cleaned:
        """The counts, as the status has them."""
        steps = [preflight_status.CleaningStep(name=name, rows=rows) for name, rows in self.steps.items()]
        return preflight_status.Cleaned(rows=self.rows, emptied=self.emptied, steps=steps)
