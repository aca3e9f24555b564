"""FineTuneProfile: what the platform team decides once for the whole cluster."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.model import ApiModel, SchemaKeys, list_map, rules

Label = Annotated[str, Field(max_length=253)]


class PullPolicy(StrEnum):
    """When the kubelet pulls an image."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class TrainerImage(ApiModel):
    """The container that checks data and trains."""

    image: Annotated[str, Field(min_length=1, max_length=512)]
    """Image of the trainer, best by digest."""
    image_pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT
    """When the kubelet pulls it."""
    allow_cpu: Annotated[bool, Field(alias="allowCPU")] = False
    """Whether a training pod that finds no usable GPU may train on the CPU. For trials: otherwise it fails as
    GPUFault."""


class Toleration(ApiModel):
    """A taint the training pods tolerate, as in a Pod."""

    key: Label | None = None
    """The taint's key; empty with operator Exists means every taint."""
    operator: Annotated[str, SchemaKeys({"enum": ["Exists", "Equal"]})] = "Equal"
    """Exists or Equal."""
    value: Label | None = None
    """The taint's value, for operator Equal."""
    effect: Annotated[str, SchemaKeys({"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]})] | None = None
    """The taint's effect; unset means every effect."""


class GpuType(ApiModel):
    """One kind of GPU the cluster has."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    """What it is called, for example h100-80gb."""
    resource_name: Annotated[str, Field(min_length=1, max_length=253)] = "nvidia.com/gpu"
    """The extended resource its device plugin advertises."""
    node_selector: Annotated[dict[str, Label], Field(max_length=32)] | None = None
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
    credentials_secret_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Secret in the tenant's namespace with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Default: none, the
    pod's own cloud identity is used."""


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
