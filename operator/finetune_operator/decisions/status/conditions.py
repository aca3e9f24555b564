"""Creates the operator's part of the status: state, stage, conditions and attempts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from finetune_api.reasons import FailureReason
from finetune_api.status.job import Condition, ConditionType, FineTuneJobStatus, Stage, State
from finetune_operator.decisions import gpu_choice
from finetune_operator.decisions.attempts import limits, usage
from finetune_operator.decisions.attempts.records import History, kept
from finetune_operator.decisions.objects import bundles
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import World

Truth = Literal["True", "False"]
_OWN = {
    ConditionType.READY,
    ConditionType.RECONCILING,
    ConditionType.STALLED,
    ConditionType.COMPLETE,
    ConditionType.FAILED,
    ConditionType.SUSPENDED,
    ConditionType.CHECKPOINTS_DELETED,
}
_OWN_FIELDS = (
    *("observedGeneration", "state", "stage", "counts", "attempts", "preflights"),
    *("gpuType", "bundleDigest", "startTime", "gpuSeconds", "cost"),
)


@dataclass(frozen=True)
class Outlook:
    """The decided condition of the job, from which state and conditions follow."""

    state: State
    reason: str
    message: str
    stage: Stage | None = None
    failure: FailureReason | None = None


def operator_status(
    world: World, outlook: Outlook, history: History, now: datetime, created: Sequence[Object] = ()
) -> Object:
    """Return the operator's whole part of the status, for server-side apply. `created`: objects of the same plan."""
    gpu_seconds, cost = usage.totals(world.status, history.attempts)
    status = FineTuneJobStatus(
        observed_generation=world.generation,
        state=outlook.state,
        stage=outlook.stage,
        conditions=_conditions(world, outlook, now),
        counts=history.counts,
        attempts=kept(history.attempts),
        preflights=kept(history.preflights),
        gpu_type=gpu_choice.of_job(world) if history.attempts else world.status.gpu_type,
        bundle_digest=bundles.recorded_digest(world, created),
        start_time=limits.recorded_start(world, history),
        gpu_seconds=gpu_seconds,
        cost=cost,
    )
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def seen_again(world: World) -> Object:
    """Return the operator's part of the status of an ended job as it is, for the present generation of the spec."""
    raw = world.raw_status
    ready: Object = next((c for c in raw["conditions"] if c["type"] == ConditionType.READY), {})
    # The preflight's condition is the operator's if it has the operator's message.
    own = [
        {**condition, "observedGeneration": world.generation}
        for condition in raw["conditions"]
        if condition["type"] in _OWN
        or (condition["type"] == ConditionType.VALIDATED and condition["message"] == ready.get("message"))
    ]
    kept_fields = {name: raw[name] for name in _OWN_FIELDS if name in raw}
    return {**kept_fields, "observedGeneration": world.generation, "conditions": own}


def is_written(world: World, wanted: Object) -> bool:
    """Whether the status already contains all of this, so that no write is needed."""
    present = world.raw_status
    own = {c["type"]: c for c in wanted["conditions"]}
    there = {c["type"]: c for c in present.get("conditions", []) if c["type"] in {*own, *_OWN}}
    return there == own and all(present.get(name) == wanted.get(name) for name in _OWN_FIELDS)


def _conditions(world: World, outlook: Outlook, now: datetime) -> list[Condition]:
    """Return Ready, Reconciling and Stalled for kstatus, and at the end Complete or Failed for kubectl wait.

    A suspended job is Reconciling, because it has not ended."""
    complete, failed = outlook.state is State.COMPLETE, outlook.state is State.FAILED
    wanted: dict[ConditionType, bool] = {
        ConditionType.READY: complete,
        ConditionType.RECONCILING: not (complete or failed),
        ConditionType.STALLED: failed,
    }
    if complete:
        wanted[ConditionType.COMPLETE] = True
    if failed:
        wanted[ConditionType.FAILED] = True
        # Written instead of the preflight pod, if the pod ended without writing it.
        if world.status.condition(ConditionType.VALIDATED) is None:
            wanted[ConditionType.VALIDATED] = False
    suspended = outlook.state is State.SUSPENDED
    if suspended or world.status.condition(ConditionType.SUSPENDED) is not None:
        wanted[ConditionType.SUSPENDED] = suspended
    return [_condition(world, outlook, type, holds, now) for type, holds in wanted.items()]


def _condition(world: World, outlook: Outlook, type: ConditionType, holds: bool, now: datetime) -> Condition:
    status: Truth = "True" if holds else "False"
    before = world.status.condition(type)
    unchanged = before is not None and before.status == status
    return Condition(
        type=type,
        status=status,
        reason=outlook.reason,
        message=outlook.message,
        observed_generation=world.generation,
        last_transition_time=before.last_transition_time if before is not None and unchanged else now,
    )
