"""The result of `reconcile`: objects to create and delete, Events, the status, and the time of the next check."""

from dataclasses import dataclass, field
from datetime import timedelta

from finetune_operator.observed.facts.pods import Object


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event about the FineTuneJob."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str
    occurrence: str = ""
    """Distinguishes Events of the same reason. One that was written already is not written again."""


@dataclass(frozen=True)
class Plan:
    """Actions in this order: create, events, status, delete; a final plan deletes before the events.

    All actions can be repeated without harm."""

    create: list[Object] = field(default_factory=list)
    delete_config_maps: list[str] = field(default_factory=list)
    """Names of bundles."""
    delete_networks: list[str] = field(default_factory=list)
    """Names of the Services, and of the NetworkPolicies, of trainings on several nodes."""
    delete_jobs: list[str] = field(default_factory=list)
    """Names of child Jobs."""
    events: list[Event] = field(default_factory=list)
    status: Object | None = None
    """The operator's whole part of the status; None if it is already written."""
    is_final: bool = False
    """Whether the plan ends the job, requests a GPU, or replaces a child. It must not be based on an outdated job."""
    requeue_after: timedelta | None = None
    """Delay until the next check, if no event happens before."""
