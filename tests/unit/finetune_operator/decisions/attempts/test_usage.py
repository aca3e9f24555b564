"""The time for which pods held their GPUs is never negative. The operator may start again on a node whose clock is
behind, and the clock of the API server may be set back."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.status.attempts import Attempt
from finetune_operator.decisions.attempts import usage
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.facts.pods import Pod, PodCondition
from tests.unit.finetune_operator.decisions.attempts.recorded import HOUR, attempts
from tests.unit.finetune_operator.worlds import NOW, PLACED, attempt, pod, validated, with_status

ENDS = ("runs", "fails", "is lost", "is gone", "the job ends")
MOMENTS = st.integers(-120, 120).map(lambda minutes: NOW + timedelta(minutes=minutes))


@given(moments=st.tuples(*[MOMENTS] * 7), end=st.sampled_from(ENDS), repeats=st.booleans())
def test_no_recorded_time_is_negative_whatever_the_clocks_say(
    moments: tuple[datetime, ...], end: str, repeats: bool
) -> None:
    placed, again, finished, due, *looks = moments

    def shown(name: str, since: datetime) -> Pod:
        return pod(name=name, conditions={"PodScheduled": PodCondition("True", "", "", since=since)})

    pods = [shown("p1", placed), *([shown("p2", again)] if repeats else [])]
    record = Attempt(number=1, name="a")
    for count, now in enumerate(looks[: len(pods)], start=1):
        record = usage.with_pods(record, attempt().with_pods(pods[:count]), False, now)
    changes = {"fails": {"exit_code": 1, "finished": finished}, "is lost": {"due": due}}.get(end, {})
    left = [] if end == "is gone" else [replace(each, **changes) for each in pods]
    record = usage.with_pods(record, attempt().with_pods(left), False, looks[-1])
    if end == "the job ends":
        record = usage.closed(record, looks[-1])

    for each in (record, *(record.pods or ())):
        assert each.start_time is not None
        assert each.completion_time is None or each.start_time <= each.completion_time
    assert (record.gpu_seconds or 0) >= 0


@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_pod_that_is_gone_when_the_clock_is_behind_costs_nothing(is_deleted: bool) -> None:
    world = validated(attempts={1: attempt(pod(conditions=PLACED))})
    world = with_status(world, reconcile(world, NOW))
    gone = {} if is_deleted else {1: attempt(failed=True)}

    (record,) = attempts(reconcile(replace(world, attempts=gone), NOW - HOUR))

    assert (record["completionTime"], record["gpuSeconds"]) == (record["startTime"], 0)
