"""A worker that cannot create or delete an object says so. One that finds another bundle decides the job again."""

from datetime import timedelta
from typing import Any, cast

import pytest

from finetune_api import names
from finetune_api.bundle import Bundle, JobIdentity
from finetune_api.spec.profile import Hub
from finetune_operator.cluster.api import Api, ApiError
from finetune_operator.cluster.apply import RefusedDeletionError, RefusedError
from finetune_operator.observed.facts.pods import Object
from finetune_operator.process.keeper import Keeper
from finetune_operator.process.loop import Workers
from finetune_operator.store.store import JOB, POD, PROFILE, RUN, Store
from tests.unit.finetune_operator.store import objects
from tests.unit.finetune_operator.worlds import PROFILE as PROFILE_SPEC
from tests.unit.finetune_operator.worlds import SPEC

KEY = ("team", "tickets")


class Live:
    """An API server with a new job and a ConfigMap of its bundle's name, if somebody made one. `error`: answers each
    Job that is created. `keeps`: answers each Job that is deleted."""

    def __init__(
        self, job: Object, config_map: Object | None, error: ApiError | None = None, keeps: ApiError | None = None
    ) -> None:
        self.job, self.config_map, self.error, self.keeps = job, config_map, error, keeps
        self.made, self.deleted = list[str](), list[str]()

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        return {"ConfigMap": self.config_map, JOB: self.job}.get(kind)

    def create(self, body: Object) -> Object | None:
        if body["kind"] == "ConfigMap" and self.config_map is not None:
            return None
        if body["kind"] == "Job" and self.error is not None:
            raise self.error
        self.made.append(body["kind"])
        metadata = {"uid": body["kind"], "resourceVersion": "1", "creationTimestamp": objects.CREATED}
        return {**body, "metadata": body["metadata"] | metadata}

    def events(self, namespace: str, fields: str) -> list[Object]:
        return []

    def delete(self, kind: str, name: str, namespace: str) -> None:
        if kind == "Job" and self.keeps is not None:
            raise self.keeps
        self.deleted.append(f"{kind} {name}")
        self.config_map = None

    def apply_status(self, body: Object, manager: str) -> Object:
        version = str(int(self.job["metadata"]["resourceVersion"]) + 1)
        self.job = {**self.job, "metadata": self.job["metadata"] | {"resourceVersion": version}}
        self.job["status"] = body["status"]
        return self.job

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"no such request is expected: {name}")


def new_job() -> Object:
    job = objects.job(uid="12345678", status={"observedGeneration": -1})
    job["spec"] = SPEC.model_dump(mode="json", by_alias=True, exclude_none=True)
    return job


def workers_of(live: Live) -> Workers:
    store = Store(lambda key: None)
    store.put(JOB, live.job)
    store.put(PROFILE, objects.profile(**PROFILE_SPEC.model_dump(mode="json", by_alias=True, exclude_none=True)))
    return Workers(cast(Api, live), store, cast(Keeper, None), count=1)


def test_an_object_that_cannot_be_created_is_told_in_the_status_with_what_helps() -> None:
    bundle = Bundle(job=JobIdentity(namespace="team", name="tickets", uid="another"), spec=SPEC, storages=[])
    others = objects.bundle(bundle, owner="12345678")
    others["metadata"]["ownerReferences"] = [{"uid": "another"}]
    quota = ApiError(403, 'jobs.batch "x" is forbidden: exceeded quota: few, requested: count/jobs.batch=1')
    for live, told in (
        (
            Live(new_job(), others),
            "ConfigMap tickets-12345678 exists already, and does not belong to this FineTuneJob. Delete ConfigMap "
            "tickets-12345678 if nobody needs it, or create the FineTuneJob again. The operator tries again by itself.",
        ),
        (
            Live(new_job(), None, quota),
            "The API server refused Job tickets-12345678-preflight: "
            f"{quota.message}. Delete objects of kind Job that the namespace no longer needs, or raise ResourceQuota "
            "few. The operator tries again by itself.",
        ),
        (Live(new_job(), None, ApiError(403, "x " * 3000)), "Correct that cause. The operator tries again by itself."),
    ):
        with pytest.raises(RefusedError):
            workers_of(live)._once(KEY)

        assert live.job["status"]["state"] == "Pending"
        ready = live.job["status"]["conditions"][0]
        assert (ready["type"], ready["reason"]) == ("Ready", "CreationRefused")
        assert ready["message"].endswith(told)


DENIED = ApiError(403, "jobs.batch is forbidden: ValidatingAdmissionPolicy 'keep' with binding 'b' denied request: No.")
TOLD = (
    f"{DENIED.message} Ask the owner of keep to let the operator delete Jobs in this namespace, or delete this Job. "
    "The operator tries again by itself."
)


def ready(live: Live) -> Object:
    return next(c for c in live.job["status"]["conditions"] if c["type"] == "Ready")


def test_a_job_that_cannot_be_deleted_is_told_beside_the_reason_for_which_it_goes_until_it_is_gone() -> None:
    job = new_job()
    job["spec"]["suspend"] = True
    job["status"] |= {"observedGeneration": 1, "state": "Validating", "conditions": []}
    live = Live(job, None, keeps=DENIED)
    workers = workers_of(live)
    workers._store.put(RUN, objects.run(owner="12345678", step="preflight"))
    written = []
    for _ in range(4):
        with pytest.raises(RefusedDeletionError):
            workers._once(KEY)
        written.append(live.job["metadata"]["resourceVersion"])

    assert (live.job["status"]["state"], written) == ("Suspended", ["2", "3", "3", "3"]), "it is told once"
    refused = f"The API server refused to delete Job {names.preflight_name('tickets', '12345678')}: {TOLD}"
    assert ready(live)["message"] == f"spec.suspend is true. Set it to false to resume the job. {refused}"

    live.keeps = None
    assert workers._once(KEY) == timedelta(0)
    workers._once(KEY)
    assert ready(live)["message"] == "spec.suspend is true. Set it to false to resume the job."


def test_a_job_does_not_end_while_a_job_of_it_cannot_be_deleted_and_says_so() -> None:
    job = new_job()
    live = Live(job, None, keeps=DENIED)
    workers = workers_of(live)
    workers._store.put(RUN, objects.run(owner="12345678", step="preflight"))
    failed = objects.pod()
    failed["metadata"]["labels"] |= {names.LABEL_JOB_UID: "12345678", names.LABEL_ATTEMPT: "0"}
    trainer = {"name": names.CONTAINER, "state": {"terminated": {"exitCode": 21, "finishedAt": objects.CREATED}}}
    failed["status"] = {"phase": "Running", "containerStatuses": [trainer]}
    workers._store.put(POD, failed)
    for _ in range(3):
        with pytest.raises(RefusedDeletionError):
            workers._once(KEY)

    assert (live.job["status"]["state"], ready(live)["reason"]) == ("Pending", "DeletionRefused")
    assert ready(live)["message"].endswith(TOLD)
    assert (ready(live)["message"].count("refused"), live.job["metadata"]["resourceVersion"]) == (1, "3")

    live.keeps = None
    workers._once(KEY)
    assert live.job["status"]["state"] == "Failed"


def test_a_forged_bundle_of_a_new_job_is_deleted_and_the_pods_get_the_operators_own() -> None:
    identity = JobIdentity(namespace="team", name="tickets", uid="12345678")
    forged = Bundle(job=identity, spec=SPEC, storages=PROFILE_SPEC.storages, hub=Hub(endpoint="http://attacker"))
    live = Live(new_job(), objects.bundle(forged, owner="12345678"))
    workers = workers_of(live)

    first = workers._once(KEY)
    assert (live.deleted, "Job" in live.made) == ([f"ConfigMap {names.child_prefix('tickets', '12345678')}"], False)
    assert first == timedelta(seconds=5)

    workers._once(KEY)
    assert live.made[-2:] == ["ConfigMap", "Job"]
    assert "bundleDigest" in live.job["status"]
