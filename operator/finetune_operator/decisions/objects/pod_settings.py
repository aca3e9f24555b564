"""What the profile and the job set for pods beside the trainer's container: labels, scheduling, identity, resources."""

from kubernetes.utils.quantity import parse_quantity

from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.pods import Pods
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.spec.resources import PodResources
from finetune_api.spec.scheduling import Toleration
from finetune_operator.observed.facts.pods import Object

_IDS = ("runAsUser", "runAsGroup", "fsGroup")


def with_settings(job: Object, spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> Object:
    """Return the Job with the settings of the profile and of the FineTuneJob in its pod template.

    What the template has already stays: the operator finds its pods by their labels, and a GPU type knows its nodes."""
    template, pods = job["spec"]["template"], profile.pods
    metadata, pod = template["metadata"], template["spec"]
    metadata["labels"] = {**(spec.compute.labels or {}), **(pods.labels or {}), **metadata["labels"]}
    metadata["annotations"] = {
        **(spec.compute.annotations or {}),
        **(pods.annotations or {}),
        **metadata["annotations"],
    }
    pod |= _named(spec, pods)
    if selector := {**(pods.node_selector or {}), **pod.get("nodeSelector", {})}:
        pod["nodeSelector"] = selector
    pod["tolerations"] = [*pod["tolerations"], *tolerated(pods.tolerations)]
    if pods.omit_user_ids:
        security = pod["securityContext"]
        pod["securityContext"] = {name: value for name, value in security.items() if name not in _IDS}
    return job


def _named(spec: FineTuneJobSpec, pods: Pods) -> Object:
    """Return the fields of a pod that name objects of the cluster."""
    secrets = [{"name": secret.name} for secret in pods.image_pull_secrets or []]
    found = {
        "imagePullSecrets": secrets,
        "priorityClassName": spec.compute.priority_class_name or pods.priority_class_name,
        "runtimeClassName": pods.runtime_class_name,
    }
    return {name: value for name, value in found.items() if value}


def tolerated(tolerations: list[Toleration] | None) -> list[Object]:
    """Return tolerations as in a Pod."""
    return [toleration.model_dump(by_alias=True, exclude_none=True) for toleration in tolerations or []]


def resources(asked: PodResources, usual: Object, least_memory: str) -> Object:
    """Return requests and limits of a pod without a GPU. `usual`: those where the profile sets none.

    `least_memory`: the memory limit is not below this, and not below the request. A usual request is not above a limit
    that the profile sets."""
    own = asked.model_dump(exclude_none=True)
    limits = {**usual["limits"], **own["limits"]}
    requested = own["requests"].get("memory", least_memory)
    limits["memory"] = max(limits["memory"], least_memory, requested, key=parse_quantity)
    requests = {
        name: min(amount, limits.get(name, amount), key=parse_quantity) for name, amount in usual["requests"].items()
    }
    return {"requests": {**requests, **own["requests"]}, "limits": limits}
