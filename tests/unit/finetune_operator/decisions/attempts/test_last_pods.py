"""A job fails only after its last pod has stopped, and says meanwhile what it waits for."""

from dataclasses import replace
from datetime import timedelta

from finetune_api.spec.run_policy import RunPolicy
from finetune_operator.decisions.reconcile import reconcile
from tests.unit.finetune_operator.decisions.attempts.recorded import attempts
from tests.unit.finetune_operator.plans import message, reason, state
from tests.unit.finetune_operator.worlds import NOW, SPEC, attempt, pod, validated, with_status


def test_a_deadline_ends_a_job_whose_pod_nobody_has_asked_to_stop() -> None:
    """kubectl delete job --cascade=orphan."""
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(active_deadline_seconds=600)})
    running = with_status(validated(spec=spec), reconcile(validated(attempts={1: attempt(pod(started=NOW))}), NOW))
    left = replace(running, remains={1: (pod("Running", started=NOW),)})
    waits = reconcile(left, NOW + timedelta(seconds=10))
    ended = reconcile(with_status(left, waits), NOW + timedelta(seconds=610))

    assert (state(ended), reason(ended)) == ("Failed", "DeadlineExceeded")


def test_a_job_past_its_deadline_says_so_while_its_pod_stops() -> None:
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(active_deadline_seconds=600)})
    running = with_status(validated(spec=spec), reconcile(validated(attempts={1: attempt(pod(started=NOW))}), NOW))
    suspended = spec.model_copy(update={"suspend": True})
    held = replace(running, spec=suspended, attempts={1: attempt(pod(started=NOW))})
    held = with_status(held, reconcile(held, NOW + timedelta(seconds=590)))
    leaving = pod("Running", started=NOW, due=NOW + timedelta(seconds=710))
    plan = reconcile(replace(held, spec=spec, attempts={}, remains={1: (leaving,)}), NOW + timedelta(seconds=610))

    assert (state(plan), reason(plan)) == ("Pending", "Stopping")
    assert "activeDeadlineSeconds" in message(plan)
    assert "suspend" not in message(plan)


def test_a_job_ends_after_the_last_pod_has_stopped_and_pays_for_it_until_then() -> None:
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(max_interruptions=0)})
    running = with_status(validated(spec=spec), reconcile(validated(attempts={1: attempt(pod(started=NOW))}), NOW))
    leaving = pod("Running", started=NOW, due=NOW + timedelta(seconds=120))
    world = replace(running, remains={1: (leaving,)})

    stops = reconcile(world, NOW + timedelta(seconds=10))
    ended = reconcile(replace(with_status(world, stops), remains={}), NOW + timedelta(seconds=30))

    assert (state(stops), reason(stops), stops.requeue_after) == ("Pending", "Stopping", timedelta(seconds=20))
    assert message(stops).endswith(
        "was deleted before its work was done. The job waits for the end of pod tickets-12345678-x."
    )
    assert (state(ended), attempts(ended)[0]["gpuSeconds"]) == ("Failed", 30)
    assert "maxInterruptions allows 0" in message(ended)
