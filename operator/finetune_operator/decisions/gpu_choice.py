"""Which GPU type a job uses, and why. All attempts of a job use the type of the same name.

The operator decides, not the preflight: whoever may create pods in a namespace could write the preflight's part of a
status. The predictions of the preflight only leave out or order types that the profile and the job allow."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from math import inf

from finetune_api.bundle import allowed_gpu_types
from finetune_api.spec.gpu_type import CapacityType, GpuType
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_api.status.chosen_gpu import ChosenGpuType
from finetune_api.status.preflight import Estimate
from finetune_operator.observed.world import World

SPOT = "Its capacity type is Spot: the cluster may stop the pod at any time, and the job continues from its checkpoint."


@dataclass(frozen=True)
class Candidate:
    """A GPU type that the job may use, and what the preflight predicts for it."""

    gpu: GpuType
    estimate: Estimate | None
    gpus: int
    """Number of the job's GPUs on all nodes."""
    is_new: bool = False
    """Whether the preflight predicted other types and not this one: the profile got it later."""

    @property
    def is_usable(self) -> bool:
        """Whether the job can run on it. The trainer shards the weights over several GPUs by the prediction for their
        type; without one, each GPU would load the whole model."""
        return self.gpus == 1 or not self.is_new

    @property
    def fits(self) -> bool | None:
        """Whether the job fits; None if nobody knows."""
        return self.estimate.fits if self.estimate else None

    @property
    def is_spot(self) -> bool:
        return self.gpu.capacity_type is CapacityType.SPOT

    @cached_property
    def price(self) -> Decimal | None:
        """Price of one hour of all GPUs of the job."""
        return self.gpus * Decimal(self.gpu.price_per_hour) if self.gpu.price_per_hour else None

    @property
    def cost(self) -> Decimal | None:
        """Predicted cost of the whole job; None without a price or a predicted time."""
        seconds = self.estimate.seconds if self.estimate else None
        return None if self.price is None or seconds is None else self.price * seconds / 3600


def of_job(world: World) -> ChosenGpuType | None:
    """Return the GPU type of the job: the one on record, that of an attempt which is not recorded yet, or a new choice.

    None if nothing can be chosen: no profile, an unknown name, or no type that fits."""
    if world.status.gpu_type is not None:
        return world.status.gpu_type
    if world.spec is None or world.profile is None:
        return None
    begun = next((run.gpu_type for run in world.attempts.values() if run.gpu_type), None)
    named = [gpu for gpu in world.profile.gpu_types if gpu.name == begun]
    found = [c for c in candidates(world, world.spec, world.profile) if c.is_usable]
    if named:
        other = Candidate(named[0], None, world.spec.compute.gpus)
        return _chosen(next((c for c in found if c.gpu == named[0]), other), found, world.spec)
    return choose(found, world.spec)


def name_of(world: World) -> str | None:
    """Return the name of the job's GPU type; None if it has none."""
    found = of_job(world)
    return found.name if found else None


def price_of(world: World) -> str | None:
    """Return the price of an hour of the job's GPU type: the profile's of now, or else the one on record."""
    found = of_next_attempt(world)
    return found.price_per_hour if found else None


def no_price(spec: FineTuneJobSpec, name: str | None) -> tuple[str, str]:
    """Return the finding that the cost of the job is not known, and the remedy. `name`: of its GPU type."""
    where = f"GPU type {name} of FineTuneProfile" if name else "FineTuneProfile"
    return (
        f"spec.runPolicy.budget.cost: {where} {spec.profile_name} has no pricePerHour, so the cost of the job is not "
        "known.",
        "Set spec.runPolicy.budget.gpuHours instead, or add the price to the FineTuneProfile.",
    )


def none_fits(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> tuple[str, str]:
    """Return the finding that the job can use none of the GPU types that its profile has now, and the remedy."""
    found, name = candidates(world, spec, profile), spec.profile_name
    new = " and ".join(c.gpu.name for c in found if not c.is_usable)
    unfit = ", ".join(c.gpu.name for c in found if c.is_usable)
    finding = (
        f"By the prediction of the preflight, the job does not fit the GPU types that FineTuneProfile {name} has now"
    )
    if not new:
        remedy = "Add a GPU type with more memory to spec.gpuTypes of the profile, or create the job again."
        return f"{finding}: {unfit}.", remedy
    gone = f"FineTuneProfile {name} no longer has the GPU types that the preflight predicted."
    return (
        f"{f'{finding}: {unfit}.' if unfit else gone} A job on several GPUs needs a prediction for its GPU type, and "
        f"there is none for {new}.",
        "Create the job again, so that its preflight predicts this too.",
    )


def of_next_attempt(world: World) -> GpuType | None:
    """Return the job's GPU type as it is in the profile now, so that corrections count; as it is on record if the
    profile no longer has it. None if the job has none."""
    chosen = of_job(world)
    if chosen is None or world.profile is None:
        return chosen
    return next((gpu for gpu in world.profile.gpu_types if gpu.name == chosen.name), chosen)


def candidates(world: World, spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> list[Candidate]:
    """Return the GPU types that the job may use, in the order of the profile."""
    predicted = world.status.preflight.estimate if world.status.preflight else None
    estimates = {estimate.gpu_type: estimate for estimate in predicted or []}
    allowed = payable(spec, allowed_gpu_types(spec, profile.gpu_types))
    gpus = spec.compute.gpus
    return [
        Candidate(gpu, estimates.get(gpu.name), gpus, is_new=bool(estimates) and gpu.name not in estimates)
        for gpu in allowed
    ]


def payable(spec: FineTuneJobSpec, types: Sequence[GpuType]) -> list[GpuType]:
    """Return those of the types that the budget of the job allows: with a limit on its cost, those with a price."""
    budget = spec.policy.budget
    has_limit = budget is not None and budget.cost is not None
    return [gpu for gpu in types if gpu.price_per_hour or not has_limit]


def choose(found: Sequence[Candidate], spec: FineTuneJobSpec) -> ChosenGpuType | None:
    """Return the cheapest of the types that fit; of types of which nobody knows it, if none is known to fit.

    None if there is none."""
    fitting = [c for c in found if c.fits] or [c for c in found if c.fits is None]
    if not fitting:
        return None
    order = {c.gpu.name: position for position, c in enumerate(fitting)}
    accepts_spot = spec.policy.interruptions > 0
    by_cost = all(c.cost is not None for c in fitting if c.price is not None)

    def key(c: Candidate) -> tuple[bool, Decimal | float, Decimal | float, bool, int]:
        hourly = inf if c.price is None else c.price
        total = c.cost if by_cost and c.cost is not None else hourly
        return c.is_spot and not accepts_spot, total, hourly, c.is_spot, order[c.gpu.name]

    return _chosen(min(fitting, key=key), found, spec)


def _chosen(best: Candidate, found: Sequence[Candidate], spec: FineTuneJobSpec) -> ChosenGpuType:
    reason, message = _why(best, found, spec)
    fields = best.gpu.model_dump(mode="json", exclude_none=True)
    said = f"{message} {SPOT}" if best.is_spot else message
    return ChosenGpuType.model_validate({**fields, "reason": reason, "message": said})


def _why(best: Candidate, found: Sequence[Candidate], spec: FineTuneJobSpec) -> tuple[str, str]:
    """Return the reason and the sentence."""
    name, others = best.gpu.name, [c for c in found if c is not best]
    if spec.compute.gpu_type is not None:
        return "Requested", f"spec.compute.gpuType names {name}."
    if not others:
        return "OnlyType", f"The job may use no other GPU type than {name}."
    unfit = [c.gpu.name for c in others if c.fits is False]
    rest = [c for c in others if c.fits == best.fits]
    without = f" The job does not fit {' and '.join(unfit)}." if unfit else ""
    if not rest:
        return "OnlyFit", f"{name} is the only GPU type that is known to fit.{without}"
    which = "the GPU types that fit" if best.fits else "the GPU types that may fit"
    if best.price is None:
        return "First", f"{name} is the first of {which}, and the FineTuneProfile has no prices.{without}"
    price = f"{best.price} for an hour of all {best.gpus} GPUs" if best.gpus > 1 else f"{best.price} for an hour"
    if best.cost is not None:
        price = f"about {best.cost:.2f} for the job"
    stable = not best.is_spot and spec.policy.interruptions == 0 and any(c.is_spot for c in rest)
    but = " Spot types were left out, because spec.runPolicy.maxInterruptions is 0." if stable else ""
    return "Cheapest", f"{name} is the cheapest of {which}: {price}.{without}{but}"
