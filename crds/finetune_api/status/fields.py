"""Types of the fields of a status."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer

from finetune_api.model import SchemaKeys


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Time = Annotated[
    datetime, PlainSerializer(_rfc3339, when_used="json"), SchemaKeys({"type": "string", "format": "date-time"})
]
Text = Annotated[str, Field(max_length=1024)]
MESSAGE_LENGTH = 4096


def _cut(text: object) -> object:
    return text[:MESSAGE_LENGTH] if isinstance(text, str) else text


Message = Annotated[str, BeforeValidator(_cut), Field(max_length=MESSAGE_LENGTH)]
"""A message, cut at MESSAGE_LENGTH. Messages of a kubelet or a scheduler have no limit, and the job must still end."""
Reason = Annotated[str, Field(max_length=64)]
"""CamelCase word for programs. It is not an enum, so a new reason needs no new schema."""
ATOMIC = {"x-kubernetes-list-type": "atomic"}
