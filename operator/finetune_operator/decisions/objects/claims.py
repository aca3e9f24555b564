"""The PersistentVolumeClaims of a job: which of them its pods mount, and why a claim cannot be used."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from finetune_api import claims, names
from finetune_api.bundle import Bundle, uris_of
from finetune_api.reasons import FailureReason
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.observed.facts.claims import SHARED, WRITABLE, Claim
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import World

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
"""The taint with which an administrator says that nothing runs on a node any more. Its volumes are then detached."""

LOOK_AGAIN = timedelta(seconds=30)
"""Interval of checks for a volume that is still attached. Each check reads all VolumeAttachments of the cluster, and
Kubernetes detaches the volume of a lost node only after 6 minutes."""

DETACH_LIMIT = timedelta(hours=1)
"""How long a volume may stay attached to a node that does not answer. Without the taint, Kubernetes never detaches it
while the lost pod exists. A pod that cannot mount it afterwards fails with the cause, and gives its GPU back."""

RELEASE_LIMIT = timedelta(minutes=2)
"""How long a volume may stay attached to a node that answers again. The kubelet releases the volume of a pod that is
gone within seconds. A volume that is attached for longer is used by another pod."""


class Problem(NamedTuple):
    """Why a claim cannot be used, and what to do."""

    finding: str
    remedy: str
    is_missing: bool = False
    """Whether the claim does not exist. A pipeline may create it after the job."""
    is_final: bool = False
    """Whether no change of the cluster helps."""


def output_of(spec: FineTuneJobSpec) -> str | None:
    """Return the claim to which the job writes its results; None if they are elsewhere."""
    named = claims.split(spec.output.uri)
    return named[0] if named else None


def needed(spec: FineTuneJobSpec, step: str, earlier: str | None = None) -> dict[str, str]:
    """Return the claims that the pod of a step uses: the field of the first URI in each, by the name of the claim.

    The training pod reads only the base model: preflight has prepared the rows and copied the adapter. Each further
    volume could keep a pod with a GPU waiting. `earlier`: output of the job of spec.resumeFrom."""
    uris = {"spec.output.uri": spec.output.uri}
    if step != names.CLEANUP:
        uris |= {"spec.model.uri": spec.model.uri} | ({"spec.resumeFrom.name": earlier} if earlier else {})
    if step == "preflight":
        uris |= uris_of(spec)
    found: dict[str, str] = {}
    for field, uri in uris.items():
        if named := claims.split(uri):
            found.setdefault(named[0], field)
    return found


def problem(
    spec: FineTuneJobSpec, namespace: str, known: Mapping[str, Claim | None], earlier: str | None = None
) -> Problem | None:
    """Return why the first claim cannot be used; None if all can. `known`: those that the next pod needs.

    A claim that is not bound is no problem here: many are bound when their first pod is scheduled. If not, the
    preflight, which has no GPU, waits and says so."""
    for name, field in needed(spec, "preflight", earlier).items():
        if name in known and (found := _problem(name, namespace, known[name])):
            return found._replace(finding=f"{field}: {found.finding}")
    return _only_read(spec, known) or _of_one_node(spec, known, earlier)


def gone_output(spec: FineTuneJobSpec, namespace: str, known: Mapping[str, Claim | None]) -> str | None:
    """Return that no pod can use the claim of the output any more; None if one can, or if `known` lacks the claim."""
    name = output_of(spec)
    found = _problem(name, namespace, known[name]) if name is not None and name in known else None
    return found.finding if found else None


def misused_cache(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> Problem | None:
    """Return that a URI is in the claim of the profile's cache of models; None if none is.

    A job could change the models of other jobs there."""
    cache = profile.model_cache.claim_name if profile.model_cache else None
    field = needed(spec, "preflight").get(cache) if cache else None
    if field is None:
        return None
    return Problem(
        f"{field}: PersistentVolumeClaim {cache} is the cache of models of FineTuneProfile {spec.profile_name}.",
        "Use another claim.",
    )


def _only_read(spec: FineTuneJobSpec, known: Mapping[str, Claim | None]) -> Problem | None:
    """Return the problem that no pod can write to the claim of the output."""
    name = output_of(spec)
    claim = known.get(name) if name else None
    if claim is None or not claim.access_modes or WRITABLE & set(claim.access_modes):
        return None
    modes = ", ".join(claim.access_modes)
    return Problem(
        f"spec.output.uri: PersistentVolumeClaim {name} has only access mode {modes}, so no pod can write to it.",
        "Use a claim with access mode ReadWriteMany.",
        is_final=True,
    )


def _of_one_node(spec: FineTuneJobSpec, known: Mapping[str, Claim | None], earlier: str | None) -> Problem | None:
    """Return the problem that a job on several nodes needs a claim that only one node at a time can mount."""
    nodes, written = spec.compute.nodes, output_of(spec)
    for name, field in needed(spec, "train", earlier).items() if nodes > 1 else ():
        claim, wanted = known.get(name), {SHARED} if name == written else {SHARED, "ReadOnlyMany"}
        if claim is not None and claim.access_modes and not wanted & set(claim.access_modes):
            modes = ", ".join(claim.access_modes)
            return Problem(
                f"{field}: PersistentVolumeClaim {name} has access mode {modes}, so only one node at a time can mount "
                f"it, but spec.compute.nodes is {nodes}.",
                f"Use a claim with access mode {SHARED}, or set spec.compute.nodes to 1.",
                is_final=True,
            )
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
    """Return the pod of a step with the volumes of the claims that the step uses. Only that of the output can be
    written to.

    A trainer that knows no claims refuses the argument. It would take pvc:// for a folder of its pod, and the results
    would be lost with the pod."""
    (container,) = pod["containers"]
    written = output_of(bundle.spec)
    mounted = needed(bundle.spec, step, bundle.resume.output if bundle.resume else None)
    if mounted:
        container["args"][1:1] = ["--claims", names.CLAIM_FOLDER]
    for i, name in enumerate(mounted):
        mode = {} if name == written else {"readOnly": True}
        pod["volumes"].append({"name": f"claim-{i}", "persistentVolumeClaim": {"claimName": name, **mode}})
        mount = {"name": f"claim-{i}", "mountPath": f"{names.CLAIM_FOLDER}/{name}", **mode}
        container["volumeMounts"].append(mount)
    if written:
        # Otherwise the kubelet changes the owner of every file of the volume before each pod starts.
        pod["securityContext"]["fsGroupChangePolicy"] = "OnRootMismatch"
    return pod


def still_attached(world: World, now: datetime) -> str | None:
    """Return that the volume of the output is still attached to the lost node of the last attempt; None if it is not,
    or if it will not be detached for this job.

    A volume that one node at a time can mount would keep the next pod from starting while it holds a GPU."""
    name = output_of(world.spec) if world.spec else None
    claim = world.claims.get(name) if name else None
    last = max(world.status.attempts or [], key=lambda attempt: attempt.number, default=None)
    if claim is None or last is None:
        return None
    lost, held = last.completion_time or last.start_time, claim.attached
    if lost is None or held is None or held.node != last.node_name:
        return None
    if last.reason != FailureReason.NODE_LOST and held.answers_since is not None:
        return None
    end = lost + DETACH_LIMIT if held.answers_since is None else max(lost, held.answers_since) + RELEASE_LIMIT
    if now >= end:
        return None
    waits = (
        f"It waits until the volume of PersistentVolumeClaim {name} is detached from node {held.node}, at most until "
        f"{end:%Y-%m-%d %H:%M:%S} UTC, because only one node at a time can mount it."
    )
    if held.answers_since is not None:
        return f"{waits} The node answers again."
    return (
        f"{waits} If the node is off, run: kubectl taint nodes {held.node} {OUT_OF_SERVICE}. A claim with access mode "
        "ReadWriteMany needs no such wait."
    )
