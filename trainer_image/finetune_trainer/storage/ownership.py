"""Decides which job the results at output.uri belong to. Only manifest.json, which is written last, decides this."""

import json
from typing import Any

from finetune_api import claims
from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.documents import read_document
from finetune_trainer.storage.job_storage import JobStorage, join

MANIFEST = "manifest.json"
_BEGINNING = b'{\n  "job": '
"""How a manifest begins that a job has written."""


def delete_leftovers(storage: JobStorage, bundle: Bundle) -> None:
    """Deletes what killed pods of this job have left at the output, before a pod begins. Also deletes a manifest whose
    writer was killed: no job has published then. Raises TrainerFailure if the storage does not answer."""
    storage.delete_leftovers(join(bundle.spec.output.uri, MANIFEST), is_unfinished)


def found_published(storage: JobStorage, bundle: Bundle) -> dict[str, Any] | None:
    """Deletes what killed pods have left, and returns what `published` does. A pod begins with it."""
    delete_leftovers(storage, bundle)
    return published(storage, bundle)


def is_unfinished(content: bytes) -> bool:
    """Returns whether the writer of a manifest has not ended. Any other file of this name is somebody's own.

    Where a file is written after the node was lost, zeros may stand for its content."""
    try:
        json.loads(content)
    except ValueError:
        return _BEGINNING.startswith(content.rstrip(b"\0")[: len(_BEGINNING)])
    return False


def published(storage: JobStorage, bundle: Bundle) -> dict[str, Any] | None:
    """Returns the manifest that this job has already written, for example before its pod was restarted, or None. A
    local run compares the digest of the spec. Raises TrainerFailure OutputOccupied if another job wrote it, and
    StorageUnavailable if it is unfinished in a claim: the next attempt begins with `delete_leftovers`."""
    output = bundle.spec.output.uri
    if not storage.exists(join(output, MANIFEST)):
        return None
    manifest = _object(storage, join(output, MANIFEST))
    owner = manifest.get("job")
    if bundle.job is None:
        ours = owner is None and manifest.get("specDigest") == bundle.spec_digest
    else:
        ours = isinstance(owner, dict) and owner.get("uid") == bundle.job.uid
    if not ours:
        known = owner if isinstance(owner, dict) else {}
        whose = "/".join(str(known[key]) for key in ("namespace", "name") if key in known) or "another job"
        raise TrainerFailure(
            FailureReason.OUTPUT_OCCUPIED, f"spec.output.uri {output} already contains the results of {whose}."
        )
    return manifest


def _object(storage: JobStorage, uri: str) -> dict[str, Any]:
    """Returns the JSON object in a document, or an empty one if it has none: such a manifest belongs to no job."""
    try:
        found = read_document(storage, uri, json.loads)
    except ValueError as error:
        if uri.startswith(claims.SCHEME) and is_unfinished(storage.read_bytes(uri)):
            raise TrainerFailure(
                FailureReason.STORAGE_UNAVAILABLE, f"{uri} is not finished, because its writer was killed or is slow."
            ) from error
        return {}
    return found if isinstance(found, dict) else {}
