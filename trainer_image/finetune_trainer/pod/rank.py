"""Which of the processes of a job this one is.

A training on several GPUs has one process for each. They are the ranks, counted from 0. Rank 0 alone prints, writes the
status, and writes to the storage. A training on several nodes has one pod on each, with as many ranks in every pod.
`ranks.launcher` starts the ranks of a pod and tells each one its place in its environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api import names

RANK, RANKS, MEETING = "FINETUNE_RANK", "FINETUNE_RANKS", "FINETUNE_MEETING"
LAUNCHER = "FINETUNE_LAUNCHER"
"""Environment variables of a rank: its number, the number of ranks, the folder in which those of its pod meet, and the
process that started them."""
NODE, NODES, STORE, NODE_NAME = "FINETUNE_NODE", "FINETUNE_NODES", "FINETUNE_STORE", "FINETUNE_NODE_NAME"
"""Environment variables of a rank of several nodes: the number of its node, the number of nodes, where the ranks of all
nodes meet, and the name of its node in Kubernetes."""


@dataclass(frozen=True)
class Place:
    """The place of a process among the ranks of a training."""

    rank: int = 0
    ranks: int = 1
    meeting: Path = Path()
    """A folder that all ranks of a pod share. Without other ranks it has no meaning."""
    launcher: int = 0
    """Identifier of the process that started the ranks and looks after them; 0 if nobody does."""
    node: int = 0
    """Number of its node, from 0. Rank 0 is on node 0."""
    nodes: int = 1
    """Number of nodes. Each has one pod with the same number of ranks."""
    store: str = ""
    """HOST:PORT at which rank 0 tells the ranks of all nodes how to reach each other. "" with one node."""
    node_name: str = ""
    """Name of its node in Kubernetes. "" with one node, or if it is not known."""

    def __str__(self) -> str:
        """The rank as sentences name it, such as "rank 0 of 2" or "rank 3 of 4 on node gpu-7"."""
        on = f" on node {self.node_name or self.node}" if self.nodes > 1 else ""
        return f"rank {self.rank} of {self.ranks}{on}"

    @property
    def ranks_of_node(self) -> int:
        """Number of the ranks of its pod."""
        return self.ranks // self.nodes

    @property
    def rank_of_node(self) -> int:
        """Its number among the ranks of its pod, from 0."""
        return self.rank % self.ranks_of_node

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that tell a process this place."""
        return {
            RANK: str(self.rank),
            RANKS: str(self.ranks),
            MEETING: str(self.meeting),
            LAUNCHER: str(self.launcher),
            NODE: str(self.node),
            NODES: str(self.nodes),
            STORE: self.store,
            NODE_NAME: self.node_name,
        }


def own_pod() -> str:
    """Returns the uid of this pod; "local" outside Kubernetes. Folders of a pod have it in their names."""
    return os.environ.get(names.POD_UID_VARIABLE) or "local"


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """Returns the place of this process. A process without the environment of a rank is the only one."""
    if RANK not in environment:
        return Place()
    rank, ranks, launcher, node, nodes = (int(environment[name]) for name in (RANK, RANKS, LAUNCHER, NODE, NODES))
    meeting, store, node_name = Path(environment[MEETING]), environment[STORE], environment[NODE_NAME]
    return Place(rank, ranks, meeting, launcher, node, nodes, store, node_name)


def is_first() -> bool:
    """Returns whether this is rank 0, which alone prints and writes."""
    return place().rank == 0


def is_first_of_node() -> bool:
    """Returns whether this rank writes the files that the ranks of its pod read together, such as the model."""
    return place().rank_of_node == 0


def by_rank(finding: str) -> str:
    """Returns a finding about this process, with its rank if there are several. A finding that another rank has sent
    names that rank already."""
    here = place()
    if here.ranks == 1 or finding.startswith("Rank "):
        return finding
    return f"R{str(here)[1:]}: {finding}"
