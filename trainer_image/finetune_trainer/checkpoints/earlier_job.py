"""The job that spec.resumeFrom names. This job starts from its tuned weights, or else from its newest checkpoint."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_api import names
from finetune_api.bundle import Bundle, ResumePoint
from finetune_api.reasons import FailureReason
from finetune_trainer.checkpoints.folder import SETTLED, Difference, Unusable
from finetune_trainer.checkpoints.identity import facts
from finetune_trainer.checkpoints.kept import KEPT, TRAINED, KeptResults
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


def require_checkpoint(bundle: Bundle, storage: JobStorage, prepared: Prepared) -> None:
    """Raises TrainerFailure SpecInvalid if spec.resumeFrom is set and the earlier job has neither a checkpoint nor
    tuned weights that fit this job.

    Reads no weights. Raises TrainerFailure as JobStorage does."""
    if bundle.spec.resume_from is None:
        return
    store = earlier_store(bundle, storage, facts(bundle, prepared))
    results = earlier_results(bundle, storage, prepared, Path())
    if results is not None and results.has(TRAINED):
        return
    unusable = store.unusable()
    if unusable or store.is_empty:
        raise no_checkpoint(bundle, unusable)


def earlier_store(bundle: Bundle, storage: JobStorage, deciding: Mapping[str, Any]) -> CheckpointStore:
    """Returns the checkpoints of the earlier job, only to be read. `deciding`: what decides the steps of this job.

    Raises TrainerFailure SpecInvalid if the operator did not find the earlier job."""
    if bundle.resume is None:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"{FIELD}: FineTuneJob {_name(bundle)} was deleted, so the place of its checkpoints is not known.",
            "Remove spec.resumeFrom, or name another job that failed.",
        )
    return CheckpointStore(storage, join(_work_of(bundle.resume), CHECKPOINTS), "reader", deciding)


def earlier_results(bundle: Bundle, storage: JobStorage, prepared: Prepared, scratch: Path) -> KeptResults | None:
    """Returns the kept results of the earlier job's training, only to be read, or None without an earlier job.
    `scratch`: a folder for downloads."""
    if bundle.spec.resume_from is None or bundle.resume is None:
        return None
    return KeptResults(storage, join(_work_of(bundle.resume), KEPT), 0, facts(bundle, prepared), scratch)


def no_checkpoint(bundle: Bundle, unusable: Sequence[Unusable]) -> TrainerFailure:
    """Returns the failure that no checkpoint of the earlier job is usable. `unusable`: why, newest first; [] if there
    are none. A difference of the two jobs is told first, because the user can remove it."""
    if not unusable:
        where = f" below {bundle.resume.output}" if bundle.resume else ""
        return TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"{FIELD}: FineTuneJob {_name(bundle)} has no checkpoints{where}. It stored none, or they were deleted.",
            "If that job has a spec.resumeFrom itself, name the job that it names. Or remove spec.resumeFrom, and the "
            "job starts with the first step.",
        )
    told = next((each for each in unusable if each.difference), unusable[0])
    fields = FIELDS_OF.get(told.difference.name, "") if told.difference else ""
    return TrainerFailure(
        FailureReason.SPEC_INVALID,
        f"{FIELD}: no checkpoint of FineTuneJob {_name(bundle)} fits. {told.why}{fields}",
        f"{_what_to_set(told.difference)} Or remove spec.resumeFrom, and the job starts with the first step.",
    )


def _what_to_set(difference: Difference | None) -> str:
    """Returns a sentence that says which fields of the spec to set, so that the checkpoint fits."""
    field = SETTLED.get(difference.name) if difference else None
    if difference is None or field is None or difference.written is None:
        return "Set spec.model, spec.dataset, spec.method and spec.training as in that job."
    if field == "spec.training.warmupRatio":  # a share of the steps, of which only the result is known
        return f"Set {field} so that {difference.name} is {difference.written}, as in that job."
    return f"Set {field} to {difference.written}."


def _work_of(earlier: ResumePoint) -> str:
    return join(earlier.output, names.WORK_FOLDER, earlier.uid)


def _name(bundle: Bundle) -> str:
    return bundle.spec.resume_from.name if bundle.spec.resume_from else ""
