"""The results of cleaning: counts for the status and examples for the report."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from finetune_api.status import preflight as preflight_status

EXAMPLES = 3
"""Most examples of each step."""


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one row by one step, cut to the changed place. Masked values are never shown."""

    step: str
    place: str
    """The place of the row, as FILE:LINE."""
    before: str
    after: str


@dataclass
class Cleaned:
    """The results of cleaning so far."""

    rows: int = 0
    """Number of rows that at least one step changed."""
    steps: Counter[str] = field(default_factory=Counter)
    """Number of rows that each step changed. Contains every step of the job."""
    emptied: int = 0
    """Number of rows that were dropped because a question or an answer was empty after cleaning."""
    examples: list[Change] = field(default_factory=list)

    def status(self) -> preflight_status.Cleaned:
        """Returns the counts in the form of the status."""
        steps = [preflight_status.CleaningStep(name=name, rows=rows) for name, rows in self.steps.items()]
        return preflight_status.Cleaned(rows=self.rows, emptied=self.emptied, steps=steps)

    def as_json(self) -> dict[str, Any]:
        """Returns everything as JSON."""
        examples = [asdict(change) for change in self.examples]
        return {"rows": self.rows, "steps": dict(self.steps), "emptied": self.emptied, "examples": examples}

    @classmethod
    def of_json(cls, saved: Mapping[str, Any]) -> Self:
        """Returns the results from the result of `as_json`."""
        examples = [Change(**change) for change in saved["examples"]]
        return cls(saved["rows"], Counter(saved["steps"]), saved["emptied"], examples)
