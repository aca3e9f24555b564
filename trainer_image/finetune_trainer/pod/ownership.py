"""Whose the results at output.uri are: manifest.json, written last, alone says so."""

import json
from typing import Any

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.storage import Storage, join

MANIFEST = "manifest.json"


def published(storage: Storage, bundle: Bundle) -> dict[str, Any] | None:
    """The manifest this very job has already written, as before its pod was started again; None where there is none.
    A local run knows its own by the spec. Raises TrainerFailure OutputOccupied where the manifest is another's."""
    output = bundle.spec.output.uri
    if not storage.exists(join(output, MANIFEST)):
        return None
    manifest = _object(storage.read_bytes(join(output, MANIFEST)))
    owner = manifest.get("job")
    if bundle.job is None:
        ours = owner is None and manifest.get("specDigest") == bundle.spec_digest
    else:
        ours = isinstance(owner, dict) and owner.get("uid") == bundle.job.uid
    if not ours:
        known = owner if isinstance(owner, dict) else {}
        whose = "/".join(str(known[key]) for key in ("namespace", "name") if key in known) or "another job"
        raise TrainerFailure(
            FailureReason.OUTPUT_OCCUPIED, f"output.uri {output} already contains the results of {whose}."
        )
    return manifest


def _object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`; empty where it is none, which makes it nobody's."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
