"""What is known of a job when it is decided. Kueue is asked about a job only while Kueue may hold it back."""

from typing import Any, cast

import pytest

from finetune_api import names
from finetune_operator.cluster.accounts import Accounts
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.observe import observe
from finetune_operator.cluster.workloads import Workloads
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.causes.workloads import Hold
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import EarlierJob, World
from finetune_operator.store.store import JOB, RUN, Store
from tests.unit.finetune_operator.plans import message, reason, state
from tests.unit.finetune_operator.store import objects
from tests.unit.finetune_operator.worlds import NOW, SPEC

HOLD = Hold("WaitingForQuota", "Waiting for quota in queue gpus: no room.")
COMPLETE = {"conditions": [{"type": "Complete", "status": "True"}]}
LABELS = {names.LABEL_QUEUE: "gpus", names.LABEL_PRIORITY_CLASS: "urgent"}


class NoApi:
    """Fails every request, so that a test sees one that should not be."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the API server was asked: {name}")


class Kueue:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    def hold(self, namespace: str, uid: str, queue: str) -> Hold:
        self.asked.append((namespace, uid, queue))
        return HOLD


def world_of(kueue: Kueue | None, queue: str | None = "gpus", suspended: bool = True, status: Any = None) -> World:
    job, run = objects.job(), objects.run()
    job["spec"] = SPEC.model_dump(mode="json", by_alias=True, exclude_none=True)
    job["metadata"]["labels"] = LABELS
    run["spec"], run["status"] = {"suspend": suspended}, status or {}
    run["metadata"]["labels"] |= {names.LABEL_QUEUE: queue} if queue else {}
    store = Store(lambda key: None)
    store.put(JOB, job)
    store.put(RUN, run)
    if not suspended:  # then the run's pod exists
        pod: Object = objects.pod()
        store.put("Pod", pod)
    api = cast(Api, NoApi())
    found = observe(api, store, Accounts(api), ("team", "tickets"), cast("Workloads | None", kueue))
    assert found is not None
    return found


def test_a_suspended_job_in_a_queue_is_explained_by_kueue() -> None:
    kueue = Kueue()

    world = world_of(kueue)

    assert kueue.asked == [("team", "r", "gpus")]
    assert world.attempts[1].hold == HOLD


@pytest.mark.parametrize(
    "parts", [{"queue": None}, {"suspended": False}, {"status": COMPLETE}], ids=["no queue", "running", "ended"]
)
def test_kueue_is_not_asked_about_a_job_that_it_does_not_hold_back(parts: dict[str, Any]) -> None:
    kueue = Kueue()

    world = world_of(kueue, **parts)

    assert kueue.asked == []
    assert world.attempts[1].hold is None


def test_without_kueue_a_suspended_job_causes_no_request() -> None:
    assert world_of(None).attempts[1].hold is None


def test_the_labels_of_the_job_are_known_to_its_decisions() -> None:
    world = world_of(None)

    assert (world.queue, world.priority_class) == ("gpus", "urgent")


def observed(*others: Object) -> World:
    job = objects.job()
    spec = SPEC.model_dump(mode="json", by_alias=True, exclude_none=True)
    job["spec"] = spec | {"resumeFrom": {"name": "first"}}
    store = Store(lambda key: None)
    for raw in (job, *others):
        store.put(JOB, raw)
    api = cast(Api, NoApi())
    found = observe(api, store, Accounts(api), ("team", "tickets"))
    assert found is not None
    return found


def test_the_job_to_resume_from_is_known_with_its_output_as_it_was_written() -> None:
    ended = {"state": "Failed", "conditions": []}
    other = objects.job("o", name="other", status=ended)
    first = objects.job("f", name="first", output="s3://r/a//b/", status=ended)

    assert observed(other, first).earlier_job == EarlierJob("f", "s3://r/a//b/", "Failed")


def test_a_job_of_the_same_name_in_another_namespace_is_not_the_one_to_resume_from() -> None:
    foreign = objects.job("f", name="first", status={"state": "Failed", "conditions": []})
    foreign["metadata"]["namespace"] = "another"

    assert observed(foreign).earlier_job is None


LATER = [
    {"state": "Rewinding"},
    {"stage": "Tasting"},
    {"conditions": [{"type": "Validated", "status": "Perhaps", "reason": "R", "lastTransitionTime": objects.CREATED}]},
    {"attempts": [{"number": 1, "name": "a1", "reason": "AbductedByAliens", "exitCode": "green"}]},
    {"evaluation": {"rows": 1, "decision": {"metric": "Humour"}, "observedTime": objects.CREATED}},
]


@pytest.mark.parametrize("status", LATER)
def test_a_status_of_a_later_version_is_decided_and_keeps_what_can_be_read(status: Object) -> None:
    job = objects.job(status={"counts": {"attempts": 1}, **status})
    job["spec"] = SPEC.model_dump(mode="json", by_alias=True, exclude_none=True)
    store = Store(lambda key: None)
    for kind, raw in ((JOB, job), (RUN, objects.run()), ("Pod", objects.pod())):
        store.put(kind, raw)
    api = cast(Api, NoApi())

    world = observe(api, store, Accounts(api), ("team", "tickets"))

    assert world is not None
    assert world.status.counts is not None
    assert world.status.counts.attempts == 1
    reconcile(world, NOW)


@pytest.mark.parametrize("broken", [{"runPolicy": "x"}, {"output": 7}, {"resumeFrom": []}, {"profileName": {}}])
def test_a_spec_that_cannot_be_read_waits_and_is_said(broken: Object) -> None:
    job = objects.job()
    job["spec"] = SPEC.model_dump(mode="json", by_alias=True, exclude_none=True) | broken
    store = Store(lambda key: None)
    store.put(JOB, job)
    api = cast(Api, NoApi())

    world = observe(api, store, Accounts(api), ("team", "tickets"))

    assert world is not None
    plan = reconcile(world, NOW)
    assert (state(plan), reason(plan)) == ("Pending", "WaitingForDependency")
    assert f"This version of the operator cannot read the job: spec.{next(iter(broken))}" in message(plan)
