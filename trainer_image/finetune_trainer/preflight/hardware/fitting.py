"""The end of a job that fits no GPU type which it may use: what would fit instead, the cheapest first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal

import numpy as np

from finetune_api.bundle import allowed_gpu_types, no_gpu_type, usable_gpu_types
from finetune_api.quantity import bytes_of, gibibytes
from finetune_api.reasons import FailureReason
from finetune_api.spec.gpu_type import GpuType
from finetune_api.spec.job import Compute, FineTuneJobSpec
from finetune_api.spec.method import MethodType
from finetune_api.status.preflight import Estimate, Resolved
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.preflight.hardware.changes import NO_MERGE, NO_METHOD, SMALLER, changes
from finetune_trainer.preflight.hardware.prediction import (
    DataSize,
    first_plan,
    loads,
    merging_memory,
    more_gpus,
    seconds_on,
    setups_of,
)
from finetune_trainer.sizing.memory import MemoryPlan
from finetune_trainer.sizing.model_shape import ModelShape

SHOWN = 3
"""Number of ways that the message names."""


@dataclass(frozen=True)
class Way:
    """Settings with which the job fits a GPU type."""

    text: str
    """Fields and values, joined by "and"."""
    gpu: GpuType
    memory: str
    cost: Decimal | None
    """Predicted cost; None without a price or a predicted time."""
    gpus: int
    """Number of GPUs."""

    @property
    def price(self) -> Decimal | None:
        """Price of the GPUs for one hour."""
        return self.gpus * Decimal(self.gpu.price_per_hour) if self.gpu.price_per_hour else None

    @property
    def told(self) -> str:
        """The way as an item of a list."""
        cost = f", cost about {_rounded(self.cost)}" if self.cost is not None else ""
        return f"{self.text} ({self.memory} on {self.gpu.name}{cost})"


def require_gpu_type(spec: FineTuneJobSpec, gpus: list[GpuType]) -> None:
    """Raises TrainerFailure SpecInvalid when the job may use none of the GPU types of the profile.

    The operator checks this before the first pod. A bundle that was written by hand may still contain it."""
    if found := no_gpu_type(spec, gpus):
        raise TrainerFailure(FailureReason.SPEC_INVALID, *found)


def require_fit(
    found: Sequence[Estimate],
    gpus: list[GpuType],
    spec: FineTuneJobSpec,
    resolved: Resolved,
    shape: ModelShape,
    data: DataSize,
) -> None:
    """Raises TrainerFailure DoesNotFit when the job fits no GPU type that it may use. `found`: an estimate for each of
    `gpus`, which are all types of the profile."""
    allowed = allowed_gpu_types(spec, gpus)
    estimates = {estimate.gpu_type: estimate for estimate in found}
    if not allowed or any(estimates[gpu.name].fits is not False for gpu in allowed):
        return
    largest = max(allowed, key=lambda gpu: bytes_of(gpu.memory or "0"))
    ways = [
        way
        for gpu in usable_gpu_types(spec, gpus)
        for way in _ways(gpu, gpu in allowed, estimates[gpu.name], spec, resolved, shape, data)
    ]
    raise TrainerFailure(
        FailureReason.DOES_NOT_FIT,
        f"The job needs about {estimates[largest.name].memory} of GPU memory, but {largest.name} has {largest.memory}. "
        f"The method is {resolved.method}, the model has {shape.parameters / 1e9:.2g} billion parameters, and the "
        f"longest row has {data.longest:,} tokens. {_whole(spec, resolved, shape)}{_told(ways, several=len(gpus) > 1)}",
        None if ways else SMALLER,
    )


def _whole(spec: FineTuneJobSpec, resolved: Resolved, shape: ModelShape) -> str:
    """Returns why the weights of a job on several GPUs cannot be sharded, as a sentence and a space, or ""."""
    if spec.compute.gpus == 1 or setups_of(spec, resolved, shape)[-1].shards > 1:
        return ""
    if resolved.method is MethodType.QLORA:
        what = "4-bit weights"
    elif not shape.layered:
        what = "a model whose layers are not known"
    else:
        what = f"the state of spec.training.optimizer {spec.training.optimizer}"
    return f"Each of the {spec.compute.gpus} GPUs needs this memory, because {what} cannot be sharded. "


def _ways(
    gpu: GpuType,
    is_allowed: bool,
    estimate: Estimate,
    spec: FineTuneJobSpec,
    resolved: Resolved,
    shape: ModelShape,
    data: DataSize,
) -> Iterator[Way]:
    """Yields the ways to run the job on this GPU type, the best first. They name the type if the job may not use it
    without a change."""
    named = "" if is_allowed else f"spec.compute.gpuType {gpu.name}"
    if estimate.fits is not False:
        if estimate.fits and named:
            cost = _exact(estimate.seconds, gpu, spec.compute.gpus)
            yield Way(named, gpu, estimate.memory, cost, spec.compute.gpus)
        return
    ladder, setups = loads(data, spec.training.global_batch_size, resolved), setups_of(spec, resolved, shape)
    available, merging = bytes_of(gpu.memory or "0"), merging_memory(spec, resolved, shape)
    joined = f"{named} and " if named else ""

    def way(text: str, plan: MemoryPlan, size: DataSize, compute: Compute | None = None) -> Way:
        changed = spec.model_copy(update={"compute": compute or spec.compute})
        gpus = changed.compute.gpus
        seconds = seconds_on(gpu, changed, resolved, shape, size, plan)
        return Way(f"{joined}{text}", gpu, gibibytes(plan.memory.total), _exact(seconds, gpu, gpus), gpus)

    if plan := first_plan(spec, resolved, shape, data, available):
        yield way(NO_MERGE, plan, data)  # only merging does not fit
        return
    for change in changes(shape, setups[-1], ladder[-1], available, merging, more_gpus(spec, gpu)):
        shorter = np.minimum(data.tokens, change.plan.load.tokens)
        size = replace(data, tokens=shorter, labels=np.minimum(data.labels, shorter))
        yield way(change.text, change.plan, size, change.compute)


def _told(ways: list[Way], several: bool) -> str:
    """Returns one or two sentences about the ways, the cheapest first. `several`: whether the profile has several GPU
    types."""
    if not ways:
        return NO_METHOD
    ordered, is_by_cost = _cheapest_first(ways)
    best, others = ordered[0], ordered[1:SHOWN]
    text = best.text[0].upper() + best.text[1:] if best.text.startswith(NO_MERGE) else f"With {best.text}"
    where = f" on {best.gpu.name}" if several else ""
    cost = f" and cost about {_rounded(best.cost)}" if best.cost is not None else ""
    said = f"{text}, the job would need {best.memory}{where}{cost}."
    if not others:
        return said
    order = ", the cheapest first" if is_by_cost else ""
    return f"{said} These settings would fit too{order}: {'; '.join(way.told for way in others)}."


def _cheapest_first(ways: list[Way]) -> tuple[list[Way], bool]:
    """Returns the ways in the order of their cost, or of the price of their GPU where a cost is not known, and whether
    there is such an order. Ways that cost the same stay in their order."""
    costs, prices = ([getattr(way, name) for way in ways] for name in ("cost", "price"))
    key = costs if None not in costs else prices
    if None in key:
        return ways, False
    return [way for _, _, way in sorted(zip(key, range(len(ways)), ways, strict=True))], True


def _exact(seconds: float | None, gpu: GpuType, gpus: int) -> Decimal | None:
    if not seconds or not gpu.price_per_hour:
        return None
    return gpus * Decimal(seconds) * Decimal(gpu.price_per_hour) / 3600


def _rounded(cost: Decimal | None) -> str:
    return str((cost or Decimal(0)).quantize(Decimal("0.01"), ROUND_HALF_UP))
