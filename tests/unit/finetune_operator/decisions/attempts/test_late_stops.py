"""A stop that comes when the trainer has ended already, and what a stopped job is told about its deadline."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason
from finetune_api.spec.run_policy import Budget, RunPolicy
from finetune_api.status.job import ConditionType
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.facts.pods import Companion, Pod, PodCondition
from finetune_operator.observed.world import World
from tests.unit.finetune_operator.decisions.attempts.recorded import HOUR, attempts
from tests.unit.finetune_operator.plans import message, state
from tests.unit.finetune_operator.worlds import ARTIFACTS, NOW, SPEC, attempt, pod, saying, validated, with_status

STOPS: dict[str, dict[str, Any]] = {
    "suspend": {"suspend": True},
    "budget": {"run_policy": RunPolicy(budget=Budget(gpu_hours=1))},
    "deadline": {"run_policy": RunPolicy(active_deadline_seconds=3600)},
}
PLACED_AN_HOUR_AGO = {"PodScheduled": PodCondition("True", "", "", since=NOW - HOUR)}
SIDECAR = Companion("istio-proxy", is_running=True)


def ended(reason: FailureReason | None = None, **more: Any) -> Pod:
    """A pod that has trained for an hour and has just ended: well, or for this reason."""
    code = 0 if reason is None else 1
    said = TerminationMessage(reason=reason or "Succeeded", message="It ended.")
    about = {"started": NOW - HOUR, "conditions": PLACED_AN_HOUR_AGO, "finished": NOW, "exit_code": code}
    return pod(**{**about, "termination": said, **more})


def hour_old(nodes: int = 1) -> World:
    """A job whose attempt has trained for an hour, as it was recorded at its start."""
    running = {"started": NOW - HOUR, "conditions": PLACED_AN_HOUR_AGO}
    pods = [pod(name=f"p{i}", index=i, node_name=f"n{i}", **running) for i in range(nodes)]
    spec = SPEC.model_copy(update={"compute": SPEC.compute.model_copy(update={"nodes": nodes})})
    world = validated(spec=spec, attempts={1: attempt(nodes=nodes).with_pods(pods)})
    return with_status(world, reconcile(world, NOW - HOUR))


def stopped(world: World, pods: list[Pod], stop: dict[str, Any]) -> World:
    """The world after the stop, while something of the attempt still runs."""
    assert world.spec
    run = attempt(nodes=len(pods)).with_pods(pods)
    late = replace(world, attempts={1: run}, spec=world.spec.model_copy(update=stop))
    return with_status(late, reconcile(late, NOW + timedelta(seconds=5)))


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("cause", [FailureReason.GPU_FAULT, FailureReason.GPU_OUT_OF_MEMORY])
def test_the_cause_of_an_end_before_the_stop_stays_while_a_sidecar_runs(
    cause: FailureReason, stop: dict[str, Any]
) -> None:
    """The next attempt must avoid the node, or halve its micro-batches."""
    world = stopped(hour_old(), [ended(cause, companions=(SIDECAR,))], stop)

    (record,) = world.raw_status["attempts"]
    assert (record["reason"], record["message"]) == (cause, "It ended.")


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_the_cause_of_an_end_before_the_stop_stays_while_the_pods_of_other_nodes_run(stop: dict[str, Any]) -> None:
    other = pod(name="p0", index=0, node_name="n0", started=NOW - HOUR, conditions=PLACED_AN_HOUR_AGO)
    failed = ended(FailureReason.GPU_FAULT, phase="Failed", name="p1", index=1, node_name="n1")

    (record,) = stopped(hour_old(nodes=2), [other, failed], stop).raw_status["attempts"]

    assert record["reason"] == FailureReason.GPU_FAULT


@pytest.mark.parametrize("cause", [FailureReason.PREEMPTED, FailureReason.PEER_LOST])
def test_an_end_that_is_an_interruption_or_may_be_one_is_that_of_the_stop(cause: FailureReason) -> None:
    world = stopped(hour_old(), [ended(cause, companions=(SIDECAR,))], STOPS["suspend"])

    assert world.raw_status["attempts"][0]["reason"] == "Suspended"


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_a_job_that_has_published_is_not_stopped_while_a_sidecar_runs(stop: dict[str, Any]) -> None:
    published = saying(hour_old(), ConditionType.EVALUATED, artifacts=ARTIFACTS)

    world = stopped(published, [ended(companions=(SIDECAR,))], stop)
    assert world.raw_status["attempts"][0].get("reason") is None

    plan = reconcile(world, NOW + timedelta(seconds=31))
    assert (state(plan), attempts(plan)[0]["reason"]) == ("Complete", "Succeeded")


@pytest.mark.parametrize("stop", ["suspend", "budget"])
def test_a_stopped_job_is_told_until_when_it_can_be_resumed(stop: str) -> None:
    policy = RunPolicy(active_deadline_seconds=7200, budget=Budget(gpu_hours=1))
    running = pod(started=NOW - HOUR, conditions=PLACED_AN_HOUR_AGO)

    world = stopped(hour_old(), [running], STOPS[stop] | {"run_policy": policy})

    assert message(reconcile(replace(world, attempts={}), NOW + HOUR / 2)).endswith(
        f" If it is resumed after {NOW + HOUR:%Y-%m-%d %H:%M:%S} UTC, it fails at its deadline "
        "(spec.runPolicy.activeDeadlineSeconds): raise that field in the same change."
    )


@pytest.mark.parametrize(
    ("end", "state_then"), [("failed", "Pending"), ("succeeded", "Complete"), ("suspended", "Queued")]
)
def test_a_pod_that_ended_while_the_operator_was_away_is_paid_until_its_job_ended_or_stopped(
    end: str, state_then: str
) -> None:
    gone = attempt(pods_end_by=NOW, queue="gpus", **{end: True})
    world = saying(hour_old(), ConditionType.EVALUATED, artifacts=ARTIFACTS) if end == "succeeded" else hour_old()

    plan = reconcile(replace(world, attempts={1: gone}), NOW + 10 * HOUR)

    assert plan.status is not None
    assert (plan.status["gpuSeconds"], attempts(plan)[0]["completionTime"]) == (3600, "2026-01-02T03:04:05Z")
    assert state(plan) == state_then


def test_a_pod_whose_job_was_stopped_and_started_again_while_the_operator_was_away_is_paid_until_the_start() -> None:
    placed = {"PodScheduled": PodCondition("True", "", "", since=NOW + 9 * HOUR)}
    second = pod(name="second", started=NOW + 9 * HOUR, conditions=placed)
    again = attempt(second, queue="gpus", begun=NOW)

    plan = reconcile(replace(hour_old(), attempts={1: again}), NOW + 10 * HOUR)

    first = attempts(plan)[0]["pods"][0]
    assert (first["startTime"], first["completionTime"]) == ("2026-01-02T02:04:05Z", "2026-01-02T03:04:05Z")
    assert attempts(plan)[0]["gpuSeconds"] == 3600


def test_a_pod_that_has_its_node_before_its_resumed_job_says_so_is_of_this_life() -> None:
    """The Job controller creates the pods of a resumed Job before it writes startTime."""
    gone = attempt(queue="gpus", begun=NOW - HOUR + timedelta(seconds=5), pods_end_by=NOW, failed=True)

    plan = reconcile(replace(hour_old(), attempts={1: gone}), NOW + 10 * HOUR)

    assert attempts(plan)[0]["gpuSeconds"] == 3600


@pytest.mark.parametrize(("hours", "told"), [(1e6, "1000000"), (123456.5, "123456.5"), (0.5, "0.5")])
def test_a_budget_is_told_with_all_its_digits(hours: float, told: str) -> None:
    policy = RunPolicy(budget=Budget(gpu_hours=hours))
    world = replace(hour_old(), spec=SPEC.model_copy(update={"run_policy": policy}))

    late = NOW - HOUR + hours * HOUR
    assert message(reconcile(world, late)).startswith(f"The job has used its budget of {told} GPU hours (")
