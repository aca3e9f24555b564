"""The checkpoints of the job that spec.resumeFrom names. This job starts from the newest one."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api import names
from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_trainer.checkpoints.identity import facts
from finetune_trainer.checkpoints.store import CHECKPOINTS, CheckpointStore
from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import JobStorage, join

FIELD = "spec.resumeFrom.name"
FIELDS_OF = {
    "the digest of the data": " The rows of spec.dataset or their tokens are not the same.",
    "the digest of the base model": " The files of spec.model.uri are not the same.",
}
"""The fields from which a fact follows that is no field itself."""
REMEDY = (
    "Set spec.model, spec.dataset, spec.method and spec.training as in that job. Or remove spec.resumeFrom, and the "
    "job starts with the first step."
)


def require_checkpoint(bundle: Bundle, storage: JobStorage, prepared: Prepared) -> None:
    """Raises TrainerFailure SpecInvalid if spec.resumeFrom is set and no checkpoint of the earlier job fits this job.

    Reads no weights. Raises TrainerFailure as JobStorage does."""
    if bundle.spec.resume_from is None:
        return
    store = earlier_store(bundle, storage, facts(bundle, prepared))
    said = store.why_unusable()
    if said or store.is_empty:
        raise no_checkpoint(bundle, said)


def earlier_store(bundle: Bundle, storage: JobStorage, deciding: Mapping[str, Any]) -> CheckpointStore:
    """Returns the checkpoints of the earlier job, only to be read. `deciding`: what decides the steps of this job.

    Raises TrainerFailure SpecInvalid if the operator did not find the earlier job."""
    if bundle.resume is None:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"{FIELD}: FineTuneJob {_name(bundle)} was deleted, so the place of its checkpoints is not known.",
            "Create the job again without spec.resumeFrom, or name another job that failed.",
        )
    uri = join(bundle.resume.output, names.WORK_FOLDER, bundle.resume.uid, CHECKPOINTS)
    return CheckpointStore(storage, uri, "reader", deciding)


def no_checkpoint(bundle: Bundle, said: Sequence[str]) -> TrainerFailure:
    """Returns the failure that no checkpoint of the earlier job is usable. `said`: why, newest first; [] if there are
    none."""
    if not said:
        where = f" below {bundle.resume.output}" if bundle.resume else ""
        return TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"{FIELD}: FineTuneJob {_name(bundle)} has no checkpoints{where}. It stored none, or they were deleted.",
            "Remove spec.resumeFrom, and the job starts with the first step.",
        )
    fields = next((sentence for fact, sentence in FIELDS_OF.items() if fact in said[0]), "")
    return TrainerFailure(
        FailureReason.SPEC_INVALID,
        f"{FIELD}: no checkpoint of FineTuneJob {_name(bundle)} fits. {said[0]}{fields}",
        REMEDY,
    )


def _name(bundle: Bundle) -> str:
    return bundle.spec.resume_from.name if bundle.spec.resume_from else ""
