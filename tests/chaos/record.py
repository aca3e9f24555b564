"""The tries so far, in a JSON file that is complete after each try, and what is still to do."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.judge import Outcome
from tests.chaos.phases import Phase
from tests.chaos.table import Fault


@dataclass(frozen=True)
class Task:
    """A try to make: number `seed` of its fault, counted from 0, in this phase."""

    fault: Fault
    phase: Phase
    seed: int


@dataclass
class Record:
    """What is in the file. A file of an earlier run is continued."""

    path: Path
    phase_seconds: dict[str, float] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> "Record":
        """Reads the file, if it exists."""
        if not path.exists():
            return cls(path)
        content: dict[str, Any] = json.loads(path.read_text())
        return cls(path, content["phaseSeconds"], [Outcome(**entry) for entry in content["tries"]])

    def save(self) -> None:
        """Replaces the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"phaseSeconds": self.phase_seconds, "tries": [asdict(entry) for entry in self.outcomes]}
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(content, indent=1))
        draft.replace(self.path)

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.save()

    def to_do(self, faults: Sequence[Fault], tries: int) -> list[Task]:
        """Returns the tries that are missing. Every fault gets its first try before any gets its second.

        The tries of a fault go through its phases in turn."""
        done = {(entry.fault, entry.seed) for entry in self.outcomes}
        return [
            Task(fault, fault.phases[number % len(fault.phases)], number)
            for number in range(tries)
            for fault in faults
            if (fault.name, number) not in done
        ]

    def seconds_left(self, tasks: Sequence[Task]) -> float | None:
        """Returns how long these tries will take: each as long as those of its fault took, or as all took. None while
        there is none to go by."""
        if not self.outcomes:
            return None
        mean = sum(entry.seconds for entry in self.outcomes) / len(self.outcomes)
        total = 0.0
        for task in tasks:
            own = [entry.seconds for entry in self.outcomes if entry.fault == task.fault.name]
            total += sum(own) / len(own) if own else mean
        return total
