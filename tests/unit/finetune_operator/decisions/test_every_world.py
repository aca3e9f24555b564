"""What holds for the decision about every world that a job can be in."""

from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.facts.pods import Companion
from finetune_operator.observed.world import World
from tests.unit.finetune_operator.plans import conditions, reason, state
from tests.unit.finetune_operator.worlds import NOW, fresh, pod, preflight, with_status

PODS = st.one_of(
    st.none(),
    st.builds(
        pod,
        st.sampled_from(["Pending", "Running", "Succeeded", "Failed"]),
        exit_code=st.sampled_from([None, 0, 1, 21, 29, 137, 143]),
        termination_reason=st.sampled_from(["", "Error", "OOMKilled"]),
        waiting_reason=st.sampled_from(["", "ErrImagePull", "ContainerCreating"]),
        reason=st.sampled_from(["", "Evicted"]),
        due=st.sampled_from([None, NOW + timedelta(seconds=30), NOW - timedelta(hours=1)]),
        finished=st.sampled_from([None, NOW, NOW - timedelta(hours=1)]),
        companions=st.sampled_from([(), (Companion("proxy", is_running=True),)]),
    ),
)


RUNS = st.builds(
    lambda p, s, f, held: preflight(p, succeeded=s, failed=f and not s, suspended=held),
    PODS,
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


WORLDS = st.builds(
    lambda account, binding, first, second, profile: fresh(
        service_account_exists=account,
        role_binding_exists=binding,
        preflight=first,
        attempts={1: replace(second, name="tickets-12345678-a1")} if second else {},
        **({} if profile else {"profile": None}),
    ),
    st.booleans(),
    st.booleans(),
    st.one_of(st.none(), RUNS),
    st.one_of(st.none(), RUNS),
    st.booleans(),
)


@given(WORLDS)
@settings(max_examples=400)
def test_a_gpu_is_never_asked_for_unless_the_preflight_has_succeeded(world: World) -> None:
    asks = [body for body in reconcile(world, NOW).create if body["kind"] == "Job" and "nvidia.com/gpu" in str(body)]

    first = world.preflight
    ended_well = first is not None and (first.succeeded or (first.pod is not None and first.pod.trainer_succeeded))
    assert not asks or ended_well


@given(WORLDS)
@settings(max_examples=400)
def test_once_written_the_same_world_asks_for_no_second_write_unless_it_is_tried_again(world: World) -> None:
    plan = reconcile(world, NOW)
    if any(body["kind"] == "Job" for body in plan.create):
        return  # it is not the same world then
    if plan.delete_jobs and reason(plan) == "Stopping":
        return  # nor then: what the job ends for is on record now, and its Job goes
    after = with_status(world, plan)

    again = reconcile(after, NOW + timedelta(seconds=1))

    assert again.status is None or any(body["kind"] == "Job" for body in again.create)
    assert again.events == []


@given(WORLDS)
@settings(max_examples=400)
def test_a_job_that_has_ended_is_never_touched_again(world: World) -> None:
    after = with_status(world, reconcile(world, NOW))
    if after.is_over:
        assert reconcile(after, NOW + timedelta(days=1)) == Plan()


@given(WORLDS)
@settings(max_examples=400)
def test_exactly_one_of_ready_reconciling_and_stalled_holds(world: World) -> None:
    told = conditions(reconcile(world, NOW))

    assert [told[name] for name in ("Ready", "Reconciling", "Stalled")].count("True") == 1


@given(WORLDS)
@settings(max_examples=400)
def test_a_job_that_has_ended_leaves_no_job_that_holds_or_starts_a_pod(world: World) -> None:
    plan = reconcile(world, NOW)
    if plan.status is not None and plan.status["state"] in ("Complete", "Failed"):
        runs = [run for run in (world.preflight, *world.attempts.values()) if run is not None]
        assert {run.name for run in runs if run.is_live} <= set(plan.delete_jobs)


@given(WORLDS)
@settings(max_examples=400)
def test_an_attempt_whose_job_is_suspended_fails_only_by_a_pod_that_is_not_thrown_away(world: World) -> None:
    run = world.attempts.get(1)
    if run is None or not run.suspended or run.failed or run.succeeded or (run.pod and run.pod.trainer_succeeded):
        return  # the trainer never ends well when it is asked to stop
    if state(reconcile(world, NOW)) == "Failed":
        assert run.pod is not None
        assert not run.pod.is_leaving
