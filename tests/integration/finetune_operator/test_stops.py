"""What the tenant asks for while a job runs: to suspend it, a deadline, a budget, a time to live of its children."""

from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta

import pytest

from finetune_api.reasons import FailureReason
from tests.integration.conftest import PROFILE
from tests.integration.finetune_operator.kubelet import Kubelet, PlayedPod
from tests.integration.finetune_operator.looking import nudge
from tests.integration.finetune_operator.running import SECOND, training
from tests.integration.jobs import ATTEMPT, PREFLIGHT, Job, kstatus, manifest
from tests.integration.kube import PROFILES, Kube, RefusedError
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.usefixtures("operator")


def change(job: Job, **spec: object) -> None:
    job.kube.merge(job.path, {"spec": spec})


def stops(job: Job, pod: PlayedPod) -> None:
    """The pod is asked to stop, and does so after a checkpoint."""
    wait_for("its Job to go", lambda: ATTEMPT not in job.batch_jobs())
    wait_for("it to be asked to stop", lambda: any("deletionTimestamp" in p["metadata"] for p in job.pods()))
    pod.says_it_failed(FailureReason.PREEMPTED, "The pod was told to stop (SIGTERM).")
    pod.is_gone()


def test_a_suspended_job_stops_and_is_resumed_without_being_charged(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job, first = training(kube, namespace, kubelet)
    change(job, suspend=True)
    assert job.wait_for_reason("Suspended")["state"] == "Suspended"
    stops(job, first)
    wait_for("the end to be on record", lambda: "completionTime" in job.status()["attempts"][0])
    assert (job.conditions()["Suspended"], kstatus(job.read())) == ("True", "InProgress")
    assert SECOND not in job.batch_jobs()

    change(job, suspend=None)
    kubelet.pod_of(namespace, job.child(SECOND))
    kubelet.play(namespace, job.is_complete, job.selector)
    status = job.status()
    assert status["counts"] == {"attempts": 2, "reasons": {"Suspended": 1}}
    assert [a["reason"] for a in status["attempts"]] == ["Suspended", "Succeeded"]
    assert job.conditions()["Suspended"] == "False"


def test_a_job_that_is_created_suspended_makes_no_pod_until_it_is_resumed(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job = Job.create(kube, namespace, manifest(suspend=True))
    job.wait_for_reason("Suspended")
    assert job.children() == {}

    change(job, suspend=False)
    kubelet.play(namespace, job.is_complete, job.selector)
    assert job.status()["counts"] == {"attempts": 1}


def test_a_deadline_lets_the_attempt_store_a_checkpoint_and_ends_the_job(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job, pod = training(kube, namespace, kubelet)
    change(job, runPolicy={"activeDeadlineSeconds": 1})
    stops(job, pod)

    job.assert_failed(FailureReason.DEADLINE_EXCEEDED, "The job had not ended 1 s after its first training pod")
    assert job.status()["attempts"][0]["reason"] == FailureReason.DEADLINE_EXCEEDED


def test_a_deadline_is_noticed_though_nothing_else_happens(kube: Kube, namespace: str, kubelet: Kubelet) -> None:
    job = Job.create(kube, namespace, manifest(runPolicy={"activeDeadlineSeconds": 3}))
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    pod = kubelet.pod_of(namespace, job.child(ATTEMPT))
    pod.runs()
    stops(job, pod)

    job.assert_failed(FailureReason.DEADLINE_EXCEEDED, "The job had not ended 3 s after its first training pod")


A_UNIT_A_SECOND = "3600"


@pytest.fixture
def unpriced(kube: Kube, namespace: str) -> Iterator[str]:
    """A profile of this test alone, whose GPU has no price."""
    kube.create(PROFILES, {**PROFILE, "metadata": {"name": namespace}})
    yield namespace
    kube.delete(f"{PROFILES}/{namespace}")


@pytest.fixture
def priced(kube: Kube, unpriced: str) -> str:
    """A profile whose GPU costs a unit a second."""
    set_price(kube, unpriced, A_UNIT_A_SECOND)
    return unpriced


def set_price(kube: Kube, profile: str, price: str) -> None:
    types = deepcopy(PROFILE["spec"]["gpuTypes"])
    types[0]["pricePerHour"] = price
    kube.merge(f"{PROFILES}/{profile}", {"spec": {"gpuTypes": types}})


def test_a_job_that_has_used_its_budget_is_suspended_and_resumed_by_raising_it(
    kube: Kube, namespace: str, kubelet: Kubelet, priced: str
) -> None:
    job = Job.create(kube, namespace, manifest(profileName=priced, runPolicy={"budget": {"cost": "5"}}))
    kubelet.pod_of(namespace, job.child(PREFLIGHT)).validates()
    first = kubelet.pod_of(namespace, job.child(ATTEMPT))
    first.runs()  # on a busy machine nobody may see that it trains: it soon reaches its budget

    assert job.wait_for_reason("BudgetExceeded")["state"] == "Suspended"
    assert job.ready()["message"].startswith("The job has used its budget of 5 (spec.runPolicy.budget.cost). Raise")
    stops(job, first)
    wait_for("the end to be on record", lambda: "completionTime" in job.status()["attempts"][0])
    assert float(job.status()["cost"]) == job.status()["gpuSeconds"] >= 5

    change(job, runPolicy={"budget": {"cost": "100000"}})
    kubelet.pod_of(namespace, job.child(SECOND))
    kubelet.play(namespace, job.is_complete, job.selector)
    assert [a["reason"] for a in job.status()["attempts"]] == ["BudgetExceeded", "Succeeded"]


def test_a_budget_that_is_added_and_raised_while_the_job_trains_counts_from_the_start_of_its_pod(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    def held_for(hours: float, left: timedelta = timedelta(0)) -> None:
        pod.is_bound_since(datetime.now(UTC) - timedelta(hours=hours) + left)

    def trains_with(hours: float) -> None:
        change(job, runPolicy={"budget": {"gpuHours": hours}})
        wait_for(
            "the budget to be seen", lambda: job.status()["observedGeneration"] == job.read()["metadata"]["generation"]
        )
        nudge(job)
        assert (job.ready()["reason"], ATTEMPT in job.batch_jobs()) == ("Training", True)

    job, pod = training(kube, namespace, kubelet)
    held_for(2)
    trains_with(3)
    trains_with(5)
    held_for(4)
    nudge(job)
    assert job.ready()["reason"] == "Training", "the first budget is used up, and the second one is not"

    held_for(5, left=timedelta(seconds=3))
    assert job.wait_for_reason("BudgetExceeded")["state"] == "Suspended"
    used = "The job has used its budget of 5 GPU hours (spec.runPolicy.budget.gpuHours). Raise this field"
    assert job.ready()["message"].startswith(used)
    stops(job, pod)
    change(job, runPolicy=None)
    kubelet.pod_of(namespace, job.child(SECOND))
    kubelet.play(namespace, job.is_complete, job.selector)
    assert [a["reason"] for a in job.status()["attempts"]] == ["BudgetExceeded", "Succeeded"]


def test_a_budget_of_money_without_a_price_stops_the_attempt_until_the_profile_has_one(
    kube: Kube, namespace: str, kubelet: Kubelet, unpriced: str
) -> None:
    limited = {"runPolicy": {"budget": {"cost": "100000"}}}
    new = Job.create(kube, namespace, manifest("new", profileName=unpriced, **limited))
    job, first = training(kube, namespace, kubelet, profileName=unpriced)
    change(job, **limited)

    stops(job, first)
    for waiting, where in ((job, "GPU type h100 of FineTuneProfile"), (new, "FineTuneProfile")):
        assert waiting.wait_for_reason("WaitingForDependency")["state"] == "Pending"
        assert waiting.ready()["message"] == (
            f"spec.runPolicy.budget.cost: {where} {unpriced} has no pricePerHour, so the cost of the job is not known. "
            "Set spec.runPolicy.budget.gpuHours instead, or add the price to the FineTuneProfile."
        )
    assert new.children() == {}
    assert job.status()["attempts"][0]["reason"] == "CostUnknown"

    set_price(kube, unpriced, A_UNIT_A_SECOND)
    kubelet.pod_of(namespace, new.child(PREFLIGHT))
    kubelet.pod_of(namespace, job.child(SECOND))
    kubelet.play(namespace, job.is_complete, job.selector)
    status = job.status()
    assert [a["reason"] for a in status["attempts"]] == ["CostUnknown", "Succeeded"]
    assert status["counts"] == {"attempts": 2, "reasons": {"CostUnknown": 1}}
    assert float(status["cost"]) == status["gpuSeconds"], "the first attempt counts at the price of later"


def test_the_children_of_an_ended_job_go_after_their_time_to_live_and_the_job_stays(
    kube: Kube, namespace: str, kubelet: Kubelet
) -> None:
    job = Job.create(kube, namespace, manifest(runPolicy={"ttlSecondsAfterFinished": 2}))
    kubelet.play(namespace, job.is_complete, job.selector)

    wait_for("the Jobs and the bundle to go", lambda: not job.batch_jobs() and not job.config_maps())
    assert job.status()["state"] == "Complete"


def test_only_suspend_and_the_run_policy_can_be_changed(kube: Kube, namespace: str, kubelet: Kubelet) -> None:
    job = Job.create(kube, namespace, manifest())
    for spec in ({"suspend": True}, {"suspend": None}, {"runPolicy": {"maxRetries": 5}}, {"runPolicy": None}):
        change(job, **spec)
    for spec in (
        {"training": {"epochs": 2}},
        {"output": {"uri": "s3://acme-models/else"}},
        {"profileName": "other"},
        {"resumeFrom": {"name": "other"}},
    ):
        with pytest.raises(RefusedError, match=r"only spec.suspend and spec.runPolicy can be changed"):
            change(job, **spec)


def test_a_spec_that_is_changed_after_the_end_counts_as_seen(kube: Kube, namespace: str, kubelet: Kubelet) -> None:
    job = Job.create(kube, namespace, manifest())
    kubelet.play(namespace, job.is_complete, job.selector)
    before = job.status()
    change(job, suspend=True)

    wait_for("kstatus to be current", lambda: kstatus(job.read()) == "Current")
    after = job.status()
    assert after.pop("observedGeneration") == before.pop("observedGeneration") + 1
    assert {c["type"]: c["message"] for c in after["conditions"]} == {
        c["type"]: c["message"] for c in before["conditions"]
    }
    assert after["attempts"] == before["attempts"]
