"""A job that was suspended before it requested a GPU, while others changed or deleted the objects that it names."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.decisions import admission
from finetune_operator.decisions.objects import bundles
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.world import World
from tests.unit.finetune_operator.plans import kinds, state
from tests.unit.finetune_operator.worlds import NOW, PROFILE, SPEC, fresh, pod, preflight, with_status

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
