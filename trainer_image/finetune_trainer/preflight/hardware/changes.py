"""Changes of a job's settings with which it fits into the memory of a GPU."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf

from finetune_api.quantity import gibibytes
from finetune_api.spec.job import Compute
from finetune_trainer.sizing.memory import Load, MemoryPlan, Setup, TrainedMethod, first_fit
from finetune_trainer.sizing.model_shape import ModelShape

LIGHTER: dict[TrainedMethod, tuple[TrainedMethod, ...]] = {"Full": ("LoRA", "QLoRA"), "LoRA": ("QLoRA",), "QLoRA": ()}
"""For each method, the methods that need less memory. The method that needs the most memory is first."""
SHORTER = (0.75, 0.5, 0.25)
"""Shares of the longest row that are tried as the limit of a row's length."""
NO_METHOD = "No method would fit."
NO_MORE: Mapping[str, Compute] = {}
SMALLER = "Choose a smaller model, or use a FineTuneProfile with a larger GPU."
"""The finding and the remedy for a job that fits a GPU with no settings."""
NO_MERGE = "without spec.output.merge"


@dataclass(frozen=True)
class Change:
    """A change of settings that makes the job fit."""

    text: str
    """Its fields and values, for example spec.method.type QLoRA."""
    plan: MemoryPlan
    """With the longest row that is allowed."""
    compute: Compute | None = None
    """The numbers of GPUs and nodes, if they are changed."""


def changes(
    shape: ModelShape,
    least: Setup,
    longest: Load,
    available: float,
    merging: float,
    more: Mapping[str, Compute] = NO_MORE,
) -> Iterator[Change]:
    """Yields the changes that make the job fit, the best first. `least`: the setup that needs the least memory and does
    not fit. `longest`: the load of the longest row alone. `available`: the memory of the GPU in bytes. `merging`: the
    bytes that merging needs after QLoRA or after a training with sharded weights, or 0 without merging. `more`: the
    larger numbers of GPUs that the job could have instead, by their fields and values, in ascending order."""
    wanted = replace(least, checkpointing=True)
    options = [] if least.checkpointing else [("spec.training.gradientCheckpointing Auto", wanted)]
    if least.method == "Full" and least.optimizer == "AdamW":
        paged = replace(wanted, optimizer="PagedAdamW8bit", shards=1)
        options.append(("spec.training.optimizer PagedAdamW8bit", paged))
    # QLoRA cannot quantize experts.
    lighter = [method for method in LIGHTER[least.method] if method != "QLoRA" or not shape.routed]
    options += [(f"spec.method.type {method}", _of_method(wanted, method)) for method in lighter]
    found = {text: plan for text, setup in options if (plan := first_fit(shape, [setup], [longest], available))}
    yield from (Change(_without_merging(text, plan, available, merging), plan) for text, plan in found.items())
    yield from _more_gpus(shape, least, longest, available, merging, more)
    shorter = [("", wanted)]
    if lighter and f"spec.method.type {lighter[-1]}" not in found:
        shorter.append((f"spec.method.type {lighter[-1]} and ", _of_method(wanted, lighter[-1])))
    for text, setup in shorter:
        if plan := _shortened(shape, setup, longest, available):
            text = f"{text}spec.training.maxSequenceLength {plan.load.tokens:,}"
            yield Change(_without_merging(text, plan, available, merging), plan)


def _more_gpus(
    shape: ModelShape, least: Setup, longest: Load, available: float, merging: float, more: Mapping[str, Compute]
) -> Iterator[Change]:
    """Yields those of `more` with which the job fits with sharded weights: for the numbers of GPUs in ascending order,
    those on fewer nodes than any before. The fewest nodes come first, because weights cross a network slowly."""
    found: list[Change] = []
    nodes = inf
    for text, compute in more.items() if shape.layered and least.can_shard else ():
        if compute.nodes >= nodes:
            continue
        if plan := first_fit(shape, [replace(least, shards=compute.gpus)], [longest], available):
            found.append(Change(_without_merging(text, plan, available, merging), plan, compute))
            nodes = compute.nodes
    yield from reversed(found)


def _of_method(setup: Setup, method: TrainedMethod) -> Setup:
    changed = replace(setup, method=method)
    return changed if changed.can_shard else replace(changed, shards=1)


def _without_merging(text: str, plan: MemoryPlan, available: float, merging: float) -> str:
    alone = (plan.setup.method == "QLoRA" or plan.setup.shards > 1) and merging > available
    return f"{text} and {NO_MERGE}" if alone else text


def _shortened(shape: ModelShape, setup: Setup, longest: Load, available: float) -> MemoryPlan | None:
    """Returns the plan for the largest share of SHORTER that fits."""
    tried = []
    for share in SHORTER:
        tokens = int(longest.tokens * share)
        tried.append(Load(tokens, min(tokens, longest.labels), int(longest.answering * share)))
    return first_fit(shape, [setup], tried, available)


def alternative(
    shape: ModelShape,
    least: Setup,
    longest: Load,
    available: float,
    merging: float,
    more: Mapping[str, Compute] = NO_MORE,
) -> str:
    """Returns a sentence with the best change that makes the job fit. The arguments are those of `changes`."""
    best = next(changes(shape, least, longest, available, merging, more), None)
    if best is None:
        return f"{NO_METHOD} {SMALLER}"
    return f"With {best.text}, the job would need {gibibytes(best.plan.memory.total)}."
