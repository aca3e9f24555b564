"""Checks the places of a job before anything is read: how its URIs are written, and that its output can be written."""

from pathlib import Path
from uuid import uuid4

from finetune_api.bundle import Bundle, misspelled_of
from finetune_api.conflicts import conflicts
from finetune_api.reasons import FailureReason
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.uris import has_scheme
from finetune_trainer.handover.prepared_place import work_prefix
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.storage.claims.failures import read_only
from finetune_trainer.storage.job_storage import JobStorage, join
from finetune_trainer.storage.ownership import found_published
from finetune_trainer.storage.stores import CORRECT_URI


def check_places(spec: FineTuneJobSpec) -> None:
    """Raises TrainerFailure SpecInvalid when the job would overwrite its own inputs, or read its results as rows.

    Does so too when the API server would refuse a URI. A bundle that is written by hand may contain such a URI. It may
    also contain local paths, which are no URIs."""
    for field, uri, wrong in misspelled_of(spec):
        if has_scheme(uri):
            raise TrainerFailure(FailureReason.SPEC_INVALID, f"{field}: {uri} {wrong}.", CORRECT_URI)
    if contradiction := spec.model.contradiction:
        raise TrainerFailure(FailureReason.SPEC_INVALID, f"spec.model: {contradiction}.")
    if conflict := next(conflicts(spec, str(Path.cwd())), None):
        raise TrainerFailure(FailureReason.SPEC_INVALID, f"{conflict.field}: {conflict.finding}", conflict.remedy)


def check_output(bundle: Bundle, storage: JobStorage) -> None:
    """Raises TrainerFailure OutputOccupied when the folder contains the results of another job. Raises
    OutputNotWritable when a probe file cannot be written, replaced and removed, or when the storage does not support
    conditional writes, which publishing needs."""
    phase("checking spec.output.uri")
    try:
        _write_probe(bundle, storage)
    except TrainerFailure as failure:
        raise read_only(failure) or failure from failure.__cause__


def _write_probe(bundle: Bundle, storage: JobStorage) -> None:
    found_published(storage, bundle)
    folder = join(work_prefix(bundle), "probe", uuid4().hex)  # another preflight pod of the job may be at work
    probe = join(folder, "written-and-removed")
    # Different content, because the storage tells by it whether a repeated request was served the first time.
    first, second = (storage.write_bytes(probe, uuid4().bytes, if_absent=True) for _ in range(2))
    storage.write_bytes(probe, b"")  # uploads replace files, and not every file system can
    storage.delete_prefix(folder)
    if not first or second:
        raise TrainerFailure(
            FailureReason.OUTPUT_NOT_WRITABLE,
            f"The storage of spec.output.uri {bundle.spec.output.uri} does not support conditional writes "
            "(If-None-Match). Two jobs could overwrite each other's results.",
            "Set spec.output.uri to a bucket of a storage that supports them.",
        )
