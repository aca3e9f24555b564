"""The container that gets the model from the cache: when there is one, and what it may do."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api import names
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.decisions.objects import children
from finetune_operator.decisions.objects.children import Try
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.facts.claims import Claim
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import World
from tests.unit.finetune_operator.decisions.objects.test_claims import job
from tests.unit.finetune_operator.plans import kinds, message, reason, state
from tests.unit.finetune_operator.worlds import NOW, PROFILE, SPEC, fresh, validated

BOUND = Claim("Bound", ("ReadWriteMany",), "pv-1")


def profile(**cache: Any) -> FineTuneProfileSpec:
    body = PROFILE.model_dump(by_alias=True, exclude_none=True) | {"claims": {"allowed": ["*"]}}
    return FineTuneProfileSpec.model_validate(body | {"modelCache": {"claimName": "models-of-team"} | cache})


def world(claim: Claim | None = BOUND, **parts: Any) -> World:
    return validated(**{"profile": profile(), "claims": {"models-of-team": claim}} | parts)


def pods(known: World) -> dict[str, Object]:
    assert known.spec
    assert known.profile
    made = {
        "preflight": children.preflight_job(known, known.spec, known.profile),
        "train": children.attempt_job(known, known.spec, known.profile, Try(1, known.profile.gpu_types[0])),
        "cleanup": children.cleanup_job(known, known.spec, known.profile),
    }
    return {step: job["spec"]["template"]["spec"] for step, job in made.items()}


def claims_of(container: Object, pod: Object) -> list[str]:
    volumes = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
    }
    return [volumes[mount["name"]] for mount in container["volumeMounts"] if mount["name"] in volumes]


def test_only_the_fetching_container_of_a_training_pod_mounts_the_cache() -> None:
    found = pods(world())
    pod = found["train"]
    (fetcher,), (trainer,) = pod["initContainers"], pod["containers"]
    assert claims_of(fetcher, pod) == ["models-of-team"]
    assert claims_of(trainer, pod) == []
    assert {"name": "model-cache", "mountPath": "/model-cache"} in fetcher["volumeMounts"]
    for step in ("preflight", "cleanup"):
        assert "initContainers" not in found[step]
        assert "model-cache" not in str(found[step])


def test_the_fetching_container_has_the_trainers_image_keys_and_limits_but_no_gpu() -> None:
    pod = pods(world())["train"]
    (fetcher,), (trainer,) = pod["initContainers"], pod["containers"]
    assert fetcher["name"] == names.FETCHER
    assert fetcher["args"] == ["fetch", trainer["args"][-1]]
    for same in ("image", "imagePullPolicy", "env", "securityContext", "terminationMessagePolicy"):
        assert fetcher[same] == trainer[same]
    assert all(mount in fetcher["volumeMounts"] for mount in trainer["volumeMounts"])
    assert fetcher["resources"] == {"requests": {"cpu": "1", "memory": "8Gi"}, "limits": {"memory": "8Gi"}}
    assert "nvidia.com/gpu" in trainer["resources"]["limits"]
    assert "lifecycle" not in fetcher


def test_the_limit_of_the_cache_is_passed_in_bytes() -> None:
    pod = pods(world(profile=profile(maxSize="1.5Gi")))["train"]
    assert pod["initContainers"][0]["args"][:3] == ["fetch", "--cache-bytes", str(3 * 2**29)]


def events(known: World) -> list[str]:
    plan = reconcile(known, NOW)
    assert "Job" in kinds(plan)
    return [event.message for event in plan.events if event.reason == "ModelCacheUnused"]


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        (None, "does not exist in namespace team"),
        (replace(BOUND, is_leaving=True), "is being deleted"),
        (Claim("Pending", ("ReadWriteMany",)), "is not bound to a volume, but Pending"),
        (Claim("Lost", ("ReadWriteMany",), "pv-1"), "is not bound to a volume, but Lost"),
        (Claim("Bound", ("ReadWriteOnce", "ReadOnlyMany"), "pv-1"), "does not have the access mode ReadWriteMany"),
    ],
)
def test_without_a_usable_claim_an_attempt_goes_without_the_cache_and_an_event_says_why(
    claim: Claim | None, told: str
) -> None:
    known = world(claim)
    assert "initContainers" not in pods(known)["train"]
    (event,) = events(known)
    assert event.startswith(
        f"PersistentVolumeClaim models-of-team, the cache of models of FineTuneProfile default, {told}. Attempt 1 "
        "downloads its model itself."
    )


def test_a_cache_that_is_used_needs_no_event() -> None:
    assert events(world()) == []
    assert events(world(profile=PROFILE)) == []


def test_a_model_in_a_volume_is_not_copied_to_another_volume() -> None:
    known = world(spec=job(train="s3://data/rows.jsonl"), claims={"models": BOUND})
    assert "initContainers" not in pods(known)["train"]
    assert events(known) == []


@pytest.mark.parametrize(
    "parts",
    [{"model": "pvc://models-of-team/entries/x"}, {"output": {"uri": "pvc://models-of-team/out"}}],
    ids=["model", "output"],
)
def test_a_job_may_not_use_the_claim_of_the_cache_itself(parts: dict[str, Any]) -> None:
    plan = reconcile(fresh(spec=job(**parts), profile=profile()), NOW)
    assert (state(plan), reason(plan)) == ("Failed", "SpecInvalid")
    assert "PersistentVolumeClaim models-of-team is the cache of models of FineTuneProfile default" in message(plan)


def test_a_job_without_a_cache_has_the_pod_that_it_always_had() -> None:
    known = validated()
    assert pods(known)["train"] == pods(validated(profile=PROFILE, claims={"x": BOUND}))["train"]
    assert known.spec == SPEC
