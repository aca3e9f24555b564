"""The bundle of a job is read before a pod is created, and costs no request otherwise."""

from typing import Any, cast

import pytest

from finetune_api import names
from finetune_api.bundle import Bundle, JobIdentity
from finetune_operator.cluster.accounts import Accounts
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.apply import OtherBundleError, RefusedError, apply
from finetune_operator.cluster.bundles import bundle_in
from finetune_operator.cluster.observe import observe
from finetune_operator.decisions.objects import bundles
from finetune_operator.decisions.plan import Plan
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import World
from finetune_operator.store.store import JOB, POD, PROFILE, RUN, Store
from tests.unit.finetune_operator.store import objects
from tests.unit.finetune_operator.worlds import NOW, SPEC
from tests.unit.finetune_operator.worlds import PROFILE as PROFILE_SPEC

IDENTITY = JobIdentity(namespace="team", name="tickets", uid="j")
CONTENT = Bundle(job=IDENTITY, spec=SPEC, storages=PROFILE_SPEC.storages, gpu_types=PROFILE_SPEC.gpu_types)
WAITS = {"reason": "FailedMount", "message": 'configmap "tickets-j" not found', "type": "Warning"}
ENDED = {"conditions": [{"type": "Complete", "status": "True"}]}


class Live:
    """An API server with one ConfigMap, or with none."""

    def __init__(self, config_map: Object | None = None, event: Object | None = None) -> None:
        self.config_map, self.event, self.asked = config_map, event, list[str]()

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        self.asked.append(f"{kind} {namespace}/{name}")
        return self.config_map

    def create(self, body: Object) -> Object | None:
        return None if self.config_map is not None else body

    def events(self, namespace: str, fields: str) -> list[Object]:
        return [self.event] if self.event else []


def observed(live: Live, *others: tuple[str, Object], state: str = "Validating", **spec: Any) -> World:
    job = objects.job(status={"state": state} if state else {})
    job["spec"] = SPEC.model_dump(mode="json", by_alias=True, exclude_none=True) | spec
    store = Store(lambda key: None)
    store.put(JOB, job)
    store.put(PROFILE, objects.profile(**PROFILE_SPEC.model_dump(mode="json", by_alias=True, exclude_none=True)))
    for kind, raw in others:
        store.put(kind, raw)
    api = cast(Api, live)
    found = observe(api, store, Accounts(api), ("team", "tickets"))
    assert found is not None
    return found


def running(**parts: Any) -> tuple[tuple[str, Object], tuple[str, Object]]:
    return (RUN, objects.run()), (POD, objects.pod(**parts))


def test_the_bundle_of_a_job_that_needs_a_pod_is_known() -> None:
    live = Live(objects.bundle(CONTENT))

    assert observed(live).bundle == CONTENT
    assert live.asked == ["ConfigMap team/tickets-j"]
    assert observed(Live()).bundle is None


def test_a_running_or_suspended_job_and_one_that_just_came_cost_no_request() -> None:
    live = Live(objects.bundle(CONTENT))

    assert observed(live, *running()).bundle is None
    assert observed(live, suspend=True).bundle is None
    assert observed(live, state="").bundle is None
    assert live.asked == []


def test_it_is_read_again_for_the_next_attempt() -> None:
    over = objects.run()
    over["status"] = ENDED

    assert observed(Live(objects.bundle(CONTENT)), (RUN, over)).bundle == CONTENT


def test_a_field_of_a_later_version_is_ignored_and_an_unreadable_value_is_told() -> None:
    later, broken, empty = (objects.bundle(CONTENT) for _ in range(3))
    later["data"][names.BUNDLE_KEY] = later["data"][names.BUNDLE_KEY].replace('"spec"', '"later": {"a": 1}, "spec"', 1)
    broken["data"][names.BUNDLE_KEY] = '{"spec": {}}'
    del empty["data"]

    assert observed(Live(later)).bundle == CONTENT
    assert observed(Live(broken)).bundle_error == "spec.model: Field required."
    assert "bundle.json is missing" in str(observed(Live(empty)).bundle_error)


def test_a_config_map_of_somebody_else_is_no_bundle_and_its_name_is_told() -> None:
    foreign = objects.bundle(CONTENT, owner="j")
    foreign["metadata"]["ownerReferences"] = [{"uid": "another"}]
    live = Live(foreign)
    world = observed(live)

    assert (world.bundle, world.bundle_error) == (None, None)
    plan = Plan(create=bundles.missing(world, SPEC, PROFILE_SPEC))
    with pytest.raises(RefusedError, match="does not belong to this FineTuneJob"):
        apply(cast(Api, live), Store(lambda key: None), world, plan, NOW)


def test_a_bundle_that_was_made_meanwhile_from_another_profile_is_read_before_a_pod_is_created() -> None:
    world = observed(Live())
    plan = Plan(create=bundles.missing(world, SPEC, PROFILE_SPEC))
    made = plan.create[0]
    same, other = Live(made), Live({**made, "data": {names.BUNDLE_KEY: "{}"}})

    apply(cast(Api, same), Store(lambda key: None), world, plan, NOW)
    with pytest.raises(OtherBundleError) as found:
        apply(cast(Api, other), Store(lambda key: None), world, plan, NOW)
    assert bundle_in(found.value.config_map)[1] == "spec: Field required."
