"""Reads the PersistentVolumeClaims that a job names, before one of its pods is created. No watch shows them."""

from dataclasses import replace

from finetune_api.reasons import FailureReason
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.status.job import ConditionType
from finetune_operator.cluster.api import Api
from finetune_operator.cluster.nodes import answers_since, present_state
from finetune_operator.decisions.objects import claims, model_cache
from finetune_operator.observed.child_jobs import Run
from finetune_operator.observed.facts.claims import SHARED, Attachment, Claim
from finetune_operator.observed.facts.pods import NodeState
from finetune_operator.observed.world import World


def claims_of(api: Api, world: World, spec: FineTuneJobSpec) -> dict[str, Claim | None]:
    """Return the claims that the next pod of the job needs, by name; None for one that does not exist.

    Empty while a pod runs or starts."""
    if spec.suspend or any(run.is_live for run in world.attempts.values()):
        return {}
    if world.preflight and world.preflight.is_live and not _has_succeeded(world.preflight):
        return {}
    validated = world.status.is_true(ConditionType.VALIDATED) or (world.preflight and _has_succeeded(world.preflight))
    step = "train" if validated else "preflight"
    named = claims.needed(spec, step, world.earlier_job.output if world.earlier_job else None)
    cache = model_cache.wanted(spec, world.profile) if world.profile and step == "train" else None
    wanted = [*named, *([cache.claim_name] if cache else [])]
    known = {name: _read(api, name, world.namespace) for name in wanted}
    written = claims.output_of(spec)
    if written and (claim := known.get(written)) and SHARED not in claim.access_modes:
        known[written] = replace(claim, attached=_attachment_to_last_node(api, world, claim.volume))
    return known


def claim_of_output(api: Api, world: World, spec: FineTuneJobSpec) -> dict[str, Claim | None]:
    """Return the claim that the cleanup of the job needs, by name; None for one that does not exist."""
    name = claims.output_of(spec)
    return {name: _read(api, name, world.namespace)} if name else {}


def _read(api: Api, name: str, namespace: str) -> Claim | None:
    raw = api.get("PersistentVolumeClaim", name, namespace)
    return Claim.parse(raw) if raw else None


def _has_succeeded(preflight: Run) -> bool:
    """Whether the preflight's container has succeeded. Another container can keep its pod running."""
    return preflight.succeeded or (preflight.pod is not None and preflight.pod.trainer_succeeded)


def _attachment_to_last_node(api: Api, world: World, volume: str) -> Attachment | None:
    """Return the attachment of a PersistentVolume to the node of the last attempt, if that was lost or does not answer.
    It may be lost while a tenant or a budget stops the attempt, whose record names the stop then.

    None if there is no attachment. A volume without a driver that attaches it, for example of NFS, has none."""
    last = max(world.status.attempts or [], key=lambda attempt: attempt.number, default=None)
    if last is None or last.reason is None or last.node_name is None:
        return None
    node = last.node_name
    if last.reason != FailureReason.NODE_LOST and present_state(api, node) is NodeState.ANSWERS:
        return None
    found = [each["spec"] for each in api.listed("/apis/storage.k8s.io/v1/volumeattachments", "")]
    held = any(each["nodeName"] == node and each["source"].get("persistentVolumeName") == volume for each in found)
    return Attachment(node, answers_since(api, node)) if held else None
