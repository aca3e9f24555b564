"""The PersistentVolumeClaims of a job: which of them its pods mount, and why a claim cannot be used."""

from collections.abc import Mapping
from typing import NamedTuple

from finetune_api import claims, names
from finetune_api.bundle import Bundle, uris_of
from finetune_api.spec.job import FineTuneJobSpec
from finetune_operator.observed.claims import Claim
from finetune_operator.observed.pods import Object


class Problem(NamedTuple):
    """Why a claim cannot be used, and what to do."""

    finding: str
    remedy: str
    is_missing: bool = False
    """Whether the claim does not exist. A pipeline may create it after the job."""


def needed(spec: FineTuneJobSpec, step: str) -> dict[str, str]:
    """Return the claims that the pod of a step reads: the field of the first URI in each, by the name of the claim.

    The training pod reads the base model alone: preflight has prepared the rows and copied the adapter. Each further
    volume could keep a pod with a GPU waiting. A cleanup reads none."""
    uris = {"preflight": uris_of(spec), "train": {"spec.model.uri": spec.model.uri}}.get(step, {})
    found: dict[str, str] = {}
    for field, uri in uris.items():
        if named := claims.split(uri):
            found.setdefault(named[0], field)
    return found


def problem(spec: FineTuneJobSpec, namespace: str, known: Mapping[str, Claim | None]) -> Problem | None:
    """Return why the first claim cannot be used; None if all can. `known`: those that the next pod needs.

    A claim that is not bound is no problem here: many are bound when their first pod is scheduled. If not, the
    preflight, which has no GPU, waits and says so."""
    for name, field in needed(spec, "preflight").items():
        if name in known and (found := _problem(name, namespace, known[name])):
            return found._replace(finding=f"{field}: {found.finding}")
    return None


def _problem(name: str, namespace: str, claim: Claim | None) -> Problem | None:
    if claim is None:
        return Problem(
            f"PersistentVolumeClaim {name} does not exist in namespace {namespace}.",
            "Create the claim, or correct its name. List the claims with "
            f"kubectl get persistentvolumeclaims --namespace {namespace}.",
            is_missing=True,
        )
    if claim.is_leaving:
        return Problem(
            f"PersistentVolumeClaim {name} is being deleted, so no new pod can use it.",
            "Create the claim again when it is gone, or use another one.",
        )
    if claim.phase == "Lost":
        return Problem(
            f"PersistentVolumeClaim {name} has lost its volume: PersistentVolume {claim.volume} does not exist.",
            "Create the claim again with a volume that has the files.",
        )
    return None


def with_claims(pod: Object, bundle: Bundle, step: str) -> Object:
    """Return the pod of a step with the volumes of the claims that the step reads."""
    (container,) = pod["containers"]
    for i, name in enumerate(needed(bundle.spec, step)):
        source = {"claimName": name, "readOnly": True}
        pod["volumes"].append({"name": f"claim-{i}", "persistentVolumeClaim": source})
        mount = {"name": f"claim-{i}", "mountPath": f"{names.CLAIM_FOLDER}/{name}", "readOnly": True}
        container["volumeMounts"].append(mount)
    return pod
