"""Reads the PersistentVolumeClaims that a job names, before one of its pods is created. No watch shows them."""

from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.status.job import ConditionType
from finetune_operator.cluster.api import Api
from finetune_operator.decisions import claims
from finetune_operator.observed.claims import Claim
from finetune_operator.observed.world import World


def claims_of(api: Api, world: World, spec: FineTuneJobSpec) -> dict[str, Claim | None]:
    """Return the claims that the next pod of the job needs, by name; None for one that does not exist.

    Empty while a pod runs or starts."""
    runs = [run for run in (world.preflight, *world.attempts.values()) if run is not None]
    if spec.suspend or any(run.is_live for run in runs):
        return {}
    step = "train" if world.status.is_true(ConditionType.VALIDATED) else "preflight"
    found = {name: api.get("PersistentVolumeClaim", name, world.namespace) for name in claims.needed(spec, step)}
    return {name: Claim.parse(raw) if raw else None for name, raw in found.items()}
