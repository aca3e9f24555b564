"""What the operator does next, for every world a job can be in."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.bundle import TerminationMessage
from finetune_api.names import LABEL_QUEUE
from finetune_api.reasons import FAILURES, FailureReason
from finetune_api.status.job import ConditionType, FineTuneJobStatus
from finetune_operator.decisions import admission
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.pods import Companion, PodCondition
from finetune_operator.observed.world import Rival, Run, World
from tests.unit.finetune_operator.worlds import (
    NOW,
    SPEC,
    attempt,
    fresh,
    pod,
    preflight,
    saying,
    validated,
    with_status,
)


def kinds(plan: Plan) -> list[str]:
    return [body["kind"] for body in plan.create]


def conditions(plan: Plan) -> dict[str, str]:
    assert plan.status is not None
    return {c["type"]: c["status"] for c in plan.status["conditions"]}


def message(plan: Plan) -> str:
    assert plan.status is not None
    return next(c["message"] for c in plan.status["conditions"] if c["type"] == "Ready")


def reason(plan: Plan) -> str:
    assert plan.status is not None
    return next(c["reason"] for c in plan.status["conditions"] if c["type"] == "Ready")


def state(plan: Plan) -> str:
    assert plan.status is not None
    return str(plan.status["state"])


def test_a_new_job_gets_its_groundwork_and_a_preflight_that_asks_for_no_gpu() -> None:
    plan = reconcile(fresh(), NOW)

    assert kinds(plan) == ["ServiceAccount", "RoleBinding", "ConfigMap", "Job"]
    assert "nvidia.com/gpu" not in str(plan.create[-1]), "of what is created only the Job can ask"
    assert (state(plan), conditions(plan)) == (
        "Pending",
        {"Ready": "False", "Reconciling": "True", "Stalled": "False"},
    )


LATER, EARLIER = NOW, NOW - timedelta(hours=1)


@pytest.mark.parametrize(
    ("rival", "starts"),
    [
        (Rival("other/mails", "b", EARLIER, begun=False), False),
        (Rival("other/mails", "b", LATER, begun=False), True),
        (Rival("other/mails", "b", LATER, begun=True), False),
    ],
)
def test_of_two_jobs_with_one_output_only_the_first_asks_for_a_gpu(rival: Rival, starts: bool) -> None:
    plan = reconcile(validated(rivals=(rival,)), NOW)

    assert ("Job" in kinds(plan)) is starts
    if not starts:
        assert (state(plan), reason(plan)) == ("Failed", "OutputOccupied")
        assert message(plan).startswith(
            "spec.output.uri: the unfinished job other/mails also writes to s3://results/run and was first."
        )


def test_an_output_inside_another_jobs_is_named() -> None:
    theirs = "s3://results/run/second"
    plan = reconcile(validated(rivals=(Rival("other/mails", "b", EARLIER, begun=False, overlapping=theirs),)), NOW)

    assert (state(plan), reason(plan)) == ("Failed", "OutputOccupied")
    assert message(plan).startswith(
        f"spec.output.uri: the unfinished job other/mails writes to {theirs} and was first. {theirs} is inside "
        "s3://results/run, so each job could overwrite results of the other."
    )


def test_two_jobs_made_in_the_same_second_do_not_both_give_way() -> None:
    mine = validated()
    theirs = Rival("other/mails", "b", mine.created, begun=False)
    plans = [
        reconcile(validated(rivals=(theirs,)), NOW),
        reconcile(validated(uid="b", rivals=(replace(theirs, uid=mine.uid),)), NOW),
    ]

    assert sorted("Job" in kinds(plan) for plan in plans) == [False, True]


def test_what_is_there_already_is_not_made_again() -> None:
    world = fresh(service_account_exists=True, role_binding_exists=True, preflight=preflight())

    assert reconcile(world, NOW).create == []


def test_a_service_account_of_the_tenants_own_is_neither_made_nor_bound() -> None:
    spec = SPEC.model_copy(update={"compute": SPEC.compute.model_copy(update={"service_account_name": "irsa"})})

    plan = reconcile(fresh(spec=spec, service_account_exists=True), NOW)

    assert kinds(plan) == ["ConfigMap", "Job"]
    assert plan.create[-1]["spec"]["template"]["spec"]["serviceAccountName"] == "irsa"


def test_a_missing_profile_is_waited_for_and_then_fails_the_job() -> None:
    world = fresh(profile=None)

    waiting = reconcile(world, NOW)
    assert (waiting.create, waiting.requeue_after, state(waiting)) == ([], admission.LOOK_AGAIN, "Pending")

    late = reconcile(world, world.created + admission.GRACE)
    assert (state(late), conditions(late)["Validated"], conditions(late)["Failed"]) == ("Failed", "False", "True")
    assert message(late) == (
        'spec.profileName: FineTuneProfile "default" does not exist. List the profiles with kubectl get '
        "finetuneprofiles, and set spec.profileName to one of them. Then create the job again."
    )


def test_a_profile_this_version_cannot_read_is_named_and_waited_for() -> None:
    world = fresh(profile=None, profile_error="spec.trainer.fleet: Extra inputs are not permitted.")

    plan = reconcile(world, NOW + timedelta(hours=1))  # an upgrade is under way, or has to be undone

    assert (state(plan), plan.create) == ("Pending", [])
    assert "spec.trainer.fleet: Extra inputs are not permitted." in message(plan)


def test_a_missing_service_account_is_named() -> None:
    spec = SPEC.model_copy(update={"compute": SPEC.compute.model_copy(update={"service_account_name": "irsa"})})

    plan = reconcile(fresh(spec=spec), NOW + timedelta(minutes=1))

    assert 'ServiceAccount "irsa" does not exist in namespace team' in message(plan)


def test_a_service_account_that_may_not_report_gets_the_command_that_binds_it() -> None:
    spec = SPEC.model_copy(update={"compute": SPEC.compute.model_copy(update={"service_account_name": "irsa"})})
    world = fresh(spec=spec, service_account_exists=True, service_account_may_report=False)

    assert (state(reconcile(world, NOW)), reconcile(world, NOW).create) == ("Pending", [])
    assert "--clusterrole finetune-trainer --serviceaccount team:irsa" in message(reconcile(world, NOW))
    assert state(reconcile(world, world.created + admission.GRACE)) == "Failed"


def test_a_spec_this_version_cannot_read_fails_at_once() -> None:
    plan = reconcile(fresh(spec=None, spec_error="spec.training.epochs: no."), NOW)

    assert (state(plan), message(plan)) == (
        "Failed",
        "spec.training.epochs: no. Correct the field and create the job again.",
    )


def test_an_output_among_the_rows_fails_at_once_but_no_job_that_has_begun() -> None:
    spec = SPEC.model_copy(update={"output": SPEC.output.model_copy(update={"uri": "s3://data//"})})

    plan = reconcile(fresh(spec=spec), NOW)

    assert (state(plan), plan.create) == ("Failed", [])
    assert message(plan).startswith(
        "spec.output.uri: spec.dataset.train[0] (s3://data/rows.jsonl) reads files from s3://data//. "
    )
    assert state(reconcile(validated(spec=spec), NOW)) != "Failed"


def test_a_running_preflight_shows_as_validating() -> None:
    plan = reconcile(fresh(preflight=preflight(pod())), NOW)

    assert plan.status is not None
    assert (plan.status["state"], plan.status["stage"]) == ("Validating", "Preflight")


def test_only_after_the_preflight_is_a_gpu_asked_for() -> None:
    plan = reconcile(validated(), NOW)

    assert kinds(plan) == ["Job"]
    (job,) = plan.create
    assert job["metadata"]["name"] == "tickets-12345678-a1"
    limits = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    assert state(plan) == "Queued"


def test_a_preflight_job_that_somebody_removed_is_not_run_again_once_it_has_spoken() -> None:
    world = saying(fresh(), ConditionType.VALIDATED)

    assert [body["metadata"]["name"] for body in reconcile(world, NOW).create if body["kind"] == "Job"] == [
        "tickets-12345678-a1"
    ]


def test_a_failed_preflight_ends_the_job_and_asks_for_nothing() -> None:
    world = fresh(preflight=preflight(pod("Failed", exit_code=21), failed=True))

    plan = reconcile(world, NOW)

    assert (plan.create, state(plan), conditions(plan)["Stalled"]) == ([], "Failed", "True")


def test_the_preflights_own_word_on_validated_is_left_alone() -> None:
    world = saying(fresh(preflight=preflight(pod("Failed", exit_code=21))), ConditionType.VALIDATED, "False")

    assert "Validated" not in conditions(reconcile(world, NOW))


@pytest.mark.parametrize(
    ("said", "stage"),
    [([], "Training"), (["Trained"], "Evaluating"), (["Trained", "Evaluated"], "Publishing")],
)
def test_the_stage_follows_what_the_attempt_says(said: list[str], stage: str) -> None:
    world = validated(attempts={1: attempt(pod())})
    for type in said:
        world = saying(world, ConditionType(type))

    plan = reconcile(world, NOW)

    assert plan.status is not None
    assert (plan.status["state"], plan.status["stage"]) == ("Running", stage)


def test_a_job_without_room_is_queued_and_says_what_it_waits_for() -> None:
    no_room = {
        "PodScheduled": PodCondition(
            "False", "Unschedulable", "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
        )
    }
    world = validated(attempts={1: attempt(pod("Pending", conditions=no_room))})

    plan = reconcile(world, NOW)

    assert state(plan) == "Queued"
    assert "Insufficient nvidia.com/gpu" in message(plan)


def test_a_finished_attempt_completes_the_job_with_its_verdict() -> None:
    evaluation = {"rows": 5, "verdict": "It was worth it.", "observedTime": "2026-01-02T03:04:05Z"}
    world = saying(
        validated(attempts={1: attempt(pod("Succeeded", exit_code=0), succeeded=True)}), ConditionType.EVALUATED
    )
    world = replace(world, raw_status={**world.raw_status, "evaluation": evaluation})
    world = with_status(world, Plan(status={"conditions": []}))

    plan = reconcile(world, NOW)

    assert (state(plan), message(plan)) == ("Complete", "It was worth it.")
    assert conditions(plan) == {"Ready": "True", "Reconciling": "False", "Stalled": "False", "Complete": "True"}
    assert plan.status is not None
    assert plan.status["attempts"][0]["reason"] == "Succeeded"


def test_a_failed_attempt_ends_the_job_and_is_recorded() -> None:
    world = validated(attempts={1: attempt(pod("Failed", exit_code=29))})

    plan = reconcile(world, NOW)

    assert plan.status is not None
    (record,) = plan.status["attempts"]
    assert (record["number"], record["reason"], record["exitCode"]) == (1, "LossDiverged", 29)
    assert message(plan).endswith(FAILURES[FailureReason.LOSS_DIVERGED].remedy)
    assert plan.events[0].type == "Warning"


def test_a_pod_that_can_never_start_is_removed_with_its_job() -> None:
    stuck = pod(
        "Pending", waiting_reason="ErrImagePull", waiting_message="not found", created=NOW - timedelta(minutes=5)
    )
    plan = reconcile(validated(attempts={1: attempt(stuck)}), NOW)

    assert plan.delete_jobs == ["tickets-12345678-a1"]
    assert plan.events[0].reason == "ImagePullFailed"


def test_kueues_queue_travels_to_the_attempt_alone() -> None:
    (job,) = reconcile(validated(queue="gpus"), NOW).create
    first = reconcile(fresh(queue="gpus"), NOW).create[-1]

    assert job["metadata"]["labels"][LABEL_QUEUE] == "gpus"
    assert "suspend" not in job["spec"]
    assert LABEL_QUEUE not in first["metadata"]["labels"]


def test_a_job_whose_failure_has_no_bound_still_ends_with_its_remedy() -> None:
    said = TerminationMessage(reason=FailureReason.DATASET_INVALID, message="row " * 2000)

    plan = reconcile(fresh(preflight=preflight(pod("Failed", termination=said))), NOW)

    assert state(plan) == "Failed"
    assert len(message(plan)) <= 4096
    assert message(plan).endswith(FAILURES[FailureReason.DATASET_INVALID].remedy)


STOPPED = {1: attempt(pod("Failed", exit_code=143))}


@pytest.mark.parametrize("attempts", [{}, STOPPED], ids=["gone", "stopped"])
@pytest.mark.parametrize(("passed", "end"), [(None, "Complete"), (True, "Complete"), (False, "Failed")])
def test_published_results_end_the_job_also_where_the_attempts_job_is_gone_or_was_stopped(
    passed: bool | None, end: str, attempts: dict[int, Run]
) -> None:
    remedy = FAILURES[FailureReason.EVALUATION_GATE_FAILED].remedy
    said = {
        "observedGeneration": 1,
        "artifacts": {
            "adapter": "s3://r/adapter",
            "report": "s3://r/report.html",
            "manifest": "s3://r/m",
            "digest": "0",
        },
        "evaluation": {"rows": 9, "verdict": "No gain.", "passed": passed, "observedTime": NOW.isoformat()},
        "conditions": [
            {
                "type": "Evaluated",
                "status": "True" if passed is not False else "False",
                "reason": "EvaluationGateFailed",
                "message": f"ExactMatch is 0.1, but its gate requires at least 0.9. No gain. {remedy}",
                "lastTransitionTime": NOW.isoformat(),
            }
        ],
    }

    plan = reconcile(validated(status=FineTuneJobStatus.model_validate(said), attempts=attempts), NOW)

    assert (state(plan), plan.create) == (end, [])
    assert message(plan).startswith("No gain." if passed is not False else "ExactMatch is 0.1, but its gate requires")
    assert message(plan).count(remedy) == (passed is False)


HELD = {"suspended": True, "queue": "gpus"}


def test_a_suspended_attempt_is_queued_and_neither_ended_nor_counted_again() -> None:
    thrown_away = pod("Failed", exit_code=33, due=NOW + timedelta(seconds=60))

    plan = reconcile(validated(attempts={1: attempt(thrown_away, **HELD)}), NOW)

    assert (state(plan), reason(plan), plan.create, plan.delete_jobs) == ("Queued", "Suspended", [], [])
    assert message(plan).endswith("and waits for admission by its queue gpus.")
    assert plan.status is not None
    assert plan.status["counts"] == {"attempts": 1}
    assert "reason" not in plan.status["attempts"][0]


def test_a_resumed_attempt_has_done_nothing_of_what_the_first_pod_had() -> None:
    world = validated(attempts={1: attempt(pod(started=NOW), begun=NOW)})
    for type in (ConditionType.TRAINED, ConditionType.EVALUATED):
        world = saying(world, type, since=NOW - timedelta(minutes=1))

    plan = reconcile(world, NOW)

    assert plan.status is not None
    assert plan.status["stage"] == "Training"


def test_a_suspended_preflight_is_queued_and_says_what_for() -> None:
    plan = reconcile(fresh(preflight=preflight(suspended=True, queue="cpu")), NOW)

    assert plan.status is not None
    assert (state(plan), reason(plan), plan.status["stage"]) == ("Queued", "Suspended", "Preflight")
    assert "admission by its queue cpu" in message(plan)


def test_a_suspended_attempt_whose_results_are_published_is_over_and_does_not_come_back() -> None:
    artifacts = {"adapter": "s3://r/a", "report": "s3://r/r", "manifest": "s3://r/m", "digest": "0"}
    world = saying(validated(attempts={1: attempt(**HELD)}), ConditionType.EVALUATED, artifacts=artifacts)

    plan = reconcile(world, NOW)

    assert (state(plan), plan.delete_jobs) == ("Complete", ["tickets-12345678-a1"])


SIDECAR = {"companions": (Companion("istio-proxy", is_running=True),), "finished": NOW - timedelta(hours=1)}


@pytest.mark.parametrize(("exit_code", "end"), [(0, "Complete"), (29, "Failed")])
def test_a_pod_that_a_sidecar_keeps_running_goes_with_its_job(exit_code: int, end: str) -> None:
    plan = reconcile(validated(attempts={1: attempt(pod(exit_code=exit_code, **SIDECAR))}), NOW)

    assert (state(plan), plan.delete_jobs) == (end, ["tickets-12345678-a1"])


def test_a_preflight_that_a_sidecar_keeps_running_goes_while_training_begins() -> None:
    done = fresh(preflight=preflight(pod(exit_code=0, **SIDECAR)))

    plan = reconcile(done, NOW)
    again = reconcile(replace(done, attempts={1: attempt()}), NOW)

    assert [body["metadata"]["name"] for body in plan.create][-1] == "tickets-12345678-a1"
    assert plan.delete_jobs == again.delete_jobs == ["tickets-12345678-preflight"]


NAN = "Loss is NaN."


def test_an_attempt_whose_pod_is_gone_ends_with_what_it_said_in_the_status() -> None:
    world = saying(validated(attempts={1: attempt(failed=True)}), ConditionType.TRAINED, "False", "LossDiverged", NAN)

    plan = reconcile(world, NOW)

    assert plan.status is not None
    assert (reason(plan), plan.status["attempts"][0]["reason"]) == ("LossDiverged", "LossDiverged")
    assert message(plan) == f"{NAN} {FAILURES[FailureReason.LOSS_DIVERGED].remedy}"


def test_what_the_pod_before_the_suspension_said_is_not_the_resumed_ones_word() -> None:
    resumed = attempt(failed=True, begun=NOW + timedelta(minutes=1))
    world = saying(
        validated(attempts={1: resumed}), ConditionType.TRAINED, "False", "Preempted", "It was told to stop."
    )

    assert reason(reconcile(world, NOW + timedelta(minutes=2))) == "Evicted"


@pytest.mark.parametrize(("said", "end"), [("LossDiverged", "Failed"), ("Preempted", "Queued")])
def test_an_attempt_whose_job_is_gone_ends_with_its_word_unless_it_was_only_told_to_stop(said: str, end: str) -> None:
    began = with_status(validated(), reconcile(validated(attempts={1: attempt(pod())}), NOW))
    world = saying(began, ConditionType.TRAINED, "False", said, NAN)

    plan = reconcile(world, NOW)

    assert (state(plan), kinds(plan)) == (end, ["Job"] if end == "Queued" else [])
    if end == "Failed":
        assert plan.status is not None
        assert plan.status["attempts"][0]["reason"] == said


@pytest.mark.parametrize(("said", "end"), [("DatasetInvalid", "Failed"), ("Preempted", "Pending")])
def test_a_preflight_whose_job_is_gone_ends_with_its_word_unless_it_was_only_told_to_stop(said: str, end: str) -> None:
    world = saying(fresh(), ConditionType.VALIDATED, "False", said, "Row 7.")

    assert state(reconcile(world, NOW)) == end


@pytest.mark.parametrize("run", [preflight(failed=True), preflight(pod("Failed", exit_code=137)), preflight(**HELD)])
def test_a_preflight_that_was_stopped_after_its_good_word_is_done(run: Run) -> None:
    plan = reconcile(saying(fresh(preflight=run), ConditionType.VALIDATED), NOW)

    assert [body["metadata"]["name"] for body in plan.create][-1] == "tickets-12345678-a1"
    assert plan.delete_jobs == (["tickets-12345678-preflight"] if run.suspended else [])


def test_a_profile_that_is_gone_for_a_while_does_not_end_a_job_that_has_begun() -> None:
    world = fresh(profile=None, preflight=preflight(pod()))

    assert state(reconcile(world, NOW + timedelta(hours=1))) == "Pending"


def test_a_job_being_deleted_is_left_to_the_garbage_collector() -> None:
    assert reconcile(fresh(deleting=True), NOW) == Plan()


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
def test_once_written_the_same_world_asks_for_no_second_write(world: World) -> None:
    after = with_status(world, reconcile(world, NOW))

    again = reconcile(after, NOW + timedelta(seconds=1))

    assert again.status is None
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
    if run is None or not run.suspended or run.failed:
        return
    if state(reconcile(world, NOW)) == "Failed":
        assert run.pod is not None
        assert not run.pod.is_leaving
