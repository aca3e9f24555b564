"""A node whose clock is wrong neither hides the time of its pods, nor keeps their GPUs."""

from datetime import timedelta

import pytest

from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.pods import Pod
from finetune_operator.observed.gang_ends import OTHERS_LIMIT
from finetune_operator.observed.runs import SIDECAR_GRACE, assess
from finetune_operator.observed.standing import Standing
from tests.unit.finetune_operator.decisions.attempts.recorded import attempts
from tests.unit.finetune_operator.plans import message
from tests.unit.finetune_operator.skewed import AT_ONCE, HOUR, PLACED, RAN, on_a_node
from tests.unit.finetune_operator.worlds import attempt, pod, validated

SEEN = PLACED + RAN + AT_ONCE
CLOCKS = pytest.mark.parametrize("hours", [-1, 0, 1], ids=["behind", "right", "ahead"])


@CLOCKS
def test_a_pod_is_paid_for_its_whole_time_and_the_pause_begins_at_its_end(hours: int) -> None:
    failed = Pod.parse(on_a_node(hours * HOUR, exit_code=26))

    for seen in (SEEN, SEEN + 9 * HOUR):  # the operator may have been away
        plan = reconcile(validated(attempts={1: attempt(failed, failed=True)}), seen)
        (record,) = attempts(plan)
        assert RAN <= timedelta(seconds=record["gpuSeconds"]) <= RAN + AT_ONCE
    plan = reconcile(validated(attempts={1: attempt(failed, failed=True)}), SEEN)
    assert "Attempt 2 starts at 03:40:1" in message(plan)


@CLOCKS
def test_a_sidecar_keeps_the_gpu_for_its_grace_only(hours: int) -> None:
    beside = attempt(Pod.parse(on_a_node(hours * HOUR, exit_code=26, sidecar="proxy")))

    early, late = assess(beside, PLACED + RAN), assess(beside, SEEN + SIDECAR_GRACE)

    assert (early.standing, late.standing) == (Standing.RUNNING, Standing.FAILED)


@CLOCKS
def test_a_second_pod_that_hangs_keeps_the_gpus_for_its_grace_only(hours: int) -> None:
    ended = Pod.parse(on_a_node(hours * HOUR, exit_code=26))
    hangs = pod("Running", name="p1", index=1, created=PLACED, started=PLACED)
    both = Run("tickets-a1", PLACED, nodes=2, begun=PLACED).with_pods([ended, hangs])

    early, late = assess(both, PLACED + RAN), assess(both, SEEN + OTHERS_LIMIT)

    assert (early.standing, late.standing) == (Standing.RUNNING, Standing.FAILED)
