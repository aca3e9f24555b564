"""The facts that decide every optimizer step of a job. A checkpoint of other facts is not used."""

from collections.abc import Iterator
from typing import Any

from finetune_api.bundle import Bundle
from finetune_api.spec.job import FineTuneJobSpec
from finetune_trainer.checkpoints.folder import DEFAULTED, SETTLED
from finetune_trainer.handover.mixing import Mixture
from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.tokens.row_store import mixtures

ONLY_SPEED = {"microBatchTokens", "gradientCheckpointing", "checkpoint"}
"""Fields of spec.training that do not change the result of a step."""
SIZES = "the number of rows of each source"
"""A fact of weighted sources. Checkpoints of an earlier version lack it, and are used."""


def facts(bundle: Bundle, prepared: Prepared) -> dict[str, Any]:
    """Returns the facts by name, the fields of the spec under their paths.

    Of several differences the first one is told, so the fields of the spec come before what follows from them. Of the
    fields in SETTLED only what follows from them is compared. Fields that have their default are among the facts, and
    DEFAULTED names them. So a later version with more fields can use the checkpoint, and one with another default
    cannot."""
    spec, resolved = bundle.spec, prepared.resolved
    settled = resolved.model_dump(
        mode="json",
        by_alias=True,
        include={"method", "learning_rate", "warmup_steps", "total_steps", "evaluate_every", "publish"},
        exclude_none=True,
    )
    weighted = _weighted(bundle, prepared)
    set_by_hand = _deciding(spec, exclude_defaults=True)
    every = _deciding(spec) | set_by_hand
    return {
        **every,
        **weighted,
        "the digest of the data": prepared.preflight.digest,
        "the digest of the base model": prepared.model_digest,
        **{name: settled[key] for name in SETTLED if (key := name.removeprefix("status.resolved.")) in settled},
        DEFAULTED: sorted((every.keys() | weighted.keys() & {SIZES}) - set_by_hand.keys()),
    }


def _weighted(bundle: Bundle, prepared: Prepared) -> dict[str, Any]:
    """Returns the weights and the sizes of the sources; nothing if they have no weights."""
    weights = [source.weight for source in bundle.spec.dataset.train]
    if not any(weights):
        return {}
    sizes = Mixture.of(mixtures(prepared.train), weights).sizes
    return {"spec.dataset.train[*].weight": weights, SIZES: list(sizes)}


def _deciding(spec: FineTuneJobSpec, exclude_defaults: bool = False) -> dict[str, Any]:
    """Returns the fields of the method and the training that change the result of a step, by their path."""
    method, training = (
        part.model_dump(mode="json", by_alias=True, exclude_defaults=exclude_defaults)
        for part in (spec.method, spec.training)
    )
    slow = {name: value for name, value in training.items() if name not in ONLY_SPEED}
    return {
        path: value
        for part, fields in (("method", method), ("training", slow))
        for name, item in fields.items()
        for path, value in _fields(f"spec.{part}.{name}", item)
    }


def _fields(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields each field below `path` that is not an object, or an empty one, with its whole path."""
    if not isinstance(value, dict) or not value:
        yield path, value
        return
    for name, item in value.items():
        yield from _fields(f"{path}.{name}", item)
