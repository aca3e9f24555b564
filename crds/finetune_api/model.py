"""Base classes of the API models: camelCase aliases, and annotations that only affect the schema of the CRD."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class ApiModel(BaseModel):
    """Base class of objects that users write. Unknown keys are errors, as in strict field validation."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )


class StatusModel(BaseModel):
    """Base class of objects that our components write. Unknown keys are ignored, so versions can be mixed."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, use_attribute_docstrings=True
    )


class SchemaKeys:
    """Annotation that adds keys to the schema of a field, for features of CRDs that JSON Schema does not have."""

    def __init__(self, keys: dict[str, Any]) -> None:
        self.keys = keys

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core), **self.keys}


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """Return CEL rules as schema keys, from pairs of (rule, message for a violation)."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}


def list_map(*keys: str) -> SchemaKeys:
    """Return the annotation of a list that server-side apply merges item by item; `keys` identify an item."""
    return SchemaKeys({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)})


Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
DnsLabel = Annotated[str, Field(min_length=1, max_length=63)]
"""A DNS label as defined in RFC 1123. `dns_label` adds the rule for the API server."""


def dns_label(wanted: str) -> SchemaKeys:
    """Return the rule of a DnsLabel. The message for a violation is "must be" and `wanted`."""
    return SchemaKeys(rules(("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')", f"must be {wanted}")))


ObjectName = Annotated[str, Field(min_length=1, max_length=253)]
"""The name of a Kubernetes object. `object_name` adds the rule for the API server."""
DataKey = Annotated[str, Field(min_length=1, max_length=253)]
"""A key of a Secret or ConfigMap. `data_key` adds the rule for the API server."""


def object_name(wanted: str) -> SchemaKeys:
    """Return the rule of an ObjectName. The message for a violation is "must be" and `wanted`."""
    return SchemaKeys(rules(("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')", f"must be {wanted}")))


def data_key(wanted: str) -> SchemaKeys:
    """Return the rule of a DataKey. The message for a violation is "must be" and `wanted`."""
    return SchemaKeys(rules(("self.matches('^[-._a-zA-Z0-9]+$')", f"must be {wanted}")))
