"""What the operator still does for a job that has ended."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from finetune_api.spec.run_policy import RunPolicy
from finetune_api.status.job import FineTuneJobStatus
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.world import World
from tests.unit.finetune_operator.worlds import (
    NOW,
    SPEC,
    attempt,
    fresh,
    pod,
    preflight,
    published,
    with_status,
)

CHILDREN = ("tickets-12345678-preflight", "tickets-12345678-a1")


def ended(**changes: Any) -> World:
    """A job that failed, as the store keeps it."""
    world = fresh(preflight=preflight(pod("Failed", exit_code=21)))
    about = {"spec": None, "ended_at": NOW, "children": CHILDREN, **changes}
    return replace(with_status(world, reconcile(world, NOW)), **about)


def test_children_stay_while_there_is_no_time_to_live() -> None:
    assert reconcile(ended(), NOW + timedelta(days=400)) == Plan()


def test_children_go_when_their_time_to_live_is_over_and_the_job_stays() -> None:
    world = ended(ttl=timedelta(hours=1))

    early, late = (reconcile(world, NOW + timedelta(minutes=minutes)) for minutes in (59, 60))

    assert (early.delete_jobs, early.requeue_after) == ([], timedelta(minutes=1))
    assert (late.delete_jobs, late.delete_config_maps, late.status) == (list(CHILDREN), ["tickets-12345678"], None)


def test_a_bundle_without_jobs_goes_in_its_time_too_and_not_at_each_start_of_the_operator() -> None:
    """A person may have deleted the Jobs, and nobody sees whether the bundle exists."""
    world = ended(ttl=timedelta(hours=1), children=())

    plans = [reconcile(world, NOW + timedelta(hours=hours)) for hours in (0, 2, 25)]

    assert [plan.delete_config_maps for plan in plans] == [[], ["tickets-12345678"], []]
    assert [plan.requeue_after for plan in plans] == [timedelta(hours=1), None, None]


def test_the_end_of_a_job_sets_the_timer_of_its_children() -> None:
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(ttl_seconds_after_finished=60)})
    done = {1: attempt(pod("Succeeded", exit_code=0), succeeded=True)}

    assert reconcile(published(spec=spec, attempts=done), NOW).requeue_after == timedelta(minutes=1)
    assert reconcile(published(attempts=done), NOW).requeue_after is None


def test_a_spec_that_is_changed_after_the_end_is_seen_and_changes_nothing_else() -> None:
    world = ended()

    plan = reconcile(replace(world, generation=2), NOW + timedelta(days=1))

    assert plan.status is not None
    before = {**world.raw_status, "observedGeneration": 2}
    before["conditions"] = [{**c, "observedGeneration": 2} for c in before["conditions"]]
    assert plan.status == before
    assert (plan.create, plan.delete_jobs) == ([], [])
    FineTuneJobStatus.model_validate(plan.status)
