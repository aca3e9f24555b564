"""The facts that decide every optimizer step of a job. A checkpoint of other facts is not used."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from finetune_api.bundle import Bundle
from finetune_trainer.handover.prepared import Prepared

ONLY_SPEED = {"microBatchTokens", "gradientCheckpointing", "checkpoint"}
"""Fields of spec.training that do not change the result of a step."""


def facts(bundle: Bundle, prepared: Prepared) -> dict[str, Any]:
    """Returns the facts by name, the fields of the spec under their paths.

    Of several differences the first one is told, so the fields of the spec come before what follows from them. A field
    that has its default is left out, so that a later version with more fields can use the checkpoint."""
    spec, resolved = bundle.spec, prepared.resolved
    settled = resolved.model_dump(
        mode="json",
        by_alias=True,
        include={"method", "learning_rate", "warmup_steps", "total_steps", "evaluate_every", "publish"},
        exclude_none=True,
    )
    weights = [source.weight for source in spec.dataset.train]
    return {
        **dict(_fields("spec.method", _set(spec.method))),
        **{
            path: value
            for path, value in _fields("spec.training", _set(spec.training))
            if path.split(".")[2] not in ONLY_SPEED
        },
        **({"spec.dataset.train[*].weight": weights} if any(weights) else {}),
        "the digest of the data": prepared.preflight.digest,
        "the digest of the base model": _digest(prepared.model_files),
        **{f"status.resolved.{name}": value for name, value in settled.items()},
    }


def _set(part: BaseModel) -> dict[str, Any]:
    return part.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)


def _fields(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields each field below `path` that is not an object, with its whole path."""
    if not isinstance(value, dict):
        yield path, value
        return
    for name, item in value.items():
        yield from _fields(f"{path}.{name}", item)


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(value), sort_keys=True).encode()).hexdigest()
