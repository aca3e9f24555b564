"""What the pods of a job mount is what their bundle says, also after the profile was changed."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api import names
from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.decisions import bundles
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.pods import Object, PodCondition, PodEvent
from finetune_operator.observed.world import Run, World
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
    assert plan.status["counts"]["reasons"] == {"Evicted": 1}
    record = (plan.status.get("attempts") or plan.status["preflights"])[0]
    assert record["message"].startswith(
        "ConfigMap tickets-12345678 was deleted before the pod of Job tickets-12345678-"
    )
    assert record["message"].endswith("The pod does not mount rotated, which the storages need now, so it is replaced.")


def test_a_pod_without_the_certificate_authority_of_the_next_bundle_is_replaced_too() -> None:
    private = [{**storage, "caBundle": {"configMapName": "our-ca"}} for storage in SAID["storages"]]

    plan = reconcile(waiting_attempt(profile=changed(storages=private)), NOW + timedelta(minutes=2))

    assert len(plan.delete_jobs) == 1
    assert "The pod does not mount our-ca, which" in message(plan)


def test_what_a_job_mounts_is_read_from_it() -> None:
    (job,) = (body for body in planned(second_attempt()).create if body["kind"] == "Job")
    job["metadata"]["creationTimestamp"] = NOW.isoformat()

    assert Run.parse(job).mounted == ("tickets-12345678", *MOUNTS)
