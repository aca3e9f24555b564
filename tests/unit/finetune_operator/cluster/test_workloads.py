"""Reading Kueue's Workloads: at the version that is served, and without harm if they cannot be read."""

import logging
from typing import Any

import pytest

from finetune_operator.cluster.api import ApiError
from finetune_operator.cluster.workloads import Workloads
from finetune_operator.observed.causes.workloads import UNKNOWN
from finetune_operator.observed.facts.pods import Object

REFUSED = ApiError(403, 'workloads is forbidden: User "operator" cannot list resource "workloads"')


class FakeApi:
    """Serves the Workloads `items` at `version`; `error` is raised instead."""

    def __init__(self, version: str | None = "v1beta2", items: tuple[Object, ...] = ()) -> None:
        self.version, self.items = version, items
        self.error: ApiError | None = None
        self.discoveries = 0

    def preferred_version(self, group: str) -> str | None:
        self.discoveries += 1
        return self.version

    def listed(self, path: str, labels: str) -> list[Object]:
        if self.error is not None:
            raise self.error
        if path != f"/apis/kueue.x-k8s.io/{self.version}/namespaces/team/workloads":
            raise ApiError(404, "the server could not find the requested resource")
        assert labels == "kueue.x-k8s.io/job-uid=job-1"
        return list(self.items)


def workload(message: str, owner: str = "job-1", created: str = "2026-01-01T00:00:00Z") -> Object:
    metadata = {"name": "w", "creationTimestamp": created, "ownerReferences": [{"uid": owner, "controller": True}]}
    reserved = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": message}
    return {"metadata": metadata, "status": {"conditions": [reserved]}}


def hold(workloads: Workloads) -> str:
    return workloads.hold("team", "job-1", "gpus").message


def reader(api: Any) -> Workloads:
    return Workloads(api)


@pytest.mark.parametrize("version", ["v1beta1", "v1beta2", "v1"])
def test_the_version_is_found_out_once(version: str) -> None:
    api = FakeApi(version, (workload("no room"),))
    workloads = reader(api)

    assert [hold(workloads), hold(workloads)] == ["Waiting for quota in queue gpus: no room."] * 2
    assert api.discoveries == 1


def test_a_version_that_an_upgrade_has_ended_is_found_out_again() -> None:
    api = FakeApi("v1beta1", (workload("no room"),))
    workloads = reader(api)
    hold(workloads)
    api.version = "v1beta2"

    assert workloads.hold("team", "job-1", "gpus") == UNKNOWN
    assert hold(workloads) == "Waiting for quota in queue gpus: no room."


def test_a_workload_of_another_owner_with_the_same_label_is_not_believed() -> None:
    api = FakeApi(items=(workload("a lie", owner="somebody"), workload("no room")))

    assert hold(reader(api)) == "Waiting for quota in queue gpus: no room."


def test_the_newest_workload_of_the_job_counts() -> None:
    api = FakeApi(items=(workload("new", created="2026-01-02T00:00:00Z"), workload("old")))

    assert hold(reader(api)) == "Waiting for quota in queue gpus: new."


@pytest.mark.parametrize("error", [REFUSED, ApiError(500, "conversion webhook failed"), None])
def test_workloads_that_cannot_be_read_are_logged_once_and_stop_nothing(
    error: ApiError | None, caplog: pytest.LogCaptureFixture
) -> None:
    api = FakeApi(None if error is None else "v1beta2")
    api.error = error
    workloads = reader(api)

    with caplog.at_level(logging.WARNING):
        assert [workloads.hold("team", "job-1", "gpus") for _ in range(3)] == [UNKNOWN] * 3

    assert len(caplog.records) == 1
    assert (error.message if error else "does not serve kueue.x-k8s.io") in caplog.text
