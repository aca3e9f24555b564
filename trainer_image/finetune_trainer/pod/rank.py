"""Which of the processes of a job this one is.

A training on several GPUs has one process for each. They are the ranks, counted from 0. Rank 0 alone prints, writes the
status, and writes to the storage. `ranks.launcher` starts them and tells each one its place in its environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RANK, RANKS, MEETING = "FINETUNE_RANK", "FINETUNE_RANKS", "FINETUNE_MEETING"
LAUNCHER = "FINETUNE_LAUNCHER"
"""Environment variables of a rank: its number, the number of ranks, the folder in which they meet, and the process that
started them."""


@dataclass(frozen=True)
class Place:
    """The place of a process among the ranks of a training."""

    rank: int = 0
    ranks: int = 1
    meeting: Path = Path()
    """A folder that all ranks share. Without other ranks it has no meaning."""
    launcher: int = 0
    """Identifier of the process that started the ranks and looks after them; 0 if nobody does."""

    def __str__(self) -> str:
        """The rank as sentences name it, such as "rank 0 of 2"."""
        return f"rank {self.rank} of {self.ranks}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that tell a process this place."""
        return {
            RANK: str(self.rank),
            RANKS: str(self.ranks),
            MEETING: str(self.meeting),
            LAUNCHER: str(self.launcher),
        }


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """Returns the place of this process. A process without the environment of a rank is the only one."""
    if RANK not in environment:
        return Place()
    rank, ranks, launcher = (int(environment[name]) for name in (RANK, RANKS, LAUNCHER))
    return Place(rank, ranks, Path(environment[MEETING]), launcher)


def is_first() -> bool:
    """Returns whether this is rank 0, which alone prints and writes."""
    return place().rank == 0


def by_rank(finding: str) -> str:
    """Returns a finding about this process, with its rank if there are several. A finding that another rank has sent
    names that rank already."""
    here = place()
    if here.ranks == 1 or finding.startswith("Rank "):
        return finding
    return f"Rank {here.rank} of {here.ranks}: {finding}"
