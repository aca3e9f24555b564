"""The tries so far, in a JSON file that is complete after each try, and what is still to do."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.chaos.figures.judge import Outcome
from tests.chaos.phases import Phase
from tests.chaos.table import FAULTS, Fault, Task

_ORDER = [fault.name for fault in FAULTS]


@dataclass
class Record:
    """What is in the file. A file of an earlier run is continued. `commit`: of what is tried now. `side_by_side`: how
    many tries are made at the same time now. `phase_seconds`: the seconds that a job without a fault spends in each
    phase, by how many of them run at the same time."""

    path: Path
    commit: str = ""
    side_by_side: int = 0
    phase_seconds: dict[int, dict[str, float]] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, commit: str = "", side_by_side: int = 0) -> "Record":
        """Reads the file, if it exists."""
        if not path.exists():
            return cls(path, commit, side_by_side)
        content: dict[str, Any] = json.loads(path.read_text())
        phases = {int(number): seconds for number, seconds in content["phaseSeconds"].items()}
        return cls(path, commit, side_by_side, phases, [Outcome(**entry) for entry in content["tries"]])

    @property
    def counted(self) -> list[Outcome]:
        """The tries of the project as it is."""
        return [entry for entry in self.outcomes if not entry.mended]

    def save(self) -> None:
        """Replaces the file. Each try is a line, in the order of the table, so that a difference can be read."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.outcomes.sort(key=lambda entry: (_ORDER.index(entry.fault), entry.seed))
        lines = ",\n".join(json.dumps(asdict(entry)) for entry in self.outcomes)
        draft = self.path.with_suffix(".new")
        draft.write_text(f'{{"phaseSeconds": {json.dumps(self.phase_seconds)},\n"tries": [\n{lines}\n]}}\n')
        draft.replace(self.path)

    def add(self, outcome: Outcome) -> None:
        """Adds a try that was made just now."""
        today = datetime.now(UTC).strftime("%Y-%m-%d")
        self.outcomes.append(replace(outcome, date=today, commit=self.commit, side_by_side=self.side_by_side))
        self.save()

    def to_do(self, faults: Sequence[Fault], tries: int, phases: Sequence[Phase] = tuple(Phase)) -> list[Task]:
        """Returns the missing tries in these phases. Every fault gets its first one before any gets its second.

        The tries of a fault go through its phases in turn."""
        done = {(entry.fault, entry.seed) for entry in self.counted}
        tasks = (
            Task(fault, fault.phases[number % len(fault.phases)], number) for number in range(tries) for fault in faults
        )
        return [task for task in tasks if (task.fault.name, task.seed) not in done and task.phase in phases]
