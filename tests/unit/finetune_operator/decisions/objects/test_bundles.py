"""What the pods of a job mount is what their bundle says, also after the profile was changed."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api import names
from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.spec.run_policy import RunPolicy
from finetune_api.status.job import ConditionType
from finetune_operator.cluster.bundles import having
from finetune_operator.decisions.objects import bundles
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.pods import Object, PodCondition, PodEvent
from finetune_operator.observed.world import World
from tests.unit.finetune_operator.plans import kinds, message, reason, state
from tests.unit.finetune_operator.worlds import (
    NOW,
    PROFILE,
    SPEC,
    attempt,
    fresh,
    pod,
    preflight,
    validated,
    with_status,
)

SAID = PROFILE.model_dump(mode="json", by_alias=True, exclude_none=True)
BUNDLE = bundles.bundle_of(fresh(), SPEC, PROFILE)


def changed(**parts: Any) -> FineTuneProfileSpec:
    return FineTuneProfileSpec.model_validate(SAID | parts)


OTHER_SECRETS = changed(storages=[{"buckets": ["*"], "credentialsSecretName": "rotated"}])
OTHER_BUCKETS = changed(storages=[{"buckets": ["elsewhere"], "credentialsSecretName": "rotated"}])
CACHED = changed(
    storages=[{"buckets": ["cache"], "credentialsSecretName": "cache-keys"}, *SAID["storages"]],
    preparedCache={"uri": "s3://cache/rows"},
)
CHANGES = {"other Secrets": OTHER_SECRETS, "other buckets": OTHER_BUCKETS, "a cache": CACHED}


def second_attempt(**changes: Any) -> World:
    """The first attempt was preempted, and that is on record."""
    world = validated(attempts={1: attempt(pod("Failed", exit_code=33), failed=True)}, **changes)
    return with_status(world, reconcile(world, NOW))


def second_preflight(**changes: Any) -> World:
    """The first preflight found the storage down, and that is on record."""
    world = fresh(preflight=preflight(pod("Failed", exit_code=26), failed=True), bundle=BUNDLE, **changes)
    return with_status(world, reconcile(world, NOW))


def cleanup(**changes: Any) -> World:
    """The job has failed, and its checkpoints are due."""
    seen = {"observedGeneration": 1}
    return fresh(ended_at=NOW, keep=timedelta(0), cleanup_has_turn=True, bundle=BUNDLE, raw_status=seen, **changes)


WORLDS = {"attempt": second_attempt(), "preflight": second_preflight(), "cleanup": cleanup()}


def planned(world: World) -> Plan:
    return reconcile(world, NOW + timedelta(hours=1))


def secrets(plan: Plan) -> list[str]:
    return [volume["secret"]["secretName"] for volume in _pod(plan)["volumes"] if "secret" in volume]


def accepted(plan: Plan) -> str:
    """The digest of the bundle that the pod of the plan accepts, as the operator reads it from the Job."""
    (job,) = (body for body in plan.create if body["kind"] == "Job")
    metadata = {**job["metadata"], "creationTimestamp": NOW.isoformat()}
    return Run.parse({**job, "metadata": metadata}).bundle_digest


def _pod(plan: Plan) -> Object:
    (job,) = (body for body in plan.create if body["kind"] == "Job")
    spec: Object = job["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("profile", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_a_pod_mounts_the_secrets_of_its_bundle_after_the_profile_was_changed(
    world: World, profile: FineTuneProfileSpec
) -> None:
    plan = planned(replace(world, profile=profile))

    assert secrets(plan) == ["read", "write"]
    assert "ConfigMap" not in kinds(plan)
    mounts = {mount["mountPath"] for mount in _pod(plan)["containers"][0]["volumeMounts"]}
    assert {f"{names.STORAGE_FOLDER}/read", f"{names.STORAGE_FOLDER}/write"} <= mounts


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_a_deleted_bundle_is_made_again_together_with_the_secrets_it_needs(world: World) -> None:
    plan = planned(replace(world, bundle=None, profile=OTHER_SECRETS))

    (config_map,) = (body for body in plan.create if body["kind"] == "ConfigMap")
    made = Bundle.model_validate_json(config_map["data"][names.BUNDLE_KEY])
    assert secrets(plan) == bundles.secrets(made) == ["rotated"]
    assert kinds(plan).index("ConfigMap") < kinds(plan).index("Job")


@pytest.mark.parametrize("profile", [PROFILE, OTHER_SECRETS], ids=["same profile", "changed profile"])
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_a_pod_accepts_only_the_content_of_its_bundle(world: World, profile: FineTuneProfileSpec) -> None:
    made = planned(replace(world, bundle=None, profile=profile))
    (config_map,) = (body for body in made.create if body["kind"] == "ConfigMap")
    assert accepted(made) == bundles.digest(config_map["data"][names.BUNDLE_KEY])

    # As an operator of another version wrote it: the same bundle as another text.
    text = json.dumps(json.loads(config_map["data"][names.BUNDLE_KEY]), indent=4)
    found = having(replace(world, profile=profile), {**config_map, "data": {names.BUNDLE_KEY: text}})
    assert accepted(planned(found)) == bundles.digest(text)


@pytest.mark.parametrize("world", [second_attempt(), second_preflight()], ids=["attempt", "preflight"])
def test_an_unreadable_bundle_is_told_and_waited_for(world: World) -> None:
    plan = planned(replace(world, bundle=None, bundle_error="storages.0.region: Input should be a valid string."))

    assert (plan.create, state(plan), reason(plan)) == ([], "Pending", "WaitingForDependency")
    assert message(plan) == (
        "This version of the operator cannot read ConfigMap tickets-12345678, the input of the job's pods: "
        "storages.0.region: Input should be a valid string. Update the operator, or delete the ConfigMap: kubectl "
        "delete configmap tickets-12345678 --namespace team. The operator then creates it again."
    )


def test_a_cleanup_with_an_unreadable_bundle_waits() -> None:
    plan = planned(replace(cleanup(), bundle=None, bundle_error="storages: Field required."))

    assert plan == Plan(requeue_after=timedelta(hours=1))


def test_the_image_and_the_grace_period_are_those_of_the_present_profile_and_the_gpu_type_stays() -> None:
    now = changed(
        trainer={"image": "trainer:2"},
        gpuTypes=[{"name": "a100", "resourceName": "example.com/a100"}],
        pods={"terminationGracePeriodSeconds": 30},
    )

    spec = _pod(planned(replace(second_attempt(), profile=now)))

    assert spec["containers"][0]["image"] == "trainer:2"
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["terminationGracePeriodSeconds"] == 30


def test_the_first_attempt_still_fails_for_a_bucket_that_the_profile_never_had() -> None:
    plan = planned(fresh(profile=OTHER_BUCKETS))

    assert reason(plan) == FailureReason.SPEC_INVALID


DELETED = PodEvent(is_warning=True, reason="FailedMount", message='configmap "tickets-12345678" not found')
PLACED = {"PodScheduled": PodCondition("True", "", "", NOW)}
WAITS = pod("Pending", conditions=PLACED, event=DELETED)
MOUNTS = ("read", "write")


def waiting_attempt(**changes: Any) -> World:
    return validated(bundle=None, attempts={1: attempt(WAITS, mounted=MOUNTS)}, **changes)


def waiting_preflight(**changes: Any) -> World:
    return fresh(preflight=preflight(WAITS, mounted=MOUNTS), **changes)


@pytest.mark.parametrize("waiting", [waiting_attempt, waiting_preflight], ids=["attempt", "preflight"])
def test_a_pod_that_lacks_its_deleted_bundle_gets_it_again_and_starts(waiting: Any) -> None:
    plan = reconcile(waiting(), NOW + timedelta(minutes=2))

    assert ("ConfigMap" in kinds(plan), plan.delete_jobs) == (True, [])


@pytest.mark.parametrize("waiting", [waiting_attempt, waiting_preflight], ids=["attempt", "preflight"])
def test_a_pod_that_lacks_its_bundle_and_the_secrets_of_the_next_one_is_replaced_as_an_interruption(
    waiting: Any,
) -> None:
    plan = reconcile(waiting(profile=OTHER_SECRETS), NOW + timedelta(minutes=2))

    assert ("ConfigMap" in kinds(plan), len(plan.delete_jobs)) == (False, 1)
    assert plan.status is not None
    counted = plan.status["counts"]
    assert (counted.get("reasons") or counted["preflightReasons"]) == {"Evicted": 1}
    record = (plan.status.get("attempts") or plan.status["preflights"])[0]
    assert record["message"].startswith(
        "ConfigMap tickets-12345678 was deleted before the pod of Job tickets-12345678-"
    )
    assert record["message"].endswith(
        "The pod does not mount rotated, which the storages or the hub need now, so it is replaced."
    )


def waiting_with(world: World, digest: str) -> World:
    """The world whose pods accept the bundle with this digest."""
    preflight = world.preflight and replace(world.preflight, bundle_digest=digest)
    attempts = {number: replace(run, bundle_digest=digest) for number, run in world.attempts.items()}
    return replace(world, preflight=preflight, attempts=attempts)


RAISED = SPEC.model_copy(update={"run_policy": RunPolicy(max_retries=9)})


@pytest.mark.parametrize(("spec", "replaced"), [(SPEC, 0), (RAISED, 1)], ids=["the same content", "another run policy"])
@pytest.mark.parametrize("waiting", [waiting_attempt, waiting_preflight], ids=["attempt", "preflight"])
def test_a_pod_that_does_not_accept_the_next_bundle_is_replaced_too(
    waiting: Any, spec: FineTuneJobSpec, replaced: int
) -> None:
    digest = bundles.digest_of_next_pod(replace(waiting(), bundle=None), SPEC, PROFILE)

    plan = reconcile(waiting_with(waiting(spec=spec), digest), NOW + timedelta(minutes=2))

    assert ("ConfigMap" in kinds(plan), len(plan.delete_jobs)) == (not replaced, replaced)
    assert ("The pod does not accept the new content, so it is replaced." in message(plan)) == bool(replaced)


def test_a_pod_without_the_certificate_authority_of_the_next_bundle_is_replaced_too() -> None:
    private = [{**storage, "caBundle": {"configMapName": "our-ca"}} for storage in SAID["storages"]]

    plan = reconcile(waiting_attempt(profile=changed(storages=private)), NOW + timedelta(minutes=2))

    assert len(plan.delete_jobs) == 1
    assert "The pod does not mount our-ca, which" in message(plan)


ON_THE_HUB = SPEC.model_copy(update={"model": SPEC.model.model_copy(update={"uri": "hf://acme/model"})})


@pytest.mark.parametrize(("token", "replaced"), [("new-token", 1), ("old-token", 0), (None, 0)])
def test_a_pod_without_the_hub_token_of_the_next_bundle_is_replaced_too(token: str | None, replaced: int) -> None:
    hub = {"endpoint": "https://hub.example"} | ({"tokenSecretName": token} if token else {})
    waiting = attempt(WAITS, mounted=(*MOUNTS, "old-token"))
    world = validated(bundle=None, spec=ON_THE_HUB, profile=changed(hub=hub), attempts={1: waiting})

    plan = reconcile(world, NOW + timedelta(minutes=2))

    assert len(plan.delete_jobs) == replaced
    assert ("The pod does not mount new-token, which" in message(plan)) == bool(replaced)


@pytest.mark.parametrize("change", ["storages", "hub"])
@pytest.mark.parametrize("live", [preflight(pod()), preflight(pod("Pending"))], ids=["running", "starting"])
def test_a_live_preflight_keeps_its_storages_and_its_hub_after_the_profile_lost_them(live: Run, change: str) -> None:
    profile = OTHER_BUCKETS if change == "storages" else PROFILE
    world = fresh(preflight=live, spec=SPEC if change == "storages" else ON_THE_HUB, profile=PROFILE)
    world = with_status(world, reconcile(fresh(), NOW))

    ready = with_status(world, reconcile(replace(world, profile=profile), NOW)).status.condition(ConditionType.READY)

    assert ready is not None
    assert ready.reason in ("Validating", "PreflightPending")


def test_a_live_preflight_that_lacks_its_bundle_waits_for_a_profile_with_its_storages() -> None:
    plan = reconcile(waiting_preflight(profile=OTHER_BUCKETS), NOW)

    assert reason(plan) == "WaitingForDependency"


def test_what_a_job_mounts_is_read_from_it() -> None:
    (job,) = (body for body in planned(second_attempt()).create if body["kind"] == "Job")
    job["metadata"]["creationTimestamp"] = NOW.isoformat()

    assert Run.parse(job).mounted == ("tickets-12345678", *MOUNTS)
