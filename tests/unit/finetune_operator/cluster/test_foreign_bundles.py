"""A tenant who may create ConfigMaps cannot choose the Secrets, the hub or the storages of a job's pods."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api import names
from finetune_api.bundle import Bundle, JobIdentity
from finetune_api.spec.profile import Hub
from finetune_operator.cluster.bundles import having
from finetune_operator.decisions.objects import bundles
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import World
from tests.unit.finetune_operator.plans import kinds, message, reason, state
from tests.unit.finetune_operator.worlds import NOW, PROFILE, SPEC, attempt, fresh, pod, preflight, with_status

OWN = Bundle.model_validate(bundles.bundle_of(fresh(), SPEC, PROFILE).model_dump())
OTHER_MODEL = SPEC.model_copy(update={"model": SPEC.model.model_copy(update={"uri": "hf://acme/model"})})
FORGED = {
    "another hub": {"hub": Hub(endpoint="http://attacker.example")},
    "another model": {"spec": OTHER_MODEL},
    "other Secrets": {"storages": [PROFILE.storages[1].model_copy(update={"credentials_secret_name": "any"})]},
    "another job": {"job": JobIdentity(namespace="team", name="tickets", uid="another")},
    "no job": {"job": None},
    "permission for the CPU": {"allow_cpu": not PROFILE.trainer.allow_cpu},
}
EARLIER_PROFILE = {"allow_cpu": not PROFILE.trainer.allow_cpu}


def made(bundle: Bundle) -> Object:
    return bundles.config_map(fresh(), bundle)


def forged(**parts: Any) -> Object:
    return made(OWN.model_copy(update=parts))


def suspended() -> World:
    """It waited suspended before its first pod, and may run now."""
    held = fresh(spec=SPEC.model_copy(update={"suspend": True}))
    return replace(with_status(held, reconcile(held, NOW)), spec=SPEC, generation=2)


def begun() -> World:
    """Its first preflight was created, has failed, and is on record."""
    world = with_status(fresh(), reconcile(fresh(), NOW))
    world = replace(world, preflight=preflight(pod("Failed", exit_code=26), failed=True))
    return with_status(world, reconcile(world, NOW))


def without_digest(world: World) -> World:
    """As an earlier version wrote it."""
    status = world.status.model_copy(update={"bundle_digest": None})
    return replace(world, status=status, raw_status={k: v for k, v in world.raw_status.items() if k != "bundleDigest"})


@pytest.mark.parametrize("parts", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("before", [fresh, suspended, begun])
def test_a_bundle_that_the_operator_did_not_write_is_replaced_before_a_pod_is_created(
    before: Any, parts: dict[str, Any]
) -> None:
    plan = reconcile(having(before(), forged(**parts)), NOW)

    assert (plan.create, plan.delete_config_maps) == ([], ["tickets-12345678"])
    assert (state(plan), reason(plan)) == ("Pending", "WaitingForDependency")
    assert message(plan) == (
        "ConfigMap tickets-12345678, the input of the job's pods, is not used: The operator did not write its content. "
        "The operator deletes the ConfigMap and creates it again. Do not create or replace it."
    )


def test_the_operator_uses_what_it_wrote_also_after_the_profile_and_the_run_policy_were_changed() -> None:
    other = PROFILE.model_copy(update={"storages": PROFILE.storages[1:]})
    policy = SPEC.model_copy(update={"run_policy": SPEC.policy, "suspend": False})
    world = replace(begun(), profile=other, spec=policy, generation=3)

    assert having(world, made(OWN)).bundle == OWN


def test_a_bundle_written_before_the_process_stopped_is_used_by_the_next_one() -> None:
    assert having(suspended(), made(OWN)).bundle == OWN


def test_a_job_that_an_earlier_version_began_goes_on_and_its_bundle_is_recorded() -> None:
    legacy = without_digest(begun())
    earlier = forged(**EARLIER_PROFILE)

    found = having(legacy, earlier)
    plan = reconcile(found, NOW)

    assert (found.bundle_is_foreign, plan.delete_config_maps) == (False, [])
    assert plan.status is not None
    assert plan.status["bundleDigest"] == bundles.digest(earlier["data"][names.BUNDLE_KEY])


@pytest.mark.parametrize("kind", ["another model", "another job", "no job"])
def test_its_bundle_must_be_for_this_job_and_its_spec(kind: str) -> None:
    assert having(without_digest(begun()), forged(**FORGED[kind])).bundle_is_foreign


def test_the_digest_is_on_record_with_the_first_pod_and_stays_to_the_end() -> None:
    plan = reconcile(fresh(), NOW)
    (config_map,) = (body for body in plan.create if body["kind"] == "ConfigMap")
    assert plan.status is not None
    assert plan.status["bundleDigest"] == bundles.digest(config_map["data"][names.BUNDLE_KEY])

    over = replace(begun(), attempts={1: attempt(pod("Succeeded"), succeeded=True)})
    last = reconcile(over, NOW).status
    assert last is not None
    assert last["bundleDigest"] == plan.status["bundleDigest"]


def test_a_first_pod_whose_status_was_not_written_does_not_let_a_forged_bundle_in() -> None:
    world = fresh(preflight=preflight(pod()))

    found = having(world, forged(**FORGED["another hub"]))

    assert (found.bundle, found.bundle_is_foreign) == (None, True)
    assert "ConfigMap" in kinds(reconcile(world, NOW)), "the digest is recorded together with a new bundle"


def test_a_forged_bundle_of_a_pod_that_waits_for_it_is_deleted() -> None:
    world = replace(begun(), preflight=None, attempts={1: attempt(pod("Pending"))})

    assert reconcile(having(world, forged(**FORGED["other Secrets"])), NOW).delete_config_maps == ["tickets-12345678"]


def test_a_job_that_is_being_deleted_keeps_its_bundle() -> None:
    found = having(fresh(deleting=True), forged(**FORGED["no job"]))

    assert reconcile(found, NOW).delete_config_maps == []
