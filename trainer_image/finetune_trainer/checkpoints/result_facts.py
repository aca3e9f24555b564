"""The facts that determine the results of a job's phases. A kept result of other facts is not used."""

import hashlib
import json
from typing import Any

from finetune_api.bundle import Bundle
from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.handover.trainer_version import trainer_version


def result_facts(bundle: Bundle, prepared: Prepared, device: str) -> dict[str, Any]:
    """Returns the facts by name. `device`: the type of the device, cpu or cuda."""
    files = json.dumps(dict(prepared.model_files), sort_keys=True).encode()
    commit = prepared.commit_of(bundle.spec.model.uri)
    return {
        "the digest of the spec": bundle.spec_digest,
        "the digest of the data": prepared.preflight.digest,
        **({"the commit of the base model": commit} if commit else {}),
        "the digest of the base model": hashlib.sha256(files).hexdigest(),
        "the version of the trainer": trainer_version(),
        "the device": device,
    }
