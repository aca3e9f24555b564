"""What `reconcile` answers: what is to be made, said and looked at again."""

from dataclasses import dataclass, field
from datetime import timedelta

from finetune_operator.observed.pods import Object


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event about the FineTuneJob."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """Carried out in this order: create, delete, events, status. All of it may be repeated without harm."""

    create: list[Object] = field(default_factory=list)
    delete_jobs: list[str] = field(default_factory=list)
    """Names of child Jobs."""
    events: list[Event] = field(default_factory=list)
    status: Object | None = None
    """The operator's whole part of the status; None where it is there already."""
    requeue_after: timedelta | None = None
    """When to look again, should nothing happen before."""
