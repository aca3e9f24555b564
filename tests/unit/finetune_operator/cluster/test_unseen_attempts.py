"""A Job that the status names and no watch has shown is read live: a late watch must not start a second attempt."""

from typing import Any, cast

import pytest

from finetune_api import names
from finetune_operator.cluster.accounts import Accounts
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.observe import observe
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import World
from finetune_operator.store.store import JOB, POD, RUN, Store
from tests.unit.finetune_operator.store import objects
from tests.unit.finetune_operator.worlds import SPEC

RECORD = {"number": 1, "name": "tickets-j-a1"}


class Live:
    """An API server with one Job, or with none, and with some pods. Counts what it is asked."""

    def __init__(self, present: Object | None, *pods: Object) -> None:
        self.present = present
        self.pods = list(pods)
        self.asked: list[tuple[str, str]] = []

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        self.asked.append((kind, name))
        return self.present

    def listed(self, path: str, labels: str) -> list[Object]:
        self.asked.append(("Pod", labels))
        return self.pods


def seen(api: Live, record: dict[str, Any], *shown: Object) -> World:
    return observed(api, {"attempts": [record], "counts": {"attempts": 1}}, *shown)


def observed(api: Live, status: Object, *shown: Object) -> World:
    job = objects.job(status=status)
    job["spec"] = SPEC.model_dump(mode="json", by_alias=True, exclude_none=True)
    store = Store(lambda key: None)
    store.put(JOB, job)
    for run in shown:
        store.put(RUN, run)
    found = observe(cast(Api, api), store, Accounts(cast(Api, api)), ("team", "tickets"))
    assert found is not None
    return found


def test_a_job_that_no_watch_has_shown_is_found_live() -> None:
    held = objects.run()
    held["spec"] = {"suspend": True}
    api = Live(held)

    world = seen(api, RECORD)

    assert api.asked == [("Job", "tickets-j-a1")]
    assert list(world.attempts) == [1]


@pytest.mark.parametrize(
    "present", [None, objects.run(deletionTimestamp="2026-01-02T03:04:05Z"), objects.run(owner="another")]
)
def test_a_job_that_was_deleted_is_gone(present: Object | None) -> None:
    assert seen(Live(present), RECORD).attempts == {}


def test_the_pod_that_a_deleted_job_has_left_is_found_live() -> None:
    leaving = objects.pod(owner="gone", deletionTimestamp="2026-01-02T03:04:05Z")
    api = Live(None, leaving)

    world = seen(api, RECORD)

    assert api.asked == [("Job", "tickets-j-a1"), ("Pod", "finetune.dev/job-uid=j")]
    assert [pod.name for pod in world.remains[1]] == ["pod"]


def test_the_pod_of_a_job_that_is_deleted_in_the_foreground_is_found_live() -> None:
    """The Job exists until its pod has ended."""
    leaving = objects.pod(deletionTimestamp="2026-01-02T03:04:05Z")

    world = seen(Live(objects.run(deletionTimestamp="2026-01-02T03:04:05Z"), leaving), RECORD)

    assert (world.attempts, [pod.name for pod in world.remains[1]]) == ({}, ["pod"])


@pytest.mark.parametrize(("present", "attempts"), [({**objects.run(), "spec": {"suspend": True}}, [1]), (None, [])])
def test_the_job_of_a_pod_whose_attempt_is_not_on_record_is_found_live(
    present: Object | None, attempts: list[int]
) -> None:
    """The watch of pods can be earlier than that of Jobs."""
    store, api = Store(lambda key: None), Live(present)
    store.put(JOB, objects.job(status={"state": "Queued"}))
    store.put(POD, objects.pod(owner="r" if present else "gone"))

    found = observe(cast(Api, api), store, Accounts(cast(Api, api)), ("team", "tickets"))

    assert found is not None
    assert (list(found.attempts), list(found.remains)) == (attempts, [] if attempts else [1])
    assert ("Job", "tickets-j-a1") in api.asked


def test_nothing_is_asked_about_a_job_that_is_shown_or_whose_end_is_on_record() -> None:
    held = objects.run()
    held["spec"] = {"suspend": True}
    for api, record, shown in ((Live(None), RECORD, [held]), (Live(None), {**RECORD, "reason": "Evicted"}, [])):
        seen(api, record, *shown)
        assert api.asked == []


@pytest.mark.parametrize("number", [1, 2])
def test_the_job_of_a_preflight_that_no_watch_has_shown_is_found_live(number: int) -> None:
    name = names.preflight_name("tickets", "j", number)
    made = objects.run(step="preflight")
    made["metadata"]["name"], made["spec"] = name, {"suspend": True}
    status = {"stage": "Preflight", "preflights": [{"number": n, "name": "p"} for n in range(1, number)]}

    for api, found in ((Live(made), name), (Live(None), None)):
        world = observed(api, status)
        assert api.asked[0] == ("Job", name)
        assert (world.preflight.name if world.preflight else None) == found


def test_nothing_is_asked_about_a_preflight_that_has_its_result_or_is_shown_or_was_never_made() -> None:
    held = objects.run(step="preflight")
    held["spec"] = {"suspend": True}
    valid = {"type": "Validated", "status": "True", "reason": "R", "lastTransitionTime": objects.CREATED}
    for status, shown in (
        ({"stage": "Preflight", "conditions": [valid]}, []),
        ({"stage": "Preflight"}, [held]),
        ({"state": "Suspended"}, []),
    ):
        api = Live(None)
        observed(api, status, *shown)
        assert ("Job", "tickets-j-preflight") not in api.asked


def test_a_copy_of_an_attempts_job_is_not_taken_for_the_attempt() -> None:
    """kubectl get job -o yaml shows the owner and the labels too, so a copy under another name has them."""
    held, copy = objects.run(), objects.run("copy")
    held["spec"] = {"suspend": True}
    copy["metadata"]["name"], copy["status"] = "debug", {"conditions": [{"type": "Failed", "status": "True"}]}

    world = seen(Live(None), RECORD, held, copy)

    assert world.attempts[1].name == RECORD["name"]


def test_a_copy_of_a_preflights_job_is_not_taken_for_the_preflight() -> None:
    copy = objects.run("copy", step="preflight")
    copy["metadata"]["name"] = "debug"

    assert seen(Live(None), {**RECORD, "reason": "Evicted"}, copy).preflight is None
