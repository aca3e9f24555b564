"""Says what to do about a pod that has to wait, or an object that is refused, from the words of the cluster.

Three parts of the cluster keep a pod from starting: the scheduler finds no node, the API server refuses the pod, or the
kubelet cannot start its containers. Their words name the cause. What helps follows here."""

import re
from collections.abc import Sequence

from kubernetes.utils.quantity import parse_quantity

_NODE_REASON = re.compile(r"(?:^|, )\d+ (?P<reason>.+?)(?=, \d+ |\. |\.?$)")
"""One entry of the scheduler's list: `0/3 nodes are available: 2 Insufficient cpu, 1 Too many pods.`"""
_NOT_HELPFUL = "Preemption is not helpful for scheduling"
"""What the scheduler says of nodes on which no pod has to end for this one: they could not run it even if empty."""
_NO_VICTIMS = "No preemption victims"
"""What the scheduler says of nodes that other pods use, whose priority is not lower."""
_NOT_ELIGIBLE = "not eligible due to preemptionPolicy=Never"
"""What it says if the pod may not end others, so that it does not look which nodes are large enough."""
_TOO_FEW_NODES: tuple[tuple[str, str], ...] = (
    (r"Insufficient cpu", "free or add CPU; for the training pod, spec.compute.cpu can be lowered"),
    (r"Insufficient memory", "free or add memory; for the training pod, spec.compute.memory can be lowered"),
    (r"Insufficient ephemeral-storage", "free or add disk space on a node"),
    (r"Too many pods", "wait until other pods end, or let the nodes run more pods"),
    (
        r"taint",
        "remove the taint, make the node ready that has it, or add its toleration to spec.gpuTypes or spec.pods of the "
        "FineTuneProfile",
    ),
    (
        r"node affinity/selector",
        "correct nodeSelector in spec.gpuTypes or spec.pods of the FineTuneProfile, or label a node accordingly",
    ),
    (r"were unschedulable", "uncordon a node"),
    (
        r"ReadWriteOncePod",
        "wait until the pod ends that uses the same PersistentVolumeClaim, or use a claim with access mode "
        "ReadWriteMany",
    ),
    (
        r"volume node affinity conflict",
        "let the pod run on the nodes of the volume, or use a claim whose volume every node can mount",
    ),
    (r"available persistent volumes to bind|unbound", "correct the claim that has no volume"),
    (r"volume|storage|disk", "correct the volume that the job names or that was added to the pod"),
)
"""What helps against a reason that nodes are refused for, in the scheduler's order of plugins."""
_EXCEEDED = r"exceeded quota: (?P<quota>[^,]+)"
REQUEST_LESS = (
    "request less: for training in spec.compute of a new job, for the preflight in spec.pods.preflight of the "
    "FineTuneProfile"
)
_NEVER_ENOUGH = "The pod alone needs more than ResourceQuota {quota} allows: raise the quota{less}."
_COUNTS = re.compile(r"(count/.*|pods)$")
"""Resources of which a pod cannot request less."""
_NO_WEBHOOK = (r"failed calling webhook \"(?P<webhook>[^\"]+)\"", "Repair the service behind webhook {webhook}.")
_DENIED = r"(?:webhook \"|ValidatingAdmissionPolicy ')(?P<rule>[^\"']+)[\"'].* denied"
_NO_PERMISSION = (
    r"User \"[^\"]+\" cannot|attempting to grant RBAC permissions not currently held|blockOwnerDeletion",
    "Give the ServiceAccount of the operator this permission: install the chart of this release again.",
)
_REFUSALS: tuple[tuple[str, str], ...] = (
    (
        r"failed quota: (?P<quota>[^:]+): must specify (?P<limits>.+?) for",
        "Add a LimitRange with a default for {limits}, because ResourceQuota {quota} demands it.",
    ),
    (
        _EXCEEDED,
        "Wait until other pods of the namespace end, or raise ResourceQuota {quota}.",
    ),
    (
        r"(?:maximum|minimum) \S+ usage per (?:Container|Pod)|max limit to request ratio",
        "Change the LimitRange of the namespace, or spec.compute in a new job, so that the pod is within it.",
    ),
    (
        r"violates PodSecurity",
        "The trainer's pod meets the restricted standard, so correct the webhook or policy that changed it.",
    ),
    (
        r"serviceaccount \"(?P<account>[^\"]+)\" not found",
        "Create ServiceAccount {account}, or correct spec.compute.serviceAccountName in a new job.",
    ),
    _NO_WEBHOOK,
    (
        _DENIED,
        "Ask the owner of {rule} what pods of this namespace must have.",
    ),
    (
        r"RuntimeClass \"[^\"]+\" not found|no PriorityClass with name \S+ was found",
        "Create it, or correct its name: in spec.pods of the FineTuneProfile, in spec.compute of the job, or in the "
        "webhook or policy that added it to the pod.",
    ),
)
"""What helps against a refusal of the API server, with the names from its words."""
_REFUSALS_OF_OBJECTS: tuple[tuple[str, str], ...] = (
    (
        _EXCEEDED,
        "Delete objects of kind {kind} that the namespace no longer needs, or raise ResourceQuota {quota}.",
    ),
    _NO_WEBHOOK,
    (_DENIED, "Ask the owner of {rule} what objects of kind {kind} must have in this namespace."),
    _NO_PERMISSION,
    (
        r" is invalid: ",
        "Correct this value in the FineTuneProfile, or in the webhook or policy that has set it.",
    ),
)
"""Likewise for an object of another kind, which the operator creates itself. Its words for a quota on the number of
objects are those for a quota on the resources of pods."""
_REFUSALS_OF_DELETIONS: tuple[tuple[str, str], ...] = (
    _NO_WEBHOOK,
    (_DENIED, "Ask the owner of {rule} to let the operator delete Jobs in this namespace, or delete this Job."),
    _NO_PERMISSION,
)
"""Likewise for a Job that is not deleted."""
_MISSING = re.compile(r"(?P<kind>secret|configmap|persistentvolumeclaim) \"(?P<name>[^\"]+)\" not found")
_KINDS = {"secret": "Secret", "configmap": "ConfigMap", "persistentvolumeclaim": "PersistentVolumeClaim"}
_UNBOUND = (
    "A PersistentVolumeClaim of the pod has no volume yet: kubectl describe persistentvolumeclaim says why. The pod "
    "starts when the claim is bound."
)
TAKE_OVER = (
    "A correction of the FineTuneProfile counts for the next pod: set spec.suspend of the FineTuneJob to true, and to "
    "false when its state is Suspended."
)
"""The pod of a Job never changes. Unlike a deleted Job, a suspended one counts neither as a retry nor as an
interruption."""
AGAIN_BY_ITSELF = "The operator tries again by itself."
CORRECT_IT = "Correct that cause. The pod then starts by itself."
_LOG_IS_GONE = "The operator has deleted the pod and with it its log: to see where it hung, collect the logs of pods."
_IF_SLOW = "If the work was only slow, raise spec.runPolicy.stallTimeoutSeconds."
UNENDED_FETCH = f"Check the node that status.attempts names: its network and storage. {_LOG_IS_GONE}"
SILENT_ATTEMPT = (
    f"Check the node that status.attempts names: its GPU driver, network and storage. {_LOG_IS_GONE} {_IF_SLOW}"
)
SILENT_PREFLIGHT = f"Check the node that status.preflights names: its network and storage. {_LOG_IS_GONE} {_IF_SLOW}"
"""What helps where the operator has ended a pod because it wrote nothing or did not come to its trainer. Its own
watchdog had not ended it, so nobody has seen the stacks of its threads."""


def of_no_node(said: str) -> str:
    """Return what helps against this message of the scheduler."""
    if missing := _missing(said):
        return missing
    if "unbound immediate PersistentVolumeClaims" in said:
        return _UNBOUND
    if "no nodes available" in said:
        return "Add a node to the cluster."
    if "scheduling gate" in said:
        return "The owner of a scheduling gate of this pod must remove it: see spec.schedulingGates of the pod."
    named, _, of_preemption = said.partition("preemption:")
    helpless = _NOT_HELPFUL in of_preemption and _NO_VICTIMS not in of_preemption
    wishes = [_of_node_reason(reason, helpless) for reason in _node_reasons(named)]
    remedies = "; or ".join(dict.fromkeys(wish for wish in wishes if wish))
    return f"What helps: {remedies}." if remedies else "Correct what the scheduler names, or add a node."


def is_in_use(said: str) -> bool:
    """Whether the scheduler's message is about a node that can run the pod when other pods have ended."""
    named, _, of_preemption = said.partition("preemption:")
    full = any(reason.startswith(("Insufficient ", "Too many pods")) for reason in _node_reasons(named))
    return _NO_VICTIMS in of_preemption or (full and _NOT_ELIGIBLE in of_preemption)


def of_refusal(said: str) -> str:
    """Return what helps against this refusal of the API server; "" if only its own words can say."""
    if (quota := re.search(_EXCEEDED, said)) and (beyond := _beyond_limit(said)):
        less = "" if all(map(_COUNTS.match, beyond)) else f", or {REQUEST_LESS}"
        return _NEVER_ENOUGH.format(quota=quota["quota"], less=less)
    return _first(_REFUSALS, said)


def _beyond_limit(said: str) -> list[str]:
    """Return the resources of which the pod alone requests more than the quota has. The words are those of the
    admission plugin ResourceQuota: `requested: A=1,B=2, used: A=0,B=0, limited: A=4,B=4`."""
    requested, limited = (_amounts(said, word) for word in ("requested", "limited"))
    try:
        pairs = [
            (name, parse_quantity(requested[name]), parse_quantity(limited[name]))
            for name in requested.keys() & limited
        ]
    except ValueError:
        return []
    return [name for name, wanted, most in pairs if wanted > most]


def _amounts(said: str, word: str) -> dict[str, str]:
    found = re.search(rf"{word}: (\S+)", said)
    return dict(re.findall(r"([^,=]+)=([^,=]+)", found[1].rstrip(","))) if found else {}


def of_refused_object(kind: str, said: str) -> str:
    """Return what helps against this refusal of an object of another kind than Pod."""
    remedy = _first(_REFUSALS_OF_OBJECTS, said, kind=kind) or "Correct that cause."
    return f"{remedy} {AGAIN_BY_ITSELF}"


def of_refused_deletion(said: str) -> str:
    """Return what helps against this refusal to delete a Job."""
    return f"{_first(_REFUSALS_OF_DELETIONS, said) or 'Correct that cause, or delete this Job.'} {AGAIN_BY_ITSELF}"


def _first(refusals: Sequence[tuple[str, str]], said: str, **words: str) -> str:
    """Return what helps against the first of these refusals that is meant, with the names from its words and `words`;
    "" if none is."""
    for pattern, remedy in refusals:
        if match := re.search(pattern, said, re.DOTALL):
            return remedy.format(**words, **match.groupdict())
    return ""


def of_taken_name(kind: str, name: str) -> str:
    """Return what helps if an object with this name exists that does not belong to the job."""
    return f"Delete {kind} {name} if nobody needs it, or create the FineTuneJob again. {AGAIN_BY_ITSELF}"


def while_waiting(remedy: str) -> str:
    """Return the remedy of a pod that waits, and how the job takes over a correction of the profile."""
    return f"{remedy} {TAKE_OVER}" if "FineTuneProfile" in remedy else remedy


def of_start(said: str) -> str:
    """Return what helps against this message of the kubelet about a pod that does not start yet."""
    return _missing(said) or CORRECT_IT


def _node_reasons(said: str) -> list[str]:
    """Return the reasons in the scheduler's list, without the numbers of nodes."""
    return [match["reason"] for match in _NODE_REASON.finditer(said.partition("available: ")[2].rstrip())]


def _of_node_reason(reason: str, helpless: bool) -> str:
    device = re.fullmatch(r"Insufficient (?P<resource>\S+/\S+)", reason)
    resource = device["resource"] if device else ""
    if resource and helpless:
        return f"add a node with {resource}, or correct resourceName of gpuTypes in the FineTuneProfile"
    if resource:
        return f"wait until another pod frees its {resource}, or add a node with one"
    return next((remedy for pattern, remedy in _TOO_FEW_NODES if re.search(pattern, reason)), "")


def _missing(said: str) -> str:
    """Return that a missing object must be created, if the message names one."""
    match = _MISSING.search(said)
    if match is None:
        return ""
    kind, name = _KINDS[match["kind"]], match["name"]
    return f"Create {kind} {name}. The pod then starts by itself."
