"""The spec of a FineTuneProfile, which the platform team writes once for the whole cluster."""

from enum import StrEnum
from typing import Annotated, TypeVar

from pydantic import ConfigDict, Field

from finetune_api.model import ApiModel, DataKey, ObjectName, SchemaKeys, data_key, list_map, object_name, rules
from finetune_api.spec.gpu_type import MOST_GPU_TYPES, GpuType
from finetune_api.spec.pods import Pods
from finetune_api.spec.resources import Memory
from finetune_api.uris import BucketPrefixUri

Pattern = TypeVar("Pattern", bound=str)
Patterns = Annotated[list[Pattern], Field(min_length=1, max_length=64), SchemaKeys({"x-kubernetes-list-type": "set"})]
RepositoryPattern = Annotated[
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
ClaimPattern = Annotated[
    str,
    Field(min_length=1, max_length=253),
    SchemaKeys(
        rules(
            (
                "self.matches('^[a-z0-9.*?-]+$')",
                "must be a pattern for the name of a PersistentVolumeClaim, for example models-*",
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


class CaBundle(ApiModel):
    """The certificates of a private authority, in PEM format."""

    config_map_name: Annotated[
        ObjectName,
        object_name("the name of a ConfigMap, for example storage-ca"),
    ]
    """Name of a ConfigMap in the tenant's namespace."""
    key: Annotated[
        DataKey,
        data_key("a key of the ConfigMap, for example ca.crt"),
    ] = "ca.crt"
    """Key of the ConfigMap."""


class Storage(ApiModel):
    """One S3 service. It is found by the name of the bucket, so manifests contain only URIs."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.caBundle) || (has(self.endpoint) && self.endpoint.startsWith('https://'))",
                "caBundle is for an endpoint that begins with https://: set endpoint, or remove caBundle",
            )
        )
    )

    buckets: Patterns[Annotated[str, Field(min_length=1, max_length=63)]]
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
    ca_bundle: CaBundle | None = None
    """The authority that signed the certificate of the service, if it is a private one. New pods use a changed
    ConfigMap. Default: unset, and the pods trust the authorities of their image."""
    region: Annotated[str, Field(min_length=1, max_length=63)] = "us-east-1"
    """Region of the buckets."""
    credentials_secret_name: (
        Annotated[
            ObjectName,
            object_name("the name of a Secret, for example s3-keys"),
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
            ObjectName,
            object_name("the name of a Secret, for example hub-token"),
        ]
        | None
    ) = None
    """Name of a Secret in the tenant's namespace. Its key HF_TOKEN has the token for jobs that set no
    model.tokenSecretRef. Without this Secret such jobs use no token, which is enough for public repositories. Default:
    unset, and such jobs use no token."""
    allowed: Patterns[RepositoryPattern] | None = None
    """Repositories that jobs may read: ORG/NAME for models and datasets/ORG/NAME for data sets; * and ? are wildcards.
    Upper and lower case count. Default: unset, and jobs may read all repositories."""


class Claims(ApiModel):
    """PersistentVolumeClaims that jobs may use."""

    allowed: Patterns[ClaimPattern]
    """Names of claims that jobs may use in their own namespace; * and ? are wildcards."""


class PreparedCache(ApiModel):
    """Where prepared rows are kept for later jobs."""

    uri: BucketPrefixUri
    """Folder for the rows, as s3://BUCKET/PREFIX, in a bucket of spec.storages. Each namespace has its own folder below
    it, and a job reads only that of its namespace. Limit the keys of each namespace to its folder. Nothing deletes the
    rows: set a lifecycle rule for the prefix, as in docs/install.md."""


class ModelCache(ApiModel):
    """Where base models are kept for later attempts and jobs."""

    claim_name: Annotated[
        ObjectName,
        object_name("the name of a PersistentVolumeClaim, for example model-cache"),
    ]
    """Name of a PersistentVolumeClaim with access mode ReadWriteMany in the tenant's namespace. Each namespace has
    its own: models are not shared between namespaces. A job in a namespace without this claim downloads its model
    itself."""
    max_size: Memory | None = None
    """Most bytes of all models in the cache, as a Kubernetes quantity. The models that were not used for the longest
    time leave it. Default: unset, and models leave it when the volume is full."""


class FineTuneProfileSpec(ApiModel):
    """GPUs, storage and trainer image for FineTuneJobs."""

    trainer: TrainerImage
    """The container image that runs preflight and training."""
    gpu_types: Annotated[list[GpuType], Field(min_length=1, max_length=MOST_GPU_TYPES), list_map("name")]
    """GPU types that training pods can request. A job uses the type in its spec.compute.gpuType; by default the
    cheapest type that fits by the prediction of the preflight. All attempts of a job use the same type."""
    storages: Annotated[
        list[Storage], Field(min_length=1, max_length=32), SchemaKeys({"x-kubernetes-list-type": "atomic"})
    ]
    """S3 services and their buckets."""
    hub: Hub | None = None
    """The model hub of hf:// URIs. Default: unset, and jobs with such URIs fail before their first pod."""
    claims: Claims | None = None
    """PersistentVolumeClaims of pvc:// URIs. Default: unset, and jobs with such URIs fail before their first pod."""
    pods: Pods = Pods()
    """Settings of the pods that the operator creates."""
    prepared_cache: PreparedCache | None = None
    """Where prepared rows are kept for later jobs. If a job has the same files, base model and dataset settings as an
    earlier job of its namespace, its preflight does not read and tokenize the rows again. Default: unset, and each job
    prepares its own rows."""
    model_cache: ModelCache | None = None
    """Where base models are kept for later attempts and jobs. A container that runs before the trainer copies the
    model from there, if the job may read its source, or else downloads the model and stores it there. Default:
    unset, and each attempt downloads its model."""
