"""The operator's part of the status, written in one place: state, stage, conditions, attempts."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from finetune_api.reasons import FailureReason
from finetune_api.status.job import Attempt, Condition, ConditionType, Counts, FineTuneJobStatus, Stage, State
from finetune_operator.observed.pods import Object
from finetune_operator.observed.world import World

Truth = Literal["True", "False"]
_OWN = {
    ConditionType.READY,
    ConditionType.RECONCILING,
    ConditionType.STALLED,
    ConditionType.COMPLETE,
    ConditionType.FAILED,
}
_OWN_FIELDS = ("observedGeneration", "state", "stage", "counts", "attempts")


@dataclass(frozen=True)
class Outlook:
    """How the job stands, decided once; state and conditions follow from it."""

    state: State
    reason: str
    message: str
    stage: Stage | None = None
    failure: FailureReason | None = None


def operator_status(world: World, outlook: Outlook, attempts: list[Attempt], now: datetime) -> Object:
    """The operator's whole intent, as it is applied."""
    status = FineTuneJobStatus(
        observed_generation=world.generation,
        state=outlook.state,
        stage=outlook.stage,
        conditions=_conditions(world, outlook, now),
        counts=Counts(attempts=max((a.number for a in attempts), default=0)),
        attempts=attempts[-10:] or None,
    )
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def is_written(world: World, wanted: Object) -> bool:
    """Whether the status already says all of this, so that nothing has to be written."""
    present = world.raw_status
    own = {c["type"]: c for c in wanted["conditions"]}
    there = {c["type"]: c for c in present.get("conditions", []) if c["type"] in {*own, *_OWN}}
    return there == own and all(present.get(name) == wanted.get(name) for name in _OWN_FIELDS)


def _conditions(world: World, outlook: Outlook, now: datetime) -> list[Condition]:
    """kstatus reads Ready, Reconciling and Stalled; kubectl wait also Complete and Failed, which appear at the end."""
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
        # The preflight pod's word, said in its place where it ended without one.
        if world.status.condition(ConditionType.VALIDATED) is None:
            wanted[ConditionType.VALIDATED] = False
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
