"""A worker that finds a bundle which it did not expect decides the job again."""

from datetime import timedelta
from typing import Any, cast

from finetune_api import names
from finetune_api.bundle import Bundle, JobIdentity
from finetune_api.spec.profile import Hub
from finetune_operator.cluster.api import Api
from finetune_operator.observed.facts.pods import Object
from finetune_operator.process.keeper import Keeper
from finetune_operator.process.loop import Workers
from finetune_operator.store.store import JOB, PROFILE, Store
from tests.unit.finetune_operator.store import objects
from tests.unit.finetune_operator.worlds import PROFILE as PROFILE_SPEC
from tests.unit.finetune_operator.worlds import SPEC

KEY = ("team", "tickets")


class Live:
    """An API server with a new job and a ConfigMap of its bundle's name, if somebody made one."""

    def __init__(self, job: Object, config_map: Object | None) -> None:
        self.job, self.config_map = job, config_map
        self.made, self.deleted = list[str](), list[str]()

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        return {"ConfigMap": self.config_map, JOB: self.job}.get(kind)

    def create(self, body: Object) -> Object | None:
        if body["kind"] == "ConfigMap" and self.config_map is not None:
            return None
        self.made.append(body["kind"])
        metadata = {"uid": body["kind"], "resourceVersion": "1", "creationTimestamp": objects.CREATED}
        return {**body, "metadata": body["metadata"] | metadata}

    def delete(self, kind: str, name: str, namespace: str) -> None:
        self.deleted.append(f"{kind} {name}")
        self.config_map = None

    def apply_status(self, body: Object, manager: str) -> Object:
        version = str(int(self.job["metadata"]["resourceVersion"]) + 1)
        self.job = {**self.job, "metadata": self.job["metadata"] | {"resourceVersion": version}}
        self.job["status"] = body["status"]
        return self.job

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"no such request is expected: {name}")


def test_a_forged_bundle_of_a_new_job_is_deleted_and_the_pods_get_the_operators_own() -> None:
    job = objects.job(uid="12345678", status={"observedGeneration": -1})
    job["spec"] = SPEC.model_dump(mode="json", by_alias=True, exclude_none=True)
    identity = JobIdentity(namespace="team", name="tickets", uid="12345678")
    forged = Bundle(job=identity, spec=SPEC, storages=PROFILE_SPEC.storages, hub=Hub(endpoint="http://attacker"))
    live, store = Live(job, objects.bundle(forged, owner="12345678")), Store(lambda key: None)
    store.put(JOB, job)
    store.put(PROFILE, objects.profile(**PROFILE_SPEC.model_dump(mode="json", by_alias=True, exclude_none=True)))
    workers = Workers(cast(Api, live), store, cast(Keeper, None), count=1)

    first = workers._once(KEY)
    assert (live.deleted, "Job" in live.made) == ([f"ConfigMap {names.child_prefix('tickets', '12345678')}"], False)
    assert first == timedelta(seconds=5)

    workers._once(KEY)
    assert live.made[-2:] == ["ConfigMap", "Job"]
    assert "bundleDigest" in live.job["status"]
