"""Amounts of CPU and memory that pods request."""

from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

from finetune_api.model import ApiModel, SchemaKeys, rules
from finetune_api.quantity import readable

Cpu = Annotated[
    str,
    Field(max_length=32),
    AfterValidator(readable),
    SchemaKeys(
        rules(
            (
                "isQuantity(self) && quantity(self).compareTo(quantity('1m')) >= 0 && "
                "quantity(self).compareTo(quantity('1024')) <= 0",
                "must be a Kubernetes quantity above 0 and at most 1024, for example 2 or 500m",
            )
        )
    ),
]
Memory = Annotated[
    str,
    Field(max_length=32),
    AfterValidator(readable),
    SchemaKeys(
        rules(
            (
                "isQuantity(self) && quantity(self).compareTo(quantity('128Mi')) >= 0",
                "must be a Kubernetes quantity of at least 128Mi, for example 16Gi; without a unit it means bytes",
            )
        )
    ),
]


class Amounts(ApiModel):
    """CPU and memory of a pod."""

    cpu: Cpu | None = None
    """CPU, as a Kubernetes quantity."""
    memory: Memory | None = None
    """Memory, as a Kubernetes quantity."""


def _within(name: str) -> tuple[str, str]:
    """Return the rule that a request is not above its limit."""
    return (
        f"!has(self.requests) || !has(self.requests.{name}) || !has(self.limits) || !has(self.limits.{name}) || "
        f"!isQuantity(self.requests.{name}) || !isQuantity(self.limits.{name}) || "
        f"quantity(self.requests.{name}).compareTo(quantity(self.limits.{name})) <= 0",
        f"requests.{name} must not be more than limits.{name}: raise the limit, or lower the request",
    )


class PodResources(ApiModel):
    """Requests and limits of a pod, as in a container."""

    model_config = ConfigDict(json_schema_extra=rules(_within("cpu"), _within("memory")))

    requests: Amounts = Amounts()
    """What the scheduler reserves for the pod."""
    limits: Amounts = Amounts()
    """What the pod can use at most."""
