"""The facts that determine the measurements of a job. A kept measurement of other facts is not used.

Tuned weights are used like a checkpoint: `identity.facts` determines them, whatever version of the trainer goes on."""

from typing import Any

from finetune_api.bundle import Bundle
from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.handover.trainer_version import trainer_version


def result_facts(bundle: Bundle, prepared: Prepared, device: str) -> dict[str, Any]:
    """Returns the facts by name. `device`: the type of the device, cpu or cuda."""
    return {
        "the digest of the spec": bundle.spec_digest,
        "the digest of the data": prepared.preflight.digest,
        "the digest of the base model": prepared.model_digest,
        "the version of the trainer": trainer_version(),
        "the device": device,
    }
