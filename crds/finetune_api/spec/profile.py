"""FineTuneProfile: what the platform team decides once for the whole cluster."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.model import ApiModel, SchemaKeys, list_map, rules

Label = Annotated[str, Field(max_length=253)]
NodeLabels = Annotated[
    dict[str, Annotated[str, Field(max_length=63)]],
    Field(max_length=32),
    SchemaKeys(
        rules(
            (
                "self.all(name, name.size() <= 317 && "
                "name.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$') && "
                "self[name].matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$'))",
                "must be labels of nodes, for example nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3; see kubectl get "
                "nodes --show-labels",
            )
        )
    ),
]


class PullPolicy(StrEnum):
    """When the kubelet pulls an image."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class TrainerImage(ApiModel):
    """The container that checks data and trains."""

    image: Annotated[
        str,
        Field(min_length=1, max_length=512),
        SchemaKeys(
            rules(
                (
                    "self.matches('^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$')",
                    "must be the reference of an image, for example registry.example.com/ml/finetune-trainer:1.0",
                )
            )
        ),
    ]
    """Image of the trainer, best by digest."""
    image_pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT
    """When the kubelet pulls it."""
    allow_cpu: Annotated[bool, Field(alias="allowCPU")] = False
    """Whether a training pod that finds no usable GPU may train on the CPU. For trials: otherwise it fails as
    GPUFault."""


class Toleration(ApiModel):
    """A taint the training pods tolerate, as in a Pod."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.operator != 'Exists' || !has(self.value) || self.value == ''",
                "operator Exists takes no value: remove value, or set operator to Equal",
            ),
            (
                "self.operator != 'Equal' || (has(self.key) && self.key != '')",
                "operator Equal needs a key: name the taint, or set operator to Exists",
            ),
        )
    )

    key: Label | None = None
    """The taint's key; empty with operator Exists means every taint."""
    operator: Annotated[str, SchemaKeys({"enum": ["Exists", "Equal"]})] = "Equal"
    """Exists or Equal."""
    value: Label | None = None
    """The taint's value, for operator Equal."""
    effect: Annotated[str, SchemaKeys({"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]})] | None = None
    """The taint's effect; unset means every effect."""


GpuMemory = Annotated[
    str,
    Field(max_length=32),
    SchemaKeys(
        rules(
            (
                "self.matches('^[0-9]+([.][0-9]+)?([kMGT]|[KMGT]i)?$') && "
                "quantity(self).compareTo(quantity('1Gi')) >= 0",
                "must be an amount of at least 1Gi, as nvidia-smi shows it, for example 81559Mi",
            )
        )
    ),
]
Price = Annotated[
    str,
    Field(max_length=16),
    SchemaKeys(
        rules(
            (
                "self.matches('^[0-9]+([.][0-9]+)?$')",
                "must be a decimal number in quotes, without a currency, for example '2.50'",
            )
        )
    ),
]


class GpuType(ApiModel):
    """One kind of GPU the cluster has."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    """What it is called, for example h100-80gb. A name with the product's in it, here or in nodeSelector, lets
    preflight predict how long a job takes."""
    resource_name: Annotated[
        str,
        Field(min_length=1, max_length=253),
        SchemaKeys(
            rules(
                (
                    "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')",
                    "must be an extended resource, for example nvidia.com/gpu",
                )
            )
        ),
    ] = "nvidia.com/gpu"
    """The extended resource its device plugin advertises."""
    memory: GpuMemory | None = None
    """Memory of one, as nvidia-smi shows it, for example 81559Mi. Preflight then refuses, as DoesNotFit, a job that
    cannot run in it. Default: none, and no job is refused for it."""
    price_per_hour: Price | None = None
    """What one costs in an hour, as a decimal string in the currency of your choice, for example '2.50'. Preflight then
    predicts the cost of a job. Default: none."""
    node_selector: NodeLabels | None = None
    """Labels of the nodes that have it."""
    tolerations: (
        Annotated[list[Toleration], Field(max_length=32), SchemaKeys({"x-kubernetes-list-type": "atomic"})] | None
    ) = None
    """Taints of those nodes."""


class Storage(ApiModel):
    """One S3 service, found by the bucket's name: manifests carry URIs only."""

    buckets: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=63)]],
        Field(min_length=1, max_length=64),
        SchemaKeys({"x-kubernetes-list-type": "set"}),
    ]
    """Names of its buckets; * and ? are wildcards. The first storage that matches is used."""
    endpoint: (
        Annotated[
            str,
            Field(max_length=512),
            SchemaKeys(
                rules(("self.matches('^https?://[^/ ]+$')", "must be http://HOST[:PORT] or https://HOST[:PORT]"))
            ),
        ]
        | None
    ) = None
    """Address of the service. Default: Amazon's, for the region."""
    region: Annotated[str, Field(min_length=1, max_length=63)] = "us-east-1"
    """Region of the buckets."""
    credentials_secret_name: (
        Annotated[
            str,
            Field(min_length=1, max_length=253),
            SchemaKeys(
                rules(
                    (
                        "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
                        "must be the name of a Secret, for example s3-keys",
                    )
                )
            ),
        ]
        | None
    ) = None
    """Secret in the tenant's namespace with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN
    where the keys are temporary. Running jobs use rotated keys from the next request on. Default: none, the pod's own
    cloud identity is used."""


QueueName = Annotated[
    str,
    Field(min_length=1, max_length=63),
    SchemaKeys(
        rules(
            (
                "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
                "must be the name of a queue in the tenants' namespaces, for example cpu; see kubectl get localqueues",
            )
        )
    ),
]


class PreflightPods(ApiModel):
    """Preflight pods, which ask for no GPU."""

    queue_name: QueueName | None = None
    """Kueue's LocalQueue, of this name in each tenant's namespace, that preflight Jobs stand in. Set it where Kueue
    manages Jobs without a queue name (manageJobsWithoutQueueName): it holds them back for ever. Default: none. The
    training Job takes its queue from the FineTuneJob's label kueue.x-k8s.io/queue-name."""


class Pods(ApiModel):
    """The pods the operator makes."""

    preflight: PreflightPods = PreflightPods()
    """Preflight pods, which ask for no GPU."""


class FineTuneProfileSpec(ApiModel):
    """GPUs, storage and trainer image that FineTuneJobs run with."""

    trainer: TrainerImage
    """The container that checks data and trains."""
    gpu_types: Annotated[list[GpuType], Field(min_length=1, max_length=1), list_map("name")]
    """The GPU that training pods ask for."""
    storages: Annotated[
        list[Storage], Field(min_length=1, max_length=32), SchemaKeys({"x-kubernetes-list-type": "atomic"})
    ]
    """S3 services by bucket."""
    pods: Pods = Pods()
    """The pods the operator makes."""
