"""What a failed job has left in the storage is deleted once, in time, and told. The state of the job stays."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api import names
from finetune_api.bundle import TerminationMessage
from finetune_api.reasons import FailureReason
from finetune_api.spec.run_policy import RunPolicy
from finetune_api.status.job import FineTuneJobStatus
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile, refused
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.claims import Claim
from finetune_operator.observed.facts.pods import Companion, Pod
from finetune_operator.observed.runs import SIDECAR_GRACE
from finetune_operator.observed.world import World
from tests.unit.finetune_operator.plans import kinds
from tests.unit.finetune_operator.worlds import (
    NOW,
    PROFILE,
    SPEC,
    UID,
    attempt,
    fresh,
    pod,
    preflight,
    published,
    run,
    with_status,
)

WEEK = timedelta(days=7)
CLEANUP = "tickets-12345678-cleanup"
CHILDREN = ("tickets-12345678-preflight", "tickets-12345678-a1")
DONE = TerminationMessage(reason="Succeeded", message="Deleted 3 objects (0.3 MB) below s3://results/run/.work/u.")
DENIED = TerminationMessage(reason=FailureReason.STORAGE_ACCESS_DENIED, message="Access to s3://results is denied.")


def failed(**changes: Any) -> World:
    """A job that failed at NOW, as it is seen when its checkpoints are due: spec and status are read live."""
    world = fresh(preflight=preflight(pod("Failed", exit_code=21)))
    ended = {"ended_at": NOW, "keep": WEEK, "children": CHILDREN, "cleanup_has_turn": True, "preflight": None}
    return replace(with_status(world, reconcile(world, NOW)), **{**ended, **changes})


def due(**changes: Any) -> Plan:
    return reconcile(failed(**changes), NOW + WEEK)


def test_nothing_is_done_before_the_checkpoints_are_due() -> None:
    plan = reconcile(failed(spec=None), NOW + WEEK - timedelta(seconds=1))

    assert plan == Plan(requeue_after=timedelta(seconds=1))


def test_a_failed_job_is_looked_at_again_when_its_checkpoints_or_its_children_are_due() -> None:
    bad = preflight(pod("Failed", exit_code=21))
    hour = RunPolicy(keep_checkpoints_seconds=7200, ttl_seconds_after_finished=3600)

    assert reconcile(fresh(preflight=bad), NOW).requeue_after == WEEK
    spec = SPEC.model_copy(update={"run_policy": RunPolicy(keep_checkpoints_seconds=0)})
    assert reconcile(fresh(preflight=bad, spec=spec), NOW).requeue_after == timedelta(0)
    spec = SPEC.model_copy(update={"run_policy": hour})
    assert reconcile(fresh(preflight=bad, spec=spec), NOW).requeue_after == timedelta(hours=1)
    done = {1: attempt(pod("Succeeded", exit_code=0), succeeded=True)}
    assert reconcile(published(attempts=done), NOW).requeue_after is None


def test_the_cleanup_is_a_small_restricted_job_with_the_tenants_identity_keys_and_bundle() -> None:
    plan = due()

    assert kinds(plan) == ["ServiceAccount", "RoleBinding", "ConfigMap", "Job"]
    assert (plan.status, plan.events, plan.delete_jobs) == (None, [], [])
    job = plan.create[-1]
    assert job["metadata"]["name"] == CLEANUP == names.cleanup_name("tickets", UID)
    assert job["metadata"]["ownerReferences"][0]["uid"] == UID
    assert job["spec"]["backoffLimit"] == 6
    template = job["spec"]["template"]["spec"]
    (container,) = template["containers"]
    assert container["args"] == ["cleanup", f"{names.BUNDLE_FOLDER}/{names.BUNDLE_KEY}"]
    assert "nvidia.com/gpu" not in str(job)
    assert container["resources"]["requests"] == {"cpu": "100m", "memory": "256Mi"}
    assert template["serviceAccountName"] == names.TRAINER_SERVICE_ACCOUNT
    assert template["securityContext"]["runAsNonRoot"]
    assert [v["secret"]["secretName"] for v in template["volumes"] if "secret" in v] == ["read", "write"]


def test_the_cleanup_waits_in_the_queue_of_the_preflight() -> None:
    pods = PROFILE.pods.model_copy(
        update={"preflight": PROFILE.pods.preflight.model_copy(update={"queue_name": "small"})}
    )

    labels = due(profile=PROFILE.model_copy(update={"pods": pods})).create[-1]["metadata"]["labels"]

    assert (labels[names.LABEL_QUEUE], labels[names.LABEL_STEP]) == ("small", "cleanup")


def test_the_cleanup_is_created_once() -> None:
    assert due(cleanup=run(CLEANUP)).create == []
    assert due(cleanup=run(CLEANUP, pod("Failed", exit_code=20))).status is None, "Kubernetes repeats it"


def test_a_pod_that_still_stops_may_store_a_checkpoint_and_is_waited_for() -> None:
    stopping = pod(due=NOW + WEEK + timedelta(seconds=20))
    lost = pod(due=NOW)

    assert due(trainers=(stopping,)) == Plan(requeue_after=timedelta(minutes=1))
    assert kinds(due(trainers=(lost, pod("Failed", exit_code=33))))[-1] == "Job"


def test_a_job_without_a_turn_asks_again_and_thousands_do_not_ask_together() -> None:
    uids = [f"{number * 7919:08x}-aaaa" for number in range(1000)]

    pauses = [due(cleanup_has_turn=False, spec=None, uid=uid).requeue_after for uid in uids]

    seconds = [pause.total_seconds() for pause in pauses if pause]
    assert (min(seconds), max(seconds)) == (30, 90)
    assert max(seconds.count(second) for second in seconds) < 40


@pytest.mark.parametrize("missing", ["profile", "spec"])
def test_without_a_readable_profile_and_spec_the_cleanup_waits(missing: str) -> None:
    assert due(**{missing: None}) == Plan(requeue_after=timedelta(hours=1))


def test_the_end_of_the_cleanup_is_on_record_and_the_state_of_the_job_stays() -> None:
    world = failed(cleanup=run(CLEANUP, pod("Succeeded", exit_code=0, termination=DONE), succeeded=True))

    plan = reconcile(world, NOW + WEEK)

    assert plan.status is not None
    *before, told = plan.status["conditions"]
    assert (told["type"], told["status"], told["reason"]) == ("CheckpointsDeleted", "True", "Deleted")
    assert told["message"] == DONE.message
    assert plan.status == {**world.raw_status, "conditions": [*before, told]}
    assert before == world.raw_status["conditions"]
    assert (plan.events, plan.create) == ([], [])
    FineTuneJobStatus.model_validate(plan.status)


def test_the_end_of_the_cleanup_is_on_record_also_if_the_time_to_keep_was_raised_while_it_ran() -> None:
    ended = run(CLEANUP, pod("Succeeded", exit_code=0, termination=DONE), succeeded=True)

    plan = reconcile(failed(cleanup=ended, keep=2 * WEEK), NOW + WEEK)

    assert plan.status is not None
    assert plan.status["conditions"][-1]["type"] == "CheckpointsDeleted"


PREEMPTED = TerminationMessage(reason=FailureReason.PREEMPTED, message="The pod was asked to stop.")


@pytest.mark.parametrize("left", [None, pod("Failed", exit_code=33, termination=PREEMPTED), pod("Pending")])
def test_a_cleanup_that_reached_its_deadline_says_where_the_cause_is_shown(left: Pod | None) -> None:
    said = "DeadlineExceeded: Job was active longer than specified deadline"

    (event,) = due(cleanup=run(CLEANUP, left, failed=True, failure=said)).events

    assert event.message == (
        f"The temporary objects in .work/{UID}/ below spec.output.uri were not deleted. Job {CLEANUP} had not ended "
        "when its time was over (activeDeadlineSeconds, 3600 s). Its pod could not start, for example because of a "
        "quota or an image, or the storage was too slow: kubectl get events --namespace team shows the cause for about "
        "an hour. Delete this folder yourself, or let the lifecycle rule of the bucket do it: see docs/install.md."
    )


def test_what_the_pod_of_a_cleanup_said_comes_before_its_deadline() -> None:
    ended = pod("Failed", exit_code=25, termination=DENIED)

    (event,) = due(cleanup=run(CLEANUP, ended, failed=True, failure="DeadlineExceeded: Late")).events

    assert "were not deleted. Access to s3://results is denied. Delete" in event.message


def test_a_cleanup_that_failed_for_good_is_told_in_a_warning_with_its_cause_and_remedy() -> None:
    ended = run(CLEANUP, pod("Failed", exit_code=25, termination=DENIED), failed=True)

    plan = due(cleanup=ended)

    (event,) = plan.events
    assert (event.type, event.reason) == ("Warning", "CleanupFailed")
    assert event.message == (
        f"The temporary objects in .work/{UID}/ below spec.output.uri were not deleted. Access to s3://results is "
        "denied. Delete this folder yourself, or let the lifecycle rule of the bucket do it: see docs/install.md."
    )
    assert plan.status is not None
    assert (plan.status["state"], plan.status["conditions"][-1]["status"]) == ("Failed", "False")


PROXY = Companion("proxy", is_running=True)


@pytest.mark.parametrize(
    ("exit_code", "termination", "status", "said"),
    [
        (0, DONE, "True", DONE.message),
        (
            25,
            DENIED,
            "False",
            "Access to s3://results is denied. The pod and its log were removed, because container proxy did not stop.",
        ),
    ],
    ids=["deleted", "failed"],
)
def test_the_end_of_a_cleanup_beside_a_sidecar_is_that_of_its_own_container(
    exit_code: int, termination: TerminationMessage, status: str, said: str
) -> None:
    """Else the Job would fail after an hour, and until then keep the turn of another cleanup."""
    at = NOW + WEEK
    beside = pod("Running", exit_code=exit_code, finished=at, termination=termination, companions=(PROXY,))
    world = failed(cleanup=run(CLEANUP, beside))

    early, late = reconcile(world, at), reconcile(world, at + SIDECAR_GRACE)

    assert (early.status, early.delete_jobs, early.requeue_after) == (None, [], SIDECAR_GRACE)
    assert late.status is not None
    told = late.status["conditions"][-1]
    assert (told["type"], told["status"], late.delete_jobs) == ("CheckpointsDeleted", status, [CLEANUP])
    assert said in told["message"]


def test_a_cleanup_whose_pod_is_replaced_has_not_ended() -> None:
    at = NOW + WEEK
    drained = pod("Running", exit_code=143, finished=at, due=at + timedelta(seconds=30), companions=(PROXY,))

    plan = reconcile(failed(cleanup=run(CLEANUP, drained)), at + SIDECAR_GRACE)

    assert (plan.status, plan.delete_jobs) == (None, [])


def test_a_refused_cleanup_is_told_and_the_status_stays() -> None:
    plan = refused(failed(), "The API server refused Job x: no quota.", NOW + WEEK)

    assert (plan.status, plan.create) == (None, [])
    assert [(e.type, e.reason, e.message) for e in plan.events] == [
        ("Warning", "CleanupRefused", "The API server refused Job x: no quota.")
    ]


IN_A_CLAIM = SPEC.model_copy(update={"output": SPEC.output.model_copy(update={"uri": "pvc://results/run"})})
GONE = [None, Claim("Bound", volume="pv-1", is_leaving=True), Claim("Lost", volume="pv-1")]


@pytest.mark.parametrize("claim", GONE, ids=["deleted", "being deleted", "without a volume"])
@pytest.mark.parametrize("cleanup", [None, run(CLEANUP)], ids=["before", "after the creation"])
def test_without_the_claim_of_the_output_the_cleanup_ends_at_once(claim: Claim | None, cleanup: Run | None) -> None:
    """A pod would wait for the claim for an hour, and keep the turn of another cleanup."""
    plan = due(spec=IN_A_CLAIM, claims={"results": claim}, cleanup=cleanup)

    assert plan.status is not None
    told = plan.status["conditions"][-1]
    assert (told["type"], told["status"], told["reason"]) == ("CheckpointsDeleted", "True", "ClaimGone")
    assert told["message"].startswith("PersistentVolumeClaim results ")
    assert f"If the volume was retained, delete .work/{UID}/ below spec.output.uri there." in told["message"]
    assert (plan.create, plan.delete_jobs) == ([], [CLEANUP] if cleanup else [])


def test_with_the_claim_of_the_output_the_cleanup_is_created() -> None:
    for claim in (Claim("Bound", volume="pv-1"), Claim("Pending")):
        assert kinds(due(spec=IN_A_CLAIM, claims={"results": claim}))[-1] == "Job"
        running = due(spec=IN_A_CLAIM, claims={"results": claim}, cleanup=run(CLEANUP))
        assert (running.status, running.delete_jobs) == (None, [])


def test_a_cleanup_that_has_ended_is_told_as_it_ended_also_if_the_claim_is_gone_now() -> None:
    ended = run(CLEANUP, pod("Succeeded", exit_code=0, termination=DONE), succeeded=True)

    plan = due(spec=IN_A_CLAIM, claims={"results": None}, cleanup=ended)

    assert plan.status is not None
    assert plan.status["conditions"][-1]["reason"] == "Deleted"


def test_the_bundle_and_the_cleanup_outlive_the_time_to_live_until_the_checkpoints_are_deleted() -> None:
    hour = timedelta(hours=1)
    early = reconcile(failed(ttl=hour, spec=None), NOW + hour)
    running = due(ttl=hour, children=(*CHILDREN, CLEANUP), cleanup=run(CLEANUP))
    done = due(ttl=hour, children=(CLEANUP,), keep=None)

    assert (early.delete_jobs, early.delete_config_maps) == (list(CHILDREN), [])
    assert early.requeue_after == WEEK - hour
    assert (running.delete_jobs, running.delete_config_maps) == (list(CHILDREN), [])
    assert (done.delete_jobs, done.delete_config_maps) == ([CLEANUP], ["tickets-12345678"])


def test_the_bundle_goes_with_the_last_word_about_the_checkpoints_if_its_time_to_live_is_over() -> None:
    """The Jobs went before, so nothing shows later that the bundle still exists."""
    gone = due(spec=IN_A_CLAIM, claims={"results": None}, ttl=timedelta(hours=1), children=())
    waiting = due(
        spec=IN_A_CLAIM, claims={"results": None}, ttl=timedelta(hours=1), children=(CLEANUP,), cleanup=run(CLEANUP)
    )

    assert (gone.delete_config_maps, gone.delete_jobs) == (["tickets-12345678"], [])
    assert (waiting.delete_config_maps, waiting.delete_jobs) == (["tickets-12345678"], [CLEANUP])


def test_a_cleanup_that_failed_keeps_its_log_when_the_time_to_live_of_the_children_is_over() -> None:
    """Kubernetes deletes its Job after a day. Without the log, nobody could see why the checkpoints are still there."""
    broken = run(CLEANUP, pod("Failed", exit_code=25, termination=DENIED), failed=True)
    hour, children = timedelta(hours=1), (*CHILDREN, CLEANUP)
    world = failed(ttl=hour, children=children, cleanup=broken)

    told = reconcile(world, NOW + WEEK)
    later = reconcile(replace(world, keep=None, children=(CLEANUP,)), NOW + WEEK + hour)

    assert [event.reason for event in told.events] == ["CleanupFailed"]
    assert (told.delete_jobs, told.delete_config_maps) == (list(CHILDREN), ["tickets-12345678"])
    assert later == Plan(), "the bundle is deleted, and the Job stays"

    well = run(CLEANUP, pod("Succeeded", exit_code=0, termination=DONE), succeeded=True)
    assert due(ttl=hour, children=children, cleanup=well).delete_jobs == list(children)


def test_a_changed_spec_is_noted_beside_the_cleanup_and_beside_its_end() -> None:
    created = due(generation=2)
    ended = due(generation=2, cleanup=run(CLEANUP, pod("Succeeded", exit_code=0, termination=DONE), succeeded=True))

    assert kinds(created)[-1] == "Job"
    for plan, conditions in ((created, 5), (ended, 6)):
        assert plan.status is not None
        assert plan.status["observedGeneration"] == 2
        assert len(plan.status["conditions"]) == conditions


def test_a_spec_that_is_changed_after_the_cleanup_leaves_its_end_on_record() -> None:
    world = failed(cleanup=run(CLEANUP, pod("Succeeded", exit_code=0, termination=DONE), succeeded=True))
    known = replace(with_status(world, reconcile(world, NOW + WEEK)), keep=None, cleanup=None)

    plan = reconcile(replace(known, generation=2), NOW + WEEK)

    assert plan.status is not None
    assert [c["status"] for c in plan.status["conditions"] if c["type"] == "CheckpointsDeleted"] == ["True"]


def test_a_job_that_is_being_deleted_gets_no_cleanup() -> None:
    assert due(deleting=True) == Plan()
