"""The GPU types of a FineTuneProfile."""

import re
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from finetune_api.model import ApiModel, SchemaKeys, rules
from finetune_api.quantity import readable
from finetune_api.spec.scheduling import NodeLabels, Tolerations

MOST_GPU_TYPES = 16
"""Number of GPU types that a profile can have."""

GpuMemory = Annotated[
    str,
    Field(max_length=32),
    AfterValidator(readable),
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


def _decimal(price: str) -> str:
    """Return `price`. Raises ValueError if it is no decimal number: the CRD of a later version may allow more, and a
    job whose price cannot be read has to say so."""
    if re.fullmatch("[0-9]+([.][0-9]+)?", price) is None:
        raise ValueError("must be a decimal number")
    return price


Price = Annotated[
    str,
    Field(max_length=16),
    AfterValidator(_decimal),
    SchemaKeys(
        rules(
            (
                "self.matches('^[0-9]+([.][0-9]+)?$')",
                "must be a decimal number in quotes, without a currency, for example '2.50'",
            )
        )
    ),
]


GpuTypeName = Annotated[
    str,
    Field(min_length=1, max_length=63),
    SchemaKeys(
        rules(
            (
                "self.matches('^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')",
                "must be the name of a GPU type with only letters, digits and - _ . inside, for example h100-80gb",
            )
        )
    ),
]
"""Also the value of a label of the pods. A stored profile may have another name, from before this rule."""


class CapacityType(StrEnum):
    """How long a node stays."""

    ON_DEMAND = "OnDemand"
    SPOT = "Spot"


class GpuType(ApiModel):
    """One type of GPU in the cluster."""

    name: GpuTypeName
    """Name of the GPU type, for example h100-80gb. FineTuneJobs can name it in spec.compute.gpuType. If this name or
    nodeSelector contains the product name of the GPU, preflight can predict the duration of a job."""
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
    """Extended resource that the device plugin of the GPU advertises. A job with several GPUs cannot use MIG instances
    (the name contains mig-) and shared GPUs (the name ends in .shared)."""
    memory: GpuMemory | None = None
    """Memory of one GPU, as nvidia-smi shows it, for example 81559Mi. If set, preflight fails a job that does not fit
    into this memory, with reason DoesNotFit. Default: unset, and preflight does not check."""
    price_per_hour: Price | None = None
    """Price of one GPU for one hour, as a decimal string in any currency, for example '2.50'. If set, preflight
    predicts the cost of a job. Default: unset."""
    capacity_type: CapacityType | None = None
    """OnDemand, or Spot for nodes that the cluster may take away at any time. Of two types that cost the same, a job
    uses the one that is not Spot. A job that accepts no interruption (spec.runPolicy.maxInterruptions 0) uses a Spot
    type only if no other type fits, or if it names the type. Default: unset, which counts as OnDemand."""
    node_selector: NodeLabels | None = None
    """Labels of the nodes that have this GPU."""
    tolerations: Tolerations | None = None
    """Tolerations for the taints of those nodes."""

    @property
    def is_part(self) -> bool:
        """Return whether a unit of the resource is a part of a GPU, by the names of NVIDIA's device plugin.

        A process sees only one MIG instance. Units of a shared GPU can be the same GPU, which NCCL refuses."""
        name = self.resource_name.rpartition("/")[2]
        return "mig-" in name or name.endswith(".shared")
