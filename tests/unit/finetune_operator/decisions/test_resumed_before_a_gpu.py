"""A job that was suspended before it requested a GPU, while others changed or deleted the objects that it names."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.decisions import admission
from finetune_operator.decisions.objects import bundles
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.leftovers import time_to_keep
from finetune_operator.observed.world import World
from tests.unit.finetune_operator.plans import kinds, state
from tests.unit.finetune_operator.worlds import HELD, NOW, PROFILE, SPEC, fresh, pod, preflight, with_status

SUSPENDED = SPEC.model_copy(update={"suspend": True})
DAY = timedelta(days=1)
NARROWER = PROFILE.model_copy(update={"storages": PROFILE.storages[:1]})
"""The profile has lost the bucket of the output. The bundle of the job still has it."""


def suspended_during_its_preflight() -> World:
    world = fresh()
    world = with_status(world, reconcile(world, NOW))
    world = replace(world, spec=SUSPENDED, preflight=preflight(pod()), generation=2)
    plan = reconcile(world, NOW)
    assert plan.delete_jobs == [preflight().name]
    return with_status(replace(world, preflight=None), plan)


@pytest.mark.parametrize("change", [{"profile": NARROWER}, {"profile": None}])
def test_a_job_that_was_suspended_during_its_preflight_has_begun_so_no_change_of_its_profile_ends_it(
    change: dict[str, Any],
) -> None:
    world = replace(suspended_during_its_preflight(), **change)
    assert reconcile(world, NOW + DAY) == Plan(), "it stays suspended"

    resumed = replace(world, spec=SPEC, generation=3)
    assert state(reconcile(resumed, NOW + DAY)) == "Pending"
    bundle = bundles.bundle_of(resumed, SPEC, PROFILE)
    back = replace(resumed, profile=resumed.profile or PROFILE, bundle=bundle)
    assert "Job" in kinds(reconcile(back, NOW + DAY))


def test_a_preflight_that_suspend_has_stopped_is_on_record_and_neither_a_retry_nor_an_interruption() -> None:
    world = suspended_during_its_preflight()
    (record,) = world.raw_status["preflights"]
    assert (record["number"], record["reason"]) == (1, "Suspended")

    # The operator may have stopped before it deleted the Job.
    for left in (None, preflight(pod()), preflight(pod("Failed", exit_code=33), failed=True)):
        resumed = replace(world, spec=SPEC, generation=3, preflight=left)
        plan = reconcile(resumed, NOW)
        assert plan.create[-1]["metadata"]["name"] == f"{preflight().name}-2"
        assert plan.delete_jobs == ([preflight().name] if left and left.is_live else [])
        assert plan.status is not None
        assert plan.status["counts"] == {"attempts": 0, "preflights": 2, "preflightReasons": {"Suspended": 1}}


def test_a_preflight_whose_pod_has_not_started_has_no_record_of_its_suspension() -> None:
    for job in (preflight(), preflight(pod("Pending")), preflight(**HELD)):
        plan = reconcile(fresh(spec=SUSPENDED, preflight=job), NOW)
        assert plan.status is not None
        assert (plan.delete_jobs, plan.status.get("preflights")) == ([job.name], None)


def test_a_preflight_that_has_failed_is_not_on_record_as_suspended() -> None:
    world = fresh(preflight=preflight(pod("Failed", exit_code=26), failed=True))
    recorded = with_status(world, reconcile(world, NOW))
    for each in (world, recorded):
        suspended = replace(each, spec=SUSPENDED)
        resumed = replace(with_status(suspended, reconcile(suspended, NOW)), spec=SPEC)
        plan = reconcile(resumed, NOW)

        (record,) = (plan.status or resumed.raw_status)["preflights"]
        assert record["reason"] == "StorageUnavailable"


@pytest.mark.parametrize(
    ("job", "ended"),
    [
        (preflight(pod("Running", exit_code=137, finished=NOW - timedelta(minutes=1))), "Killed"),  # a sidecar runs on
        (None, "Evicted"),  # somebody has deleted it
    ],
)
def test_a_preflight_that_ended_just_before_it_was_suspended_is_on_record_with_its_own_reason(
    job: Run | None, ended: str
) -> None:
    world = fresh()
    world = with_status(world, reconcile(world, NOW))
    plan = reconcile(replace(world, spec=SUSPENDED, preflight=job, generation=2), NOW)
    assert plan.status is not None
    (record,) = plan.status["preflights"]
    assert (plan.status["state"], record["reason"]) == ("Suspended", ended)


def test_what_a_suspended_preflight_may_have_written_is_cleaned_up_after_a_later_one_found_bad_input() -> None:
    world = replace(suspended_during_its_preflight(), spec=SPEC, generation=3)
    world = with_status(world, reconcile(world, NOW))
    failed = preflight(pod("Failed", exit_code=21), failed=True)
    plan = reconcile(replace(world, preflight=failed, preflight_number=2), NOW)

    assert plan.status is not None
    assert plan.status["state"] == "Failed"
    assert time_to_keep({}, plan.status) == timedelta(days=7)


def test_a_job_that_was_created_suspended_waits_for_its_profile_from_its_resumption_on() -> None:
    world = fresh(spec=SUSPENDED, profile=None)
    world = with_status(world, reconcile(world, NOW))
    world = replace(world, spec=SPEC, generation=2)

    first = reconcile(world, NOW + DAY)
    assert (state(first), first.requeue_after) == ("Pending", admission.LOOK_AGAIN)
    waiting = with_status(world, first)
    just_before = reconcile(waiting, NOW + DAY + admission.GRACE - timedelta(seconds=1))
    assert (just_before.status, just_before.requeue_after) == (None, admission.LOOK_AGAIN)
    assert state(reconcile(waiting, NOW + DAY + admission.GRACE)) == "Failed"
