"""Predicts the memory, the time and the cost of the job on each GPU type of the profile, before a GPU is requested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import cast

import numpy as np
from numpy.typing import NDArray

from finetune_api import claims
from finetune_api.bundle import allowed_gpu_types
from finetune_api.quantity import bytes_of, gibibytes
from finetune_api.spec.evaluation import LIKELIHOODS, Baseline
from finetune_api.spec.gpu_type import GpuType
from finetune_api.spec.job import Compute, FineTuneJobSpec
from finetune_api.spec.method import ComputeDtype, LoraBias, MethodType, Quantization
from finetune_api.spec.training import GradientCheckpointing
from finetune_api.status.preflight import Estimate, Resolved
from finetune_trainer.handover.few_shot import DRAWS
from finetune_trainer.handover.prepared import Side
from finetune_trainer.preflight.hardware.changes import alternative
from finetune_trainer.sizing.memory import (
    GENERATION_FACTOR,
    Load,
    MemoryPlan,
    Setup,
    TrainedMethod,
    base_memory,
    first_fit,
    predict,
)
from finetune_trainer.sizing.model_shape import ModelShape
from finetune_trainer.sizing.run_time import Work, cost, divided, peak_flops, total_seconds
from finetune_trainer.sizing.traffic import Layout
from finetune_trainer.tokens.row_store import Example, lengths, prompt_lengths, supervised_counts

Lengths = NDArray[np.int64]
MOST_TOKENS = 16_384
"""Most tokens of a micro-batch. More tokens do not make a GPU faster."""
UNTRIED = 0.9
"""Share of a GPU's memory that a predicted micro-batch may need if it is not tried before the first step. Predictions
of the memory may be off by a tenth."""


@dataclass(frozen=True, eq=False)
class DataSize:
    """Numbers and lengths of the rows."""

    tokens: Lengths
    """Tokens of each training row. Shape [rows]."""
    labels: Lengths
    """Tokens of each training row that are trained on. Shape [rows]."""
    longest: int
    """Tokens of the longest row, including held-out rows."""
    answered: int
    """Test rows for which the models write answers."""
    prompt: int
    """Tokens of the longest prompt of the test rows."""


def data_size(sides: Mapping[Side, Sequence[Example]], max_rows: int) -> DataSize:
    """Returns the sizes of the rows on each side of the split. The models answer at most `max_rows` test rows."""
    train, test = sides["train"], sides["test"]
    return DataSize(
        tokens=lengths(train),
        labels=supervised_counts(train),
        longest=max(int(lengths(rows).max(initial=1)) for rows in sides.values()),
        answered=min(len(test), max_rows),
        prompt=int(prompt_lengths(test).max(initial=0)),
    )


def loads(data: DataSize, global_batch_size: int, resolved: Resolved, trained: int = 0) -> list[Load]:
    """Returns the loads that the job can use, the largest first. Micro-batches have `resolved.micro_batch_tokens`
    tokens, then half of that, down to the longest row alone, and never more rows than one step. For each micro-batch,
    the tokens in generation are GENERATION_FACTOR times `resolved.micro_batch_tokens`, then half of that, and never
    fewer than one row needs. `trained`: more tokens of a micro-batch in training, or 0."""
    tokens, labels = (int(np.sort(lengths)[-global_batch_size:].sum()) for lengths in (data.tokens, data.labels))
    one, most = data.prompt + resolved.max_new_tokens, max(data.longest, resolved.micro_batch_tokens)
    return [
        Load(size, min(size, labels), max(one, GENERATION_FACTOR * together))
        for size in halved(max(data.longest, min(max(most, trained), tokens)), data.longest)
        for together in halved(most, data.longest)
    ]


def halved(most: int, fewest: int) -> list[int]:
    """Returns `most`, half of `most`, and so on down to `fewest`."""
    sizes = [most]
    while sizes[-1] > fewest:
        sizes.append(max(fewest, sizes[-1] // 2))
    return sizes


GPUS = (2, 4, 8)
"""Numbers of GPUs that nodes usually have."""
NODES = (2, 4, 8, 16)
"""Numbers of nodes that a message proposes. The last one is the most that a job can have."""
CHECKPOINTING = {
    GradientCheckpointing.AUTO: (False, True),
    GradientCheckpointing.ENABLED: (True,),
    GradientCheckpointing.DISABLED: (False,),
}
"""Whether the trainer may use gradient checkpointing, in order of preference."""


def setups_of(spec: FineTuneJobSpec, resolved: Resolved, shape: ModelShape) -> list[Setup]:
    """Returns the settings that decide the memory: one setup for each choice of the trainer, in order of preference.
    The weights are sharded only if nothing else fits."""
    lora, quantization = spec.method.lora, spec.method.quantization or Quantization()
    # A job that only evaluates needs at most the memory of training an adapter.
    method = MethodType.LORA if resolved.method is MethodType.NONE else resolved.method
    setup = Setup(
        method=cast(TrainedMethod, method.value),
        optimizer=spec.training.optimizer.value,
        rank=lora.r,
        dropout=lora.dropout > 0,
        target_modules=tuple(lora.target_modules),
        dora=lora.use_dora,
        modules_to_save=tuple(lora.modules_to_save or ()),
        biases=lora.bias is LoraBias.ALL,
        double_quant=quantization.double_quant,
        float32=quantization.compute_dtype is ComputeDtype.FLOAT32,
        ranks=spec.compute.gpus,
    )
    whole = [replace(setup, checkpointing=on) for on in CHECKPOINTING[spec.training.gradient_checkpointing]]
    ranks = spec.compute.gpus
    is_sharded = ranks > 1 and shape.layered and setup.can_shard
    return [*whole, replace(whole[-1], shards=ranks)] if is_sharded else whole


def first_plan(
    spec: FineTuneJobSpec, resolved: Resolved, shape: ModelShape, data: DataSize, available: float
) -> MemoryPlan | None:
    """Returns the first plan that fits into `available` bytes, or None.

    With whole weights the trainer tries larger micro-batches than the predicted one. With sharded weights it does not.
    So their prediction begins with the largest one, unless the job sets the number."""
    batch = spec.training.global_batch_size
    usual = loads(data, batch, resolved)
    for setup in setups_of(spec, resolved, shape):
        if setup.shards > 1 and spec.training.micro_batch_tokens is None:
            larger = [load for load in loads(data, batch, resolved, MOST_TOKENS) if load.tokens > usual[0].tokens]
            if plan := first_fit(shape, [setup], larger, UNTRIED * available):
                return plan
        if plan := first_fit(shape, [setup], usual, available):
            return plan
    return None


def more_gpus(spec: FineTuneJobSpec, gpu: GpuType) -> dict[str, Compute]:
    """Returns the larger numbers of GPUs that a message may propose for the job, by their fields and values. Fewer GPUs
    come first, and of equal numbers those on fewer nodes, whose weights do not cross the network."""
    now = spec.compute
    on_each = [now.gpus_per_node, *(number for number in GPUS if number > now.gpus_per_node)]
    nodes = [now.nodes, *(number for number in NODES if number > now.nodes and _can_have_more_nodes(spec))]
    found = [now.model_copy(update={"gpus_per_node": each, "nodes": number}) for each in on_each for number in nodes]
    found = sorted((compute for compute in found if compute.gpus > now.gpus), key=lambda each: (each.gpus, each.nodes))
    return {_changed(now, compute): compute for compute in found if not gpu.is_part}


def _can_have_more_nodes(spec: FineTuneJobSpec) -> bool:
    """Returns whether more nodes can read the model and write the output. Preflight does not see the access mode of a
    claim: that of a job on one node may permit only one node."""
    uris = (spec.model.uri, spec.output.uri)
    return spec.compute.nodes > 1 or not any(claims.split(uri) for uri in uris)


def _changed(now: Compute, then: Compute) -> str:
    """Returns the fields with other numbers and their values."""
    numbers = {"gpusPerNode": (now.gpus_per_node, then.gpus_per_node), "nodes": (now.nodes, then.nodes)}
    return " and ".join(f"spec.compute.{field} {new}" for field, (old, new) in numbers.items() if new != old)


def sized(
    gpus: list[GpuType], spec: FineTuneJobSpec, resolved: Resolved, shape: ModelShape, data: DataSize
) -> tuple[Resolved, list[Estimate]]:
    """Returns `resolved` with the settings that depend on memory, and an estimate for each of `gpus`.

    The evaluation uses micro-batches of `micro_batch_tokens`. This is the largest value with which the job is predicted
    to fit every GPU type that it may use and that it fits at all. The value is unchanged if no GPU type fits, or if the
    profile does not set their memory. A training with sharded weights uses `sharded_micro_batch_tokens`, the largest
    value of every GPU type whose weights are sharded."""
    held = [bytes_of(gpu.memory) for gpu in allowed_gpu_types(spec, gpus) if gpu.memory]
    plans = [plan for memory in held if (plan := first_plan(spec, resolved, shape, data, memory))]
    together = [plan.load.answering // GENERATION_FACTOR for plan in plans]
    sharded = [plan.load.tokens for plan in plans if plan.setup.shards > 1]
    tokens = {"micro_batch_tokens": min([resolved.micro_batch_tokens, *together])}
    resolved = resolved.model_copy(update=tokens | {"sharded_micro_batch_tokens": min(sharded, default=None)})
    resolved = resolved.model_copy(update={"base_memory": unquantized_memory(resolved, shape)})
    return resolved, estimates(gpus, spec, resolved, shape, data)


def of_allowed(found: Sequence[Estimate], spec: FineTuneJobSpec, gpus: list[GpuType]) -> list[Estimate]:
    """Returns the estimates of those of `gpus`, the GPU types of the profile, that the job may use."""
    names = {gpu.name for gpu in allowed_gpu_types(spec, gpus)}
    return [estimate for estimate in found if estimate.gpu_type in names]


def estimates(
    gpus: Sequence[GpuType], spec: FineTuneJobSpec, resolved: Resolved, shape: ModelShape, data: DataSize
) -> list[Estimate]:
    """Returns one estimate for each GPU type, for the largest micro-batch that fits, or the smallest if none fits."""
    setups = setups_of(spec, resolved, shape)
    ladder = loads(data, spec.training.global_batch_size, resolved)
    needed = unquantized_memory(resolved, shape)
    merging = merging_memory(spec, resolved, shape)
    found = []
    for gpu in gpus:
        available = bytes_of(gpu.memory) if gpu.memory else inf
        plan = first_plan(spec, resolved, shape, data, available)
        if plan is None:
            least = gibibytes(predict(shape, setups[-1], ladder[-1]).total)
            instead = alternative(shape, setups[-1], ladder[-1], available, merging, more_gpus(spec, gpu))
            found.append(Estimate(gpu_type=gpu.name, memory=least, fits=False, alternative=instead))
            continue
        sharded = plan.setup.shards > 1
        if (needed or sharded) and merging > available:
            instead = (
                "spec.output.merge needs the model in bfloat16. Without spec.output.merge, the job would need "
                f"{gibibytes(plan.memory.total)}."
            )
            found.append(Estimate(gpu_type=gpu.name, memory=gibibytes(merging), fits=False, alternative=instead))
            continue
        seconds = seconds_on(gpu, spec, resolved, shape, data, plan)
        found.append(
            Estimate(
                gpu_type=gpu.name,
                memory=gibibytes(plan.memory.total),
                fits=True if gpu.memory else None,
                sharded=True if sharded else None,
                seconds=round(seconds) if seconds else None,
                cost=cost(seconds * spec.compute.gpus, gpu.price_per_hour) if seconds and gpu.price_per_hour else None,
            )
        )
    return found


def seconds_on(
    gpu: GpuType, spec: FineTuneJobSpec, resolved: Resolved, shape: ModelShape, data: DataSize, plan: MemoryPlan
) -> float | None:
    """Returns the seconds from the start of the pod to the results, or None for an unknown GPU."""
    peak = peak_flops([gpu.name, gpu.resource_name, *(gpu.node_selector or {}).values()])
    if peak is None:
        return None
    available = bytes_of(gpu.memory) if gpu.memory else inf
    # Under QLoRA, the base model in bf16 is evaluated first if it fits. The base model in 4 bits is loaded later.
    unquantized = base_memory(shape, resolved.micro_batch_tokens)
    models = 2 if plan.setup.method == "QLoRA" and unquantized <= available else 1
    if plan.setup.shards > 1:
        # It is loaded again for the training. All tuned weights are read back for the evaluation.
        models = 3 if plan.setup.method == "Full" else 2
    layout = Layout(spec.compute.gpus, spec.compute.nodes)
    work = divided(work_of(spec, resolved, data, plan.load, models), layout.gpus)
    return total_seconds(shape, plan.setup, work, peak, layout)


def merging_memory(spec: FineTuneJobSpec, resolved: Resolved, shape: ModelShape) -> int:
    """Returns the bytes that merging needs after QLoRA, or 0 without merging."""
    return base_memory(shape, resolved.micro_batch_tokens) if spec.output.merge else 0


def unquantized_memory(resolved: Resolved, shape: ModelShape) -> str | None:
    """Returns the memory, as a Kubernetes quantity, that evaluating the base model in bf16 needs under QLoRA. Returns
    None for other methods, which load the base model in bf16 anyway."""
    if resolved.method is not MethodType.QLORA:
        return None
    return gibibytes(base_memory(shape, resolved.micro_batch_tokens))


def work_of(spec: FineTuneJobSpec, resolved: Resolved, data: DataSize, load: Load, loads: int) -> Work:
    """Returns the computation of the job in micro-batches of `load`. The base model is loaded `loads` times."""
    batch = spec.training.global_batch_size
    passes = resolved.total_steps / ceil(len(data.tokens) / batch)
    tokens = float(data.tokens.sum())
    step = tokens / len(data.tokens) * batch
    return Work(
        tokens=round(passes * tokens),
        labels=round(passes * float(data.labels.sum())),
        context=float((data.tokens**2).sum()) / tokens,
        steps=resolved.total_steps,
        rows=batch,
        micro_batches=resolved.total_steps * ceil(step / load.tokens),
        answered=0 if set(resolved.metrics or (None,)) <= set(LIKELIHOODS) else data.answered,
        rounds=2 + DRAWS * (Baseline.FEW_SHOT in spec.evaluation.baselines),
        prompt_tokens=data.prompt,
        answer_tokens=resolved.max_new_tokens,
        answering=load.answering,
        loads=loads,
    )
