"""Settings of the pods that the operator creates, in a FineTuneProfile, and what a FineTuneJob may add to its own."""

from typing import Annotated

from pydantic import Field

from finetune_api.model import ApiModel, ObjectName, SchemaKeys, list_map, object_name
from finetune_api.spec.resources import Memory, PodResources
from finetune_api.spec.scheduling import NodeLabels, PodAnnotations, PodLabels, Tolerations

QueueName = Annotated[
    str,
    Field(min_length=1, max_length=63),
    object_name("the name of a LocalQueue, for example cpu; list them with kubectl get localqueues"),
]
PriorityClassName = Annotated[
    ObjectName,
    object_name("the name of a PriorityClass; list them with kubectl get priorityclasses"),
]
RuntimeClassName = Annotated[
    ObjectName,
    object_name("the name of a RuntimeClass; list them with kubectl get runtimeclasses"),
]
Patterns = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=317)]],
    Field(max_length=64),
    SchemaKeys({"x-kubernetes-list-type": "set"}),
]


SCRATCH_SIZE_LIMIT = "200Gi"
"""Size limit of the scratch volume of a pod, unless the profile sets another."""


class PullSecret(ApiModel):
    """A Secret in the job's namespace for pulling the trainer's image."""

    name: Annotated[
        ObjectName,
        object_name("the name of a Secret of type kubernetes.io/dockerconfigjson, for example registry"),
    ]
    """Name of the Secret."""


class PreflightPods(ApiModel):
    """Settings of the preflight pods, which request no GPU."""

    queue_name: QueueName | None = None
    """Name of the Kueue LocalQueue of the preflight Jobs. The LocalQueue must exist in each tenant's namespace. Set it
    if Kueue manages Jobs without a queue name (manageJobsWithoutQueueName), because preflight Jobs never start
    otherwise. Default: unset. The queue of the training Job is the label kueue.x-k8s.io/queue-name of the
    FineTuneJob."""
    resources: PodResources = PodResources()
    """Requests and limits of the preflight pods. Default: requests of 500m CPU and 1Gi memory, and a memory limit of
    4Gi. If spec.compute.memory of a job is more than the memory limit, it is the limit."""
    tolerations: Tolerations | None = None
    """Tolerations of the preflight pods, in addition to those of all pods. The pods that delete checkpoints have them
    too."""


class Allowed(ApiModel):
    """What FineTuneJobs may set in spec.compute. By default they may set nothing, because an annotation can be a cloud
    role or turn a sidecar off."""

    labels: Patterns | None = None
    """Keys that spec.compute.labels may contain, for example team or acme.com/*; * and ? are wildcards. Default:
    none."""
    annotations: Patterns | None = None
    """Keys that spec.compute.annotations may contain; * and ? are wildcards. Default: none."""
    priority_class_names: Patterns | None = None
    """Names that spec.compute.priorityClassName may have; * and ? are wildcards. Default: none."""


class Pods(ApiModel):
    """Settings of the pods that the operator creates."""

    labels: PodLabels | None = None
    """Labels of all pods. Labels of the operator cannot be changed."""
    annotations: PodAnnotations | None = None
    """Annotations of all pods."""
    image_pull_secrets: Annotated[list[PullSecret], Field(max_length=16), list_map("name")] | None = None
    """Secrets for pulling the trainer's image. They must exist in each tenant's namespace."""
    priority_class_name: PriorityClassName | None = None
    """PriorityClass of all pods. Default: that of the cluster."""
    runtime_class_name: RuntimeClassName | None = None
    """RuntimeClass of all pods. Default: the runtime of the node."""
    node_selector: NodeLabels | None = None
    """Labels of the nodes for all pods. If the GPU type of a job sets a label to another value, the training pod uses
    the value of the GPU type."""
    tolerations: Tolerations | None = None
    """Tolerations of all pods, in addition to those of the GPU type."""
    omit_user_ids: bool = False
    """Whether runAsUser, runAsGroup and fsGroup are left out of all pods. OpenShift then fills them in from the range
    of the namespace. The pods still do not run as root. Default: false, and all three are 65532."""
    allowed: Allowed = Allowed()
    """What FineTuneJobs may set for their own pods in spec.compute."""
    preflight: PreflightPods = PreflightPods()
    """Settings of the preflight pods, which request no GPU."""
    scratch_size_limit: Memory | None = None
    """Size limit of the scratch volume of each pod, an emptyDir on the disk of its node, as a Kubernetes quantity. It
    holds the base model, a checkpoint with which an attempt goes on, and the results until they are published.
    Preflight fails a job that needs more, with reason DoesNotFit. Set it to what the disks of the nodes can give.
    Default: 200Gi."""
    termination_grace_period_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    """Seconds between the request to stop a training pod and its end. The pod stores a checkpoint in this time.
    Default: 120."""


def scratch_size(limit: str | None) -> str:
    """Return the size limit of the scratch volume. `limit`: that of the profile."""
    return limit or SCRATCH_SIZE_LIMIT
