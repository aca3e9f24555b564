"""What every API model is made of: camelCase aliases, and annotations that only the CRD's schema sees."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class ApiModel(BaseModel):
    """An object a user writes: unknown keys are errors, as under the API server's strict field validation."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )


class StatusModel(BaseModel):
    """An object we write and read back: unknown keys are left alone, so that versions can be mixed."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, use_attribute_docstrings=True
    )


class SchemaKeys:
    """Annotation that adds keys to a field's schema, for what JSON Schema cannot say but a CRD can."""

    def __init__(self, keys: dict[str, Any]) -> None:
        self.keys = keys

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core), **self.keys}


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """CEL rules as schema keys, from pairs of (rule, the sentence shown when it does not hold)."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}


def list_map(*keys: str) -> SchemaKeys:
    """A list that server-side apply merges item by item, told apart by `keys`."""
    return SchemaKeys({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)})


Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
DnsLabel = Annotated[str, Field(min_length=1, max_length=63)]
"""A name as RFC 1123 has it; `dns_label` has the API server hold it to that."""


def dns_label(wanted: str) -> SchemaKeys:
    """The rule of a DnsLabel; `wanted` ends the sentence shown for any other name."""
    return SchemaKeys(rules(("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')", f"must be {wanted}")))
