"""Jobs whose model or rows are in volumes: which may start, and what their pods mount."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.decisions import children
from finetune_operator.decisions.children import Try
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.claims import Claim
from finetune_operator.observed.pods import Object
from tests.unit.finetune_operator.plans import kinds, message, reason, state
from tests.unit.finetune_operator.worlds import NOW, PROFILE, SPEC, fresh, validated

MODEL, ROWS = "pvc://models/llama", "pvc://data/rows/*.jsonl"
BOUND = Claim("Bound", ("ReadOnlyMany",), "pv-1")
LATE = NOW - timedelta(minutes=1)


def job(model: str = MODEL, train: str = ROWS, **parts: Any) -> FineTuneJobSpec:
    body = SPEC.model_dump(by_alias=True, exclude_none=True)
    return FineTuneJobSpec.model_validate(
        body | {"model": {"uri": model}, "dataset": {"train": [{"uri": train}]}} | parts
    )


def profile(*allowed: str) -> FineTuneProfileSpec:
    body = PROFILE.model_dump(by_alias=True, exclude_none=True)
    return FineTuneProfileSpec.model_validate(body | ({"claims": {"allowed": list(allowed)}} if allowed else {}))


def mounts(job: Object) -> dict[str, tuple[str, bool]]:
    """Claim and whether it is mounted read-only, by the folder of the mount."""
    pod = job["spec"]["template"]["spec"]
    volumes = {v["name"]: v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    (container,) = pod["containers"]
    found = [mount for mount in container["volumeMounts"] if mount["name"] in volumes]
    for mount in found:
        assert mount.get("readOnly", False) == volumes[mount["name"]].get("readOnly", False)
    return {m["mountPath"]: (volumes[m["name"]]["claimName"], m.get("readOnly", False)) for m in found}


def pods(spec: FineTuneJobSpec) -> dict[str, dict[str, tuple[str, bool]]]:
    settings = profile("*")
    world = fresh(spec=spec, profile=settings)
    return {
        "preflight": mounts(children.preflight_job(world, spec, settings)),
        "train": mounts(children.attempt_job(world, spec, settings, Try(1, settings.gpu_types[0]))),
        "cleanup": mounts(children.cleanup_job(world, spec, settings)),
    }


def test_each_claim_is_mounted_once_read_only_and_only_where_it_is_read() -> None:
    regression = {"name": "general", "uri": "pvc://data/general.jsonl", "metric": "Loss", "maxDrop": 1}
    found = pods(job(evaluation={"regression": [regression]}))
    models, data = {"/volumes/models": ("models", True)}, {"/volumes/data": ("data", True)}
    assert found == {"preflight": models | data, "train": models, "cleanup": {}}


def test_a_job_without_claims_mounts_none() -> None:
    assert not any(pods(SPEC).values())


@pytest.mark.parametrize("settings", [profile(), profile("data", "other")], ids=["no claims", "another claim"])
def test_a_job_whose_claim_the_profile_does_not_allow_fails_before_its_first_pod(settings: FineTuneProfileSpec) -> None:
    plan = reconcile(fresh(spec=job(), profile=settings), NOW)
    assert (state(plan), reason(plan)) == ("Failed", "SpecInvalid")
    assert message(plan).startswith("spec.model.uri: ")
    assert "spec.claims" in message(plan)
    assert "Job" not in kinds(plan)


def test_a_job_with_bound_claims_starts() -> None:
    world = fresh(spec=job(), profile=profile("*"), claims={"models": BOUND, "data": BOUND})
    assert "Job" in kinds(reconcile(world, NOW))


def test_a_claim_that_is_not_bound_yet_is_left_to_the_preflight_pod() -> None:
    """Many claims are bound when their first pod is scheduled."""
    world = fresh(spec=job(), profile=profile("*"), claims={"models": Claim("Pending"), "data": BOUND})
    assert "Job" in kinds(reconcile(world, NOW))


def test_a_job_waits_for_a_missing_claim_for_a_moment_and_then_fails() -> None:
    known = {"models": BOUND, "data": None}
    waiting = reconcile(fresh(spec=job(), profile=profile("*"), claims=known), NOW)
    failed = reconcile(fresh(spec=job(), profile=profile("*"), claims=known, created=LATE), NOW)
    told = "spec.dataset.train[0].uri: PersistentVolumeClaim data does not exist in namespace team. Create the claim"
    assert (state(waiting), state(failed)) == ("Pending", "Failed")
    assert told in message(waiting)
    assert told in message(failed)
    assert "Job" not in kinds(waiting)


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        (Claim("Bound", volume="pv-1", is_leaving=True), "is being deleted"),
        (Claim("Lost", volume="pv-1"), "has lost its volume: PersistentVolume pv-1 does not exist"),
    ],
)
def test_a_job_waits_for_a_claim_that_no_pod_can_use(claim: Claim, told: str) -> None:
    known = {"models": claim, "data": BOUND}
    plan = reconcile(fresh(spec=job(), profile=profile("*"), claims=known, created=LATE), NOW)
    assert state(plan) == "Pending"
    assert told in message(plan)
    assert "Job" not in kinds(plan)


def test_a_claim_that_was_deleted_after_the_preflight_holds_the_gpu_back() -> None:
    world = validated(spec=job(), profile=profile("*"), claims={"models": None}, created=LATE)
    plan = reconcile(world, NOW)
    assert state(plan) == "Pending"
    assert "PersistentVolumeClaim models does not exist" in message(plan)
    assert "Job" not in kinds(plan)
