"""The files with which the ranks of a pod tell that they are ready to meet. Imports no torch, for the launcher."""

from finetune_trainer.pod.rank import Place

ALL_ARRIVED = "all-arrived"
"""File that the launcher writes when the ranks of all nodes are ready."""


def arrival(rank: int) -> str:
    """Returns the name of the file that rank `rank` writes when it is ready."""
    return f"arrived-{rank}"


def arrivals_of_node(here: Place) -> list[str]:
    """Returns the names of the files that the ranks of this node write."""
    first = here.node * here.ranks_of_node
    return [arrival(rank) for rank in range(first, first + here.ranks_of_node)]


def awaited_arrivals(here: Place) -> list[str]:
    """Returns the names of the files that have to exist before a rank may connect to the others."""
    return [ALL_ARRIVED] if here.nodes > 1 else arrivals_of_node(here)
