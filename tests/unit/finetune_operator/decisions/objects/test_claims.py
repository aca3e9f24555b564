"""Jobs whose model, rows or results are in volumes: which may start, and what their pods mount."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from finetune_api import names
from finetune_api.reasons import FailureReason
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.status.job import ConditionType
from finetune_operator.decisions.objects import children
from finetune_operator.decisions.objects.children import Try
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.facts.claims import Attachment, Claim
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import EarlierJob, World
from tests.unit.finetune_operator.plans import kinds, message, reason, state
from tests.unit.finetune_operator.worlds import NOW, PROFILE, SPEC, UID, fresh, saying, validated

MODEL, ROWS = "pvc://models/llama", "pvc://data/rows/*.jsonl"
BOUND = Claim("Bound", ("ReadOnlyMany",), "pv-1")
GPU = PROFILE.gpu_types[0]
LOST = NOW - timedelta(minutes=50)
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


def test_only_the_claim_of_the_output_can_be_written_to_and_only_it_is_cleaned() -> None:
    found = pods(job(output={"uri": "pvc://results/run"}))
    results = {"/volumes/results": ("results", False)}
    assert {step: mounted["/volumes/results"] for step, mounted in found.items()} == dict.fromkeys(
        found, ("results", False)
    )
    assert found["cleanup"] == results


def test_a_trainer_that_knows_no_claims_cannot_take_them_for_folders_of_its_pod() -> None:
    """It refuses an argument that it does not know, before it does anything."""
    settings = profile("*")
    for spec, given in ((job(output={"uri": "pvc://results/run"}), ["--claims", names.CLAIM_FOLDER]), (SPEC, [])):
        world = fresh(spec=spec, profile=settings)
        made = [
            children.preflight_job(world, spec, settings),
            children.attempt_job(world, spec, settings, Try(1, settings.gpu_types[0])),
            children.cleanup_job(world, spec, settings),
        ]
        for each in made:
            arguments = each["spec"]["template"]["spec"]["containers"][0]["args"]
            assert [text for text in arguments if text in ("--claims", names.CLAIM_FOLDER)] == given


def test_a_claim_with_the_model_and_the_output_is_mounted_once() -> None:
    found = pods(job(train="s3://data/rows.jsonl", output={"uri": "pvc://models/run"}))
    assert all(mounted == {"/volumes/models": ("models", False)} for mounted in found.values())


def test_the_owner_of_every_file_of_a_volume_is_not_changed_before_each_pod() -> None:
    settings = profile("*")
    for spec, policy in ((job(output={"uri": "pvc://results/run"}), "OnRootMismatch"), (job(), None)):
        pod = children.preflight_job(fresh(spec=spec, profile=settings), spec, settings)["spec"]["template"]["spec"]
        assert pod["securityContext"].get("fsGroupChangePolicy") == policy


def test_the_checkpoints_of_an_earlier_job_in_a_claim_are_read_by_preflight_and_training() -> None:
    spec, settings = job(output={"uri": "s3://results/run"}, resumeFrom={"name": "first"}), profile("*")
    earlier = EarlierJob("u", "pvc://old/run", "Failed")
    world = fresh(
        spec=spec, profile=settings, earlier_job=earlier, claims={"old": BOUND, "models": BOUND, "data": BOUND}
    )
    for made in (
        children.preflight_job(world, spec, settings),
        children.attempt_job(world, spec, settings, Try(1, GPU)),
    ):
        assert mounts(made)["/volumes/old"] == ("old", True)
    assert mounts(children.cleanup_job(world, spec, settings)) == {}
    assert "Job" in kinds(reconcile(world, NOW))
    missing = reconcile(replace(world, claims={"old": None}), NOW)
    assert message(missing).startswith("spec.resumeFrom.name: PersistentVolumeClaim old does not exist")
    refused = reconcile(replace(world, profile=profile("models", "data")), NOW)
    assert (state(refused), "PersistentVolumeClaim old is not among" in message(refused)) == ("Failed", True)


def test_a_claim_that_can_only_be_read_is_refused_as_output_before_the_first_pod() -> None:
    world = fresh(spec=job(output={"uri": "pvc://results/run"}), profile=profile("*"))
    known = {"models": BOUND, "data": BOUND, "results": BOUND}
    plan = reconcile(replace(world, claims=known), NOW)
    assert (state(plan), reason(plan)) == ("Failed", "SpecInvalid")
    assert message(plan).startswith(
        "spec.output.uri: PersistentVolumeClaim results has only access mode ReadOnlyMany, so no pod can write to it. "
        "Use"
    )
    for mode in ("ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"):
        usable = known | {"results": Claim("Bound", ("ReadOnlyMany", mode), "pv-2")}
        assert "Job" in kinds(reconcile(replace(world, claims=usable), NOW))


def lost(attached: Attachment | None, reason: str = FailureReason.NODE_LOST) -> World:
    """A job with its results in a claim whose first attempt ended on node n1 at LOST."""
    spec = job(output={"uri": "pvc://results/run"})
    ended = {
        "number": 1,
        "name": names.attempt_name("tickets", UID, 1),
        "reason": reason,
        "message": "M.",
        "nodeName": "n1",
        "startTime": LOST.isoformat(),
        "completionTime": LOST.isoformat(),
    }
    counts = {"attempts": 1, "interruptions": 1, "retries": 0}
    raw = {"observedGeneration": 1, "attempts": [ended], "counts": counts}
    claim = Claim("Bound", ("ReadWriteOnce",), "pv-2", attached)
    world = validated(spec=spec, profile=profile("*"), claims={"results": claim, "models": BOUND})
    return saying(replace(world, raw_status=raw), ConditionType.VALIDATED)


@pytest.mark.parametrize("reason", [FailureReason.NODE_LOST, FailureReason.EVICTED, "Suspended", "BudgetExceeded"])
def test_the_next_attempt_waits_until_the_volume_is_detached_from_a_lost_node(reason: str) -> None:
    """Also if the attempt was stopped before its node counted as lost."""
    plan = reconcile(lost(Attachment("n1"), reason), NOW)
    assert "Job" not in kinds(plan)
    assert state(plan) == "Pending"
    assert (
        "It waits until the volume of PersistentVolumeClaim results is detached from node n1, at most until "
        f"{LOST + timedelta(hours=1):%Y-%m-%d %H:%M:%S} UTC, because only one node at a time can mount it."
    ) in message(plan)
    assert "kubectl taint nodes n1 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute" in message(plan)
    assert plan.requeue_after
    assert plan.requeue_after >= timedelta(seconds=30), "each look reads all attachments of the cluster"


@pytest.mark.parametrize(
    "world",
    [lost(None), lost(Attachment("n2")), lost(Attachment("n1", LOST), FailureReason.EVICTED)],
    ids=["detached", "attached to another node", "the node lives"],
)
def test_the_next_attempt_starts_where_no_lost_node_holds_the_volume(world: World) -> None:
    assert "Job" in kinds(reconcile(world, NOW))


def test_a_volume_that_is_never_detached_does_not_stop_the_job_for_ever() -> None:
    world = lost(Attachment("n1"))
    assert "Job" not in kinds(reconcile(world, LOST + timedelta(minutes=59)))
    assert "Job" in kinds(reconcile(world, LOST + timedelta(hours=1)))


@pytest.mark.parametrize("back", [LOST - timedelta(hours=3), NOW - timedelta(minutes=1)], ids=["before", "after"])
def test_on_a_node_that_answers_again_another_pod_uses_the_volume_if_it_stays_attached(back: datetime) -> None:
    """The wait would end only with that pod. The node can have answered before the attempt counted as lost."""
    world, begin = lost(Attachment("n1", back)), max(LOST, back)
    waiting = reconcile(world, begin + timedelta(seconds=119))
    assert "Job" not in kinds(waiting)
    assert "detached from node n1" in message(waiting)
    assert "The node answers again." in message(waiting)
    assert "taint" not in message(waiting)
    assert "Job" in kinds(reconcile(world, begin + timedelta(minutes=2)))


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
