"""Worlds to reconcile: a job as it stands after creation, and the ways it can go on from there."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api import names
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.status.job import Condition, ConditionType, FineTuneJobStatus
from finetune_operator.decisions.objects import bundles
from finetune_operator.decisions.plan import Plan
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.pods import Pod, PodCondition
from finetune_operator.observed.world import World

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UID = "12345678-aaaa-bbbb-cccc-1234567890ab"
SPEC = FineTuneJobSpec.model_validate(
    {
        "model": {"uri": "s3://models/base"},
        "dataset": {"train": [{"uri": "s3://data/rows.jsonl"}]},
        "output": {"uri": "s3://results/run"},
    }
)
PROFILE = FineTuneProfileSpec.model_validate(
    {
        "trainer": {"image": "trainer:1"},
        "gpuTypes": [{"name": "h100", "nodeSelector": {"gpu": "h100"}, "tolerations": [{"key": "gpu"}]}],
        "storages": [
            {"buckets": ["data", "models"], "credentialsSecretName": "read"},
            {"buckets": ["*"], "credentialsSecretName": "write"},
        ],
    }
)

HELD = {"suspended": True, "queue": "gpus"}
"""Fields of a run whose Job its queue holds back."""


ARTIFACTS = {"adapter": "s3://r/a", "report": "s3://r/r", "manifest": "s3://r/m", "digest": "0"}
"""What the pod of an attempt writes when it has published."""
BY_PODS = ("preflight", "resolved", "training", "evaluation", "artifacts")
"""Fields of the status that pods write."""


def fresh(**changes: Any) -> World:
    """A job that was just created, whose profile is there."""
    world = World(
        namespace="team",
        name="tickets",
        uid=UID,
        resource_version="7",
        generation=1,
        created=NOW - timedelta(seconds=2),
        deleting=False,
        queue=None,
        priority_class=None,
        raw_status={"observedGeneration": -1},
        status=FineTuneJobStatus(observed_generation=-1),
        spec=SPEC,
        profile=PROFILE,
    )
    return replace(world, **changes)


def pod(phase: str = "Running", **fields: Any) -> Pod:
    started = NOW if phase != "Pending" else None
    usual = {"name": "tickets-12345678-x", "created": NOW, "started": started, "node_name": "n1"}
    return Pod(phase=phase, **{**usual, **fields})


PLACED = {"PodScheduled": PodCondition("True", "", "", since=NOW)}


def pending(**fields: Any) -> Pod:
    """A pod that has a node since NOW, and whose trainer has not started."""
    return pod("Pending", **{"name": "p", "conditions": PLACED, **fields})


def run(name: str, pod: Pod | None = None, **fields: Any) -> Run:
    pods = (pod,) if pod is not None else ()
    return Run(**{"name": name, "created": NOW, "begun": NOW, "pod": pod, "pods": pods, **fields})


def preflight(pod: Pod | None = None, **fields: Any) -> Run:
    return run(names.preflight_name("tickets", UID), pod, **fields)


def attempt(pod: Pod | None = None, **fields: Any) -> Run:
    return run(names.attempt_name("tickets", UID, 1), pod, **fields)


def validated(**changes: Any) -> World:
    """Its preflight has succeeded, so its bundle exists."""
    world = fresh(
        service_account_exists=True,
        role_binding_exists=True,
        preflight=preflight(pod("Succeeded"), succeeded=True),
        **changes,
    )
    if world.spec is None or world.profile is None or "bundle" in changes:
        return world
    return replace(world, bundle=bundles.bundle_of(world, world.spec, world.profile))


def with_status(world: World, plan: Plan) -> World:
    """The world after the plan's status was written. Fields that the operator applies no longer are gone."""
    if plan.status is None:
        return world
    others = [
        c
        for c in world.raw_status.get("conditions", [])
        if c["type"] in (ConditionType.VALIDATED, ConditionType.TRAINED, ConditionType.EVALUATED)
    ]
    written = {name: part for name, part in world.raw_status.items() if name in BY_PODS}
    raw = {**written, **plan.status, "conditions": plan.status["conditions"] + others}
    return replace(world, raw_status=raw, status=FineTuneJobStatus.model_validate(raw))


def published(**changes: Any) -> World:
    """A validated world whose attempt has published its results."""
    return saying(validated(**changes), ConditionType.EVALUATED, artifacts=ARTIFACTS)


def saying(
    world: World,
    type: ConditionType,
    status: str = "True",
    reason: str = "R",
    message: str = "M",
    since: datetime = NOW,
    **parts: Any,
) -> World:
    """The world after a pod wrote this condition, and further parts of the status."""
    condition = Condition.model_validate(
        {"type": type, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}
    ).model_dump(mode="json", by_alias=True, exclude_none=True)
    raw = {**world.raw_status, **parts, "conditions": [*world.raw_status.get("conditions", []), condition]}
    return replace(world, raw_status=raw, status=FineTuneJobStatus.model_validate(raw))
