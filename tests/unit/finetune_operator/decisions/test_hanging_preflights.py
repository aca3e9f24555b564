"""A preflight that hangs is ended and tried again: by its own watchdog, or by the operator if it writes nothing."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.reasons import AGAIN, FAILURES, FailureReason
from finetune_api.spec.run_policy import RunPolicy
from finetune_api.status.job import ConditionType
from finetune_operator.decisions.attempts.silence import PREFLIGHT_SILENCE
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.causes import remedies
from finetune_operator.observed.world import Progress, World
from tests.unit.finetune_operator.plans import kinds, message, reason, state
from tests.unit.finetune_operator.worlds import NOW, SPEC, fresh, pod, preflight, run, saying, with_status

LATER = NOW + PREFLIGHT_SILENCE
FIRST, SECOND = "tickets-12345678-preflight", "tickets-12345678-preflight-2"


def hanging(**changes: Any) -> World:
    return fresh(preflight=preflight(pod(started=NOW)), **changes)


def preflights(world: World) -> list[dict[str, Any]]:
    return list(world.raw_status["preflights"])


def test_a_preflight_that_writes_nothing_for_a_day_is_ended_on_record_and_repeated() -> None:
    before = reconcile(hanging(), LATER - timedelta(seconds=1))
    ended = reconcile(hanging(), LATER)
    assert (state(before), before.requeue_after, before.delete_jobs) == ("Validating", timedelta(seconds=1), [])
    assert (reason(ended), ended.delete_jobs, kinds(ended)) == ("Retrying", [FIRST], [])
    assert "The preflight pod has run for 24 hours without writing its result in the status." in message(ended)

    gone = replace(with_status(hanging(), ended), preflight=None)
    assert preflights(gone)[0]["reason"] == "TrainingStalled"
    assert kinds(reconcile(gone, LATER + timedelta(seconds=9))) == []
    again = reconcile(gone, LATER + timedelta(seconds=10))
    assert again.create[-1]["metadata"]["name"] == SECOND
    assert again.is_final, "the whole FineTuneJob may be gone, so it is read before a Job is created"
    assert again.status is not None
    assert again.status["counts"]["retries"] == 1


def test_a_preflight_that_its_own_watchdog_ended_is_repeated() -> None:
    world = fresh(preflight=preflight(pod("Failed", exit_code=14, finished=NOW), failed=True))

    recorded = with_status(world, reconcile(world, NOW))

    assert preflights(recorded)[0]["reason"] == "TrainingStalled"
    assert reconcile(recorded, NOW + timedelta(seconds=10)).create[-1]["metadata"]["name"] == SECOND


def test_a_preflight_that_always_hangs_ends_the_job() -> None:
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(max_retries=0)})

    recorded = reconcile(hanging(spec=spec), LATER)
    plan = reconcile(replace(with_status(hanging(spec=spec), recorded), preflight=None), LATER)

    assert (recorded.is_final, recorded.delete_jobs) == (False, [FIRST])
    assert (state(plan), reason(plan), plan.create) == ("Failed", "TrainingStalled", [])
    assert f"its result in the status. {remedies.SILENT_PREFLIGHT} {AGAIN}" in message(plan)
    assert FAILURES[FailureReason.TRAINING_STALLED].remedy not in message(plan), "nobody has seen the stacks"


def test_the_job_of_a_preflight_on_record_is_deleted_also_if_the_operator_stopped_in_between() -> None:
    recorded = with_status(hanging(), reconcile(hanging(), LATER))

    plan = reconcile(replace(recorded, preflight=preflight(pod(started=NOW))), LATER + timedelta(seconds=1))

    assert plan.delete_jobs == [FIRST]


def test_a_second_preflight_has_its_own_time() -> None:
    recorded = with_status(hanging(), reconcile(hanging(), LATER))
    second = run(SECOND, pod(started=LATER), created=LATER, begun=LATER)

    plan = reconcile(replace(recorded, preflight=second, preflight_number=2), LATER + timedelta(hours=1))

    assert (state(plan), plan.delete_jobs) == ("Validating", [])


def test_a_preflight_that_has_written_its_result_and_does_not_end_has_succeeded() -> None:
    world = saying(hanging(service_account_exists=True, role_binding_exists=True), ConditionType.VALIDATED, since=NOW)

    plan = reconcile(world, LATER)

    assert (state(plan), plan.delete_jobs, kinds(plan)[-1]) == ("Queued", [FIRST], "Job")


@pytest.mark.parametrize("progress", [Progress(), Progress(0, observed=LATER)])
def test_progress_of_an_attempt_is_no_sign_of_life_of_a_preflight(progress: Progress) -> None:
    assert reason(reconcile(hanging(progress=progress), LATER)) == "Retrying"


@pytest.mark.parametrize(("stall", "hours"), [(None, 24), (7 * 3600, 24), (10 * 3600, 30)])
def test_a_preflight_with_slow_rows_has_three_times_as_long_as_one_row_may_take(stall: int | None, hours: int) -> None:
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(stall_timeout_seconds=stall)})
    end = NOW + timedelta(hours=hours)

    assert reconcile(hanging(spec=spec), end - timedelta(seconds=1)).delete_jobs == []
    ended = reconcile(hanging(spec=spec), end)
    assert ended.delete_jobs == [FIRST]
    assert f"has run for {hours} hours without" in message(ended)
