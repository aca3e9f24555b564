"""The spec of a FineTuneProfile, which the platform team writes once for the whole cluster."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.model import ApiModel, SchemaKeys, list_map, rules
from finetune_api.uris import PrefixUri

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
                "must be node labels, for example nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3; list them with "
                "kubectl get nodes --show-labels",
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
    """The container image that runs preflight and training."""

    image: Annotated[
        str,
        Field(min_length=1, max_length=512),
        SchemaKeys(
            rules(
                (
                    "self.matches('^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$')",
                    "must be an image reference, for example registry.example.com/ml/finetune-trainer:1.0",
                )
            )
        ),
    ]
    """Image of the trainer, preferably with a digest."""
    image_pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT
    """When the kubelet pulls the image."""
    allow_cpu: Annotated[bool, Field(alias="allowCPU")] = False
    """Whether a training pod may train on the CPU if it finds no usable GPU. This is for trials. If false, such a pod
    fails with reason GPUFault."""


class Toleration(ApiModel):
    """A toleration of the training pods, as in a Pod."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.operator != 'Exists' || !has(self.value) || self.value == ''",
                "operator Exists does not accept a value: remove value, or set operator to Equal",
            ),
            (
                "self.operator != 'Equal' || (has(self.key) && self.key != '')",
                "operator Equal needs a key: set key to the key of the taint, or set operator to Exists",
            ),
        )
    )

    key: Label | None = None
    """Key of the taint. An empty key with operator Exists tolerates every taint."""
    operator: Annotated[str, SchemaKeys({"enum": ["Exists", "Equal"]})] = "Equal"
    """Exists or Equal."""
    value: Label | None = None
    """Value of the taint, for operator Equal."""
    effect: Annotated[str, SchemaKeys({"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]})] | None = None
    """Effect of the taint. If unset, every effect is tolerated."""


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
    """One type of GPU in the cluster."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    """Name of the GPU type, for example h100-80gb. If this name or nodeSelector contains the product name of the GPU,
    preflight can predict the duration of a job."""
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
    """Extended resource that the device plugin of the GPU advertises."""
    memory: GpuMemory | None = None
    """Memory of one GPU, as nvidia-smi shows it, for example 81559Mi. If set, preflight fails a job that does not fit
    into this memory, with reason DoesNotFit. Default: unset, and preflight does not check."""
    price_per_hour: Price | None = None
    """Price of one GPU for one hour, as a decimal string in any currency, for example '2.50'. If set, preflight
    predicts the cost of a job. Default: unset."""
    node_selector: NodeLabels | None = None
    """Labels of the nodes that have this GPU."""
    tolerations: (
        Annotated[list[Toleration], Field(max_length=32), SchemaKeys({"x-kubernetes-list-type": "atomic"})] | None
    ) = None
    """Tolerations for the taints of those nodes."""


class Storage(ApiModel):
    """One S3 service. It is found by the name of the bucket, so manifests contain only URIs."""

    buckets: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=63)]],
        Field(min_length=1, max_length=64),
        SchemaKeys({"x-kubernetes-list-type": "set"}),
    ]
    """Names of the buckets of this service; * and ? are wildcards. The first storage that matches a bucket is used."""
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
    """Address of the service. Default: the address of Amazon S3 for the region."""
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
    """Name of a Secret in the tenant's namespace. The Secret has the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,
    and AWS_SESSION_TOKEN for temporary keys. Running jobs use changed keys from the next request. Default: unset,
    and the pod uses its cloud identity."""


class Hub(ApiModel):
    """A model hub with the protocol of the Hugging Face Hub."""

    endpoint: Annotated[
        str,
        Field(max_length=512),
        SchemaKeys(
            rules(
                (
                    "self.matches('^https?://[^/?#@ ]+(/[^/?#@ ]+)*$')",
                    "must be http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH], without a slash at its end",
                )
            )
        ),
    ] = "https://huggingface.co"
    """Address of the hub: the public hub or a mirror of it."""
    token_secret_name: (
        Annotated[
            str,
            Field(min_length=1, max_length=253),
            SchemaKeys(
                rules(
                    (
                        "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
                        "must be the name of a Secret, for example hub-token",
                    )
                )
            ),
        ]
        | None
    ) = None
    """Name of a Secret in the tenant's namespace. Its key HF_TOKEN has the token for jobs that set no
    model.tokenSecretRef. Without this Secret such jobs use no token, which is enough for public repositories. Default:
    unset, and such jobs use no token."""
    allowed: (
        Annotated[
            list[
                Annotated[
                    str,
                    Field(min_length=1, max_length=256),
                    SchemaKeys(
                        rules(
                            (
                                "self.matches('^(datasets/)?[A-Za-z0-9._*?-]+/[A-Za-z0-9._*?-]+$')",
                                "must be a pattern for ORG/NAME or datasets/ORG/NAME, for example meta-llama/*",
                            )
                        )
                    ),
                ]
            ],
            Field(min_length=1, max_length=64),
            SchemaKeys({"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = None
    """Repositories that jobs may read: ORG/NAME for models and datasets/ORG/NAME for data sets; * and ? are wildcards.
    Upper and lower case count. Default: unset, and jobs may read all repositories."""


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


class PreparedCache(ApiModel):
    """Where prepared rows are kept for later jobs."""

    uri: PrefixUri
    """Folder for the rows, as s3://BUCKET/PREFIX, in a bucket of spec.storages. Each namespace has its own folder below
    it, and a job reads only that of its namespace. Limit the keys of each namespace to its folder. Nothing deletes the
    rows: set a lifecycle rule for the prefix, as in docs/install.md."""


class FineTuneProfileSpec(ApiModel):
    """GPUs, storage and trainer image for FineTuneJobs."""

    trainer: TrainerImage
    """The container image that runs preflight and training."""
    gpu_types: Annotated[list[GpuType], Field(min_length=1, max_length=1), list_map("name")]
    """The GPU type that training pods request."""
    storages: Annotated[
        list[Storage], Field(min_length=1, max_length=32), SchemaKeys({"x-kubernetes-list-type": "atomic"})
    ]
    """S3 services and their buckets."""
    hub: Hub | None = None
    """The model hub of hf:// URIs. Default: unset, and jobs with such URIs fail before their first pod."""
    pods: Pods = Pods()
    """Settings of the pods that the operator creates."""
    prepared_cache: PreparedCache | None = None
    """Where prepared rows are kept for later jobs. If a job has the same files, base model and dataset settings as an
    earlier job of its namespace, its preflight does not read and tokenize the rows again. Default: unset, and each job
    prepares its own rows."""
