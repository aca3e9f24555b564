"""Worlds and readers for tests of attempts."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.pods import Pod
from finetune_operator.observed.world import World
from tests.unit.finetune_operator.worlds import (
    NOW,
    PROFILE,
    attempt,
    pod,
    run,
    validated,
    with_status,
)

HOUR = timedelta(hours=1)
GPU = PROFILE.gpu_types[0]


def priced(price: str) -> Any:
    return PROFILE.model_copy(update={"gpu_types": [GPU.model_copy(update={"price_per_hour": price})]})


def second(pod: Pod | None = None, **fields: Any) -> Run:
    return run("tickets-12345678-a2", pod, **fields)


def attempts(plan: Plan) -> list[dict[str, Any]]:
    assert plan.status is not None
    return list(plan.status["attempts"])


def interrupted(**fields: Any) -> World:
    """The first attempt ran for an hour and was preempted, which is on record. The GPU cost 2.50 when it began."""
    begun = validated(profile=priced("2.50"))
    begun = with_status(begun, reconcile(begun, NOW - HOUR))
    ended = pod("Failed", exit_code=33, started=NOW - HOUR, finished=NOW, **fields)
    world = replace(begun, attempts={1: attempt(ended, failed=True)}, profile=priced("9"))
    return with_status(world, reconcile(world, NOW))
