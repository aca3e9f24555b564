"""What the store keeps for the decisions about attempts: pods without a Job, progress, authors, times to live."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from finetune_api import names
from finetune_operator.observed.world import Key
from finetune_operator.store.store import JOB, POD, RUN, Store
from tests.unit.finetune_operator.store.objects import job, pod, run, validated

KEY = ("team", "tickets")
PROGRESS = {"attempt": 2, "step": 7, "resumedFromStep": 4, "checkpointStep": 6, "observedTime": "2026-01-02T03:04:05Z"}
END = {"type": "Failed", "status": "True", "reason": "SpecInvalid", "lastTransitionTime": "2026-01-02T03:04:05Z"}


def test_the_pod_of_a_deleted_job_remains_known_until_it_is_gone(store: Store, told: list[Key]) -> None:
    store.put(JOB, job())
    store.put(RUN, run())
    store.put(POD, pod())
    assert store.remains("j") == {}

    store.remove(RUN, "r")
    assert [p.name for p in store.remains("j")[1]] == ["pod"]
    told.clear()
    store.remove(POD, "p")
    assert (store.remains("j"), told) == ({}, [KEY])


def test_a_job_that_is_being_deleted_is_gone_and_its_pods_remain(store: Store) -> None:
    store.put(JOB, job())
    store.put(RUN, run(deletionTimestamp="2026-01-02T03:04:05Z"))
    store.put(POD, pod())

    assert (store.runs("j"), list(store.remains("j"))) == ([], [1])


def test_a_pod_that_outlives_its_job_without_an_owner_still_counts(store: Store, told: list[Key]) -> None:
    """kubectl delete job --cascade=orphan leaves the pod running, and removes its owner."""
    store.put(JOB, job())
    store.put(RUN, run())
    store.put(POD, pod())
    store.remove(RUN, "r")
    told.clear()
    store.put(
        POD, pod(version=2, ownerReferences=[], labels={**pod()["metadata"]["labels"], names.LABEL_CONTROLLER: "r"})
    )

    assert [p.name for p in store.remains("j")[1]] == ["pod"]


def test_a_copy_of_a_pod_does_not_count(store: Store) -> None:
    store.put(JOB, job())
    store.put(POD, pod(ownerReferences=[]))

    assert store.remains("j") == {}


def test_a_pod_in_another_namespace_with_the_labels_of_a_job_does_not_count(store: Store, told: list[Key]) -> None:
    store.put(JOB, job())
    told.clear()
    store.put(POD, pod(namespace="elsewhere"))

    assert (store.remains("j"), told) == ({}, [])


def test_progress_is_known_and_starts_no_decision(store: Store, told: list[Key]) -> None:
    store.put(JOB, job(version=1))
    told.clear()
    store.put(JOB, job(version=2, status={"training": PROGRESS}))

    found = store.job(KEY)
    assert found is not None
    assert (found.progress.attempt, found.progress.step, found.progress.checkpoint_step) == (2, 7, 6)
    assert told == []


def test_the_attempt_that_wrote_a_condition_is_known_from_its_field_manager(store: Store) -> None:
    fields = {"f:status": {"f:conditions": {'k:{"type":"Trained"}': {}}, "f:training": {}}}
    raw = job()
    raw["metadata"]["managedFields"] = [
        {"manager": "attempt-1", "fieldsV1": fields},
        {"manager": "attempt-12", "fieldsV1": fields},
        {"manager": "preflight", "fieldsV1": {"f:status": {"f:conditions": {'k:{"type":"Validated"}': {}}}}},
    ]
    store.put(JOB, raw)

    found = store.job(KEY)
    assert found is not None
    assert dict(found.authors) == {"Trained": 12}


def test_a_job_that_has_requested_a_gpu_has_begun_also_when_its_jobs_are_gone(store: Store) -> None:
    store.put(JOB, job(status=validated(counts={"attempts": 1})))

    assert [begun for _, begun in store.writers("s3://r/run")] == [True]


def test_an_ended_job_with_a_time_to_live_is_still_looked_at(store: Store, told: list[Key]) -> None:
    ended = {"state": "Failed", "conditions": [END]}
    mortal, plain = job("m", name="mortal", status=ended), job("p", name="plain", status=ended)
    mortal["spec"]["runPolicy"] = {"ttlSecondsAfterFinished": 60}
    store.put(JOB, mortal)
    store.put(JOB, plain)

    assert (store.unsettled(), told) == ([("team", "mortal")], [("team", "mortal")])
    found = store.job(("team", "mortal"))
    assert found is not None
    assert (found.ttl, found.ended_at) == (timedelta(minutes=1), datetime.fromisoformat(END["lastTransitionTime"]))


def test_an_ended_job_whose_spec_was_changed_is_looked_at_until_that_is_noted(store: Store) -> None:
    changed = job(status={"state": "Failed", "conditions": [END], "observedGeneration": 1})
    changed["metadata"]["generation"] = 2
    store.put(JOB, changed)
    assert store.unsettled() == [KEY]

    noted = job(version=2, status={"state": "Failed", "conditions": [END], "observedGeneration": 2})
    noted["metadata"]["generation"] = 2
    store.put(JOB, noted)
    assert store.unsettled() == []


def test_a_batch_job_in_another_namespace_that_names_a_job_as_its_owner_does_not_count(
    store: Store, told: list[Key]
) -> None:
    store.put(JOB, job(status=validated()))
    told.clear()
    store.put(RUN, run("forged", namespace="elsewhere"))

    assert (store.runs("j"), told) == ([], [])
    assert [has_attempts for _, has_attempts in store.writers("s3://r/run")] == [False]


@pytest.mark.parametrize(
    "ended",
    [{"message": "[" * 4096, "exitCode": 1}, {"message": "\ud800", "exitCode": 1}, {"exitCode": "one"}],
    ids=["nested without end", "no text", "an exit code that is no number"],
)
def test_a_pod_that_a_tenant_made_never_stops_the_store(store: Store, ended: dict[str, Any]) -> None:
    store.put(JOB, job())
    made = pod(deletionGracePeriodSeconds=10**14, deletionTimestamp="2026-01-02T03:04:05Z")
    made["status"]["containerStatuses"] = [{"name": "trainer", "state": {"terminated": ended}}]
    store.put(POD, made)

    assert store.has(POD, "p")


def test_cleanups_of_one_namespace_never_take_the_turns_of_all(store: Store) -> None:
    """Tenants can create Jobs that look like cleanups, and whose pods never start."""
    forged = {names.LABEL_STEP: names.CLEANUP}
    for number in range(10):
        store.put(JOB, in_namespace("elsewhere", job(f"e{number}", name=f"e{number}")))
        store.put(RUN, run(f"forged{number}", owner=f"e{number}", namespace="elsewhere", labels=forged))
        store.put(RUN, run(f"foreign{number}", owner="other", namespace="elsewhere", labels=forged))
    store.put(JOB, job("other", name="other"))
    store.put(JOB, job())
    mine = store.job(KEY)
    assert mine is not None

    assert store.take_turn(mine, 10, 2)
    assert store.is_cleaned("j")


def in_namespace(namespace: str, body: Any) -> Any:
    return body | {"metadata": body["metadata"] | {"namespace": namespace}}
