"""Settings of the pods that the operator creates, in a FineTuneProfile."""

from typing import Annotated

from pydantic import Field

from finetune_api.model import ApiModel, SchemaKeys, rules

QueueName = Annotated[
    str,
    Field(min_length=1, max_length=63),
    SchemaKeys(
        rules(
            (
                "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
                "must be the name of a LocalQueue, for example cpu; list them with kubectl get localqueues",
            )
        )
    ),
]


class PreflightPods(ApiModel):
    """Settings of the preflight pods, which request no GPU."""

    queue_name: QueueName | None = None
    """Name of the Kueue LocalQueue of the preflight Jobs. The LocalQueue must exist in each tenant's namespace. Set it
    if Kueue manages Jobs without a queue name (manageJobsWithoutQueueName), because preflight Jobs never start
    otherwise. Default: unset. The queue of the training Job is the label kueue.x-k8s.io/queue-name of the
    FineTuneJob."""


class Pods(ApiModel):
    """Settings of the pods that the operator creates."""

    preflight: PreflightPods = PreflightPods()
    """Settings of the preflight pods, which request no GPU."""
    termination_grace_period_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    """Seconds between the request to stop a training pod and its end. The pod stores a checkpoint in this time.
    Default: 120."""
