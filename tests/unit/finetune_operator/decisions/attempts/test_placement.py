"""An attempt that avoids nodes with a broken GPU waits for another node, and never for ever."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from finetune_operator.decisions.attempts.placement import CLOSED_LIMIT, IN_USE_LIMIT, NO_NODE_LIMIT
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.facts.pods import PodCondition
from finetune_operator.observed.world import World
from tests.unit.finetune_operator.decisions.attempts.recorded import second
from tests.unit.finetune_operator.plans import message, reason, state
from tests.unit.finetune_operator.worlds import NOW, attempt, pod, run, validated, with_status

SECOND = timedelta(seconds=1)
AVOIDED = "1 node(s) didn't match Pod's node affinity/selector"
IN_USE = (
    "preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful"
)
NEVER = "preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
MAY_NOT = "preemption: not eligible due to preemptionPolicy=Never."
TAINT = "1 node(s) had untolerated taint(s) {team: other}"
WAITS = {
    f"0/1 nodes are available: {AVOIDED}. {NEVER}": NO_NODE_LIMIT,
    f"0/2 nodes are available: 1 Insufficient nvidia.com/gpu, {AVOIDED}. {NEVER}": NO_NODE_LIMIT,
    f"0/2 nodes are available: 1 Insufficient memory, {AVOIDED}. {NEVER}": NO_NODE_LIMIT,
    f"0/2 nodes are available: 1 node(s) had volume node affinity conflict, {AVOIDED}. {NEVER}": NO_NODE_LIMIT,
    f"0/2 nodes are available: {AVOIDED}, 1 Insufficient nvidia.com/gpu.": NO_NODE_LIMIT,
    f"0/2 nodes are available: {AVOIDED}, {TAINT}. {NEVER}": CLOSED_LIMIT,
    f"0/2 nodes are available: {AVOIDED}, {TAINT}. {MAY_NOT}": CLOSED_LIMIT,
    f"0/2 nodes are available: {AVOIDED}, 1 node(s) had untolerated taint {{a: b}}. {NEVER}": CLOSED_LIMIT,
    f"0/2 nodes are available: {AVOIDED}, 1 node(s) were unschedulable. {NEVER}": CLOSED_LIMIT,
    f"0/3 nodes are available: 1 Insufficient cpu, {AVOIDED}, {TAINT}. {NEVER}": CLOSED_LIMIT,
    f"0/2 nodes are available: 1 Insufficient nvidia.com/gpu, {AVOIDED}. {IN_USE}": IN_USE_LIMIT,
    f"0/2 nodes are available: 1 Insufficient cpu, {AVOIDED}. {IN_USE}": IN_USE_LIMIT,
    f"0/2 nodes are available: 1 Too many pods, {AVOIDED}. {IN_USE}": IN_USE_LIMIT,
    f"0/2 nodes are available: 1 Insufficient nvidia.com/gpu, {AVOIDED}. {MAY_NOT}": IN_USE_LIMIT,
    f"0/3 nodes are available: 1 Insufficient nvidia.com/gpu, {AVOIDED}, {TAINT}. {IN_USE}": IN_USE_LIMIT,
}


def waiting(said: str, reason: str = "Unschedulable", exit_code: int = 31) -> World:
    """The GPU of the first attempt failed on n1. The pod of the second has no node, and the scheduler says why."""
    broken = pod("Failed", exit_code=exit_code, finished=NOW)
    world = validated(attempts={1: attempt(broken, failed=True)})
    world = with_status(world, reconcile(world, NOW))
    world = with_status(world, reconcile(world, NOW))
    waits = pod("Pending", name="p2", conditions={"PodScheduled": PodCondition("False", reason, said, NOW)})
    return replace(world, attempts={**world.attempts, 2: second(waits)})


def after(world: World, time: timedelta) -> Plan:
    return reconcile(world, NOW + time)


def end_of(world: World, now: datetime) -> Plan:
    """Return the plan that ends the job. Before it, the end of the attempt is put on record, and its Job deleted."""
    number = max(world.attempts)
    plan = reconcile(world, now)
    assert (state(plan), plan.is_final) == ("Pending", False)
    assert plan.delete_jobs == [world.attempts[number].name]
    left = {each: run for each, run in world.attempts.items() if each != number}
    return reconcile(replace(with_status(world, plan), attempts=left), now)


@pytest.mark.parametrize(("said", "limit"), WAITS.items())
def test_the_wait_ends_by_what_the_scheduler_says_of_the_other_nodes(said: str, limit: timedelta) -> None:
    world = waiting(said)

    before, ended = after(world, limit - SECOND), end_of(world, NOW + limit)

    assert (state(before), reason(before), before.requeue_after) == ("Queued", "WaitingForGPU", SECOND)
    assert (state(ended), reason(ended), ended.create) == ("Failed", "GPUFault", [])


def test_the_waiting_job_says_what_helps_and_when_the_wait_ends() -> None:
    told = message(after(waiting(f"0/2 nodes are available: {AVOIDED}, {TAINT}. {NEVER}"), SECOND))

    assert "remove the taint" in told
    assert told.endswith(
        "It does not use n1, because earlier attempts failed there. The job fails at 2026-01-02 04:04 UTC if no other "
        "node can run the pod by then."
    )


def test_the_failed_job_says_for_how_long_it_waited_and_what_the_scheduler_found() -> None:
    said = f"0/2 nodes are available: {AVOIDED}, {TAINT}. {NEVER}"

    told = message(end_of(waiting(said), NOW + CLOSED_LIMIT))

    assert told.startswith(
        f"A GPU failed on n1, and no other node has taken the pod for 1 h: {said} What helps: correct nodeSelector"
    )
    assert "Check the GPU and the driver of the node." in told
    assert "for 10 min: " in message(after(waiting(f"0/1 nodes are available: {AVOIDED}."), NO_NODE_LIMIT))


NO_NODE = f"0/2 nodes are available: 1 Insufficient nvidia.com/gpu, {AVOIDED}. {NEVER}"
CLOSED = f"0/2 nodes are available: {AVOIDED}, 1 node(s) had untolerated taint(s) {{unreachable}}. {NEVER}"
BUSY = f"0/2 nodes are available: 1 Insufficient nvidia.com/gpu, {AVOIDED}. {IN_USE}"


def now_said(said: str, since: timedelta, gated: bool = False) -> World:
    """The pod has no node since NOW. The scheduler says this since a later time. `gated`: the pod had a scheduling gate
    first, so Kubernetes tells no time at which the scheduler began."""
    world = waiting(BUSY)
    run = world.attempts[2]
    assert run.pod is not None
    scheduled = PodCondition("False", "Unschedulable", said, None if gated else NOW, said_since=NOW + since)
    changed = replace(run.pod, conditions={"PodScheduled": scheduled})
    waits = replace(run.with_pods([changed]), created=NOW - 2 * IN_USE_LIMIT)  # its queue held the Job back
    return replace(world, attempts={**world.attempts, 2: waits})


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("hours", [2, 20])
@pytest.mark.parametrize(("said", "limit"), [(NO_NODE, NO_NODE_LIMIT), (CLOSED, CLOSED_LIMIT)])
def test_a_node_that_is_away_for_a_moment_does_not_end_a_long_wait(
    said: str, limit: timedelta, hours: int, gated: bool
) -> None:
    """The other node is in use. After hours its kubelet or its device plugin is restarted."""
    changed = timedelta(hours=hours)
    world = now_said(said, changed, gated)

    at_once, before = (after(world, changed + time) for time in (timedelta(0), limit - SECOND))
    ended = end_of(world, NOW + changed + limit)

    assert [(state(plan), plan.requeue_after) for plan in (at_once, before)] == [("Queued", limit), ("Queued", SECOND)]
    assert (state(ended), reason(ended)) == ("Failed", "GPUFault")
    assert f"no other node has taken the pod for {(changed + limit) // timedelta(hours=1)} h: {said}" in message(ended)
    back = after(now_said(BUSY, changed + SECOND, gated), changed + SECOND)
    assert back.requeue_after == IN_USE_LIMIT - changed - SECOND, "a flap does not begin the wait again"


@pytest.mark.parametrize("said", [NO_NODE, CLOSED, BUSY])
def test_words_that_change_again_and_again_do_not_keep_a_job_for_ever(said: str) -> None:
    world = now_said(said, IN_USE_LIMIT - SECOND)

    before, ended = after(world, IN_USE_LIMIT - SECOND), end_of(world, NOW + IN_USE_LIMIT)

    assert (state(before), before.requeue_after) == ("Queued", SECOND)
    assert (state(ended), reason(ended)) == ("Failed", "GPUFault")
    assert "no other node has taken the pod for 24 h: " in message(ended)


@pytest.mark.parametrize(
    "world",
    [
        waiting(f"0/2 nodes are available: {AVOIDED}, {TAINT}. {NEVER}", exit_code=26),
        waiting("Scheduling is blocked due to non-empty scheduling gates", reason="SchedulingGated"),
        waiting("the scheduler failed", reason="SchedulerError"),
    ],
    ids=["no node is avoided", "a scheduling gate", "an error of the scheduler"],
)
def test_other_waits_for_a_node_have_no_limit(world: World) -> None:
    plan = after(world, 10 * IN_USE_LIMIT)

    assert (state(plan), plan.delete_jobs) == ("Queued", [])


def test_a_job_that_can_only_run_on_a_node_that_does_not_start_it_fails_with_that_reason() -> None:
    """The node refused two attempts in a row. Nothing is known against its GPU."""
    refused = pod("Failed", started=None, reason="UnexpectedAdmissionError", message="Allocate failed")
    said = PodCondition("False", "Unschedulable", f"0/1 nodes are available: {AVOIDED}.", NOW)
    world, now = validated(), NOW
    for number, each in enumerate((refused, refused, pod("Pending", conditions={"PodScheduled": said})), 1):
        ended = run(f"tickets-12345678-a{number}", replace(each, name=f"p{number}"), failed=each is refused)
        world = replace(world, attempts={**world.attempts, number: ended})
        for _ in range(2):
            world, now = with_status(world, reconcile(world, now)), now + timedelta(seconds=30)

    before, after_it = reconcile(world, NOW + NO_NODE_LIMIT - SECOND), end_of(world, NOW + NO_NODE_LIMIT)

    told = next(condition["message"] for condition in world.raw_status["conditions"] if condition["type"] == "Ready")
    assert "It does not use n1, because earlier attempts failed there." in told
    assert before.requeue_after == SECOND
    assert (state(after_it), reason(after_it)) == ("Failed", "NodeFault")
    assert message(after_it).startswith("Attempts were not started on n1, and no other node has taken the pod for 10")
    assert "the device plugin of the nodes" in message(after_it)
