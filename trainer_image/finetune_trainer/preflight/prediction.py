"""Predicts the memory, the time and the cost of the job on each GPU type of the profile, before a GPU is requested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import cast

import numpy as np
from numpy.typing import NDArray

from finetune_api.quantity import bytes_of, gibibytes
from finetune_api.reasons import FailureReason
from finetune_api.spec.evaluation import Baseline
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.method import ComputeDtype, LoraBias, MethodType, Quantization
from finetune_api.spec.profile import GpuType
from finetune_api.spec.training import GradientCheckpointing
from finetune_api.status.preflight import Estimate, Resolved
from finetune_trainer.handover.few_shot import DRAWS
from finetune_trainer.handover.prepared import Side
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.sizing.memory import (
    GENERATION_FACTOR,
    Load,
    Setup,
    TrainedMethod,
    base_memory,
    first_fit,
    predict,
)
from finetune_trainer.sizing.model_shape import ModelShape
from finetune_trainer.sizing.run_time import Work, cost, divided, peak_flops, total_seconds
from finetune_trainer.tokens.row_store import Example, lengths, prompt_lengths, supervised_counts

LIGHTER: dict[TrainedMethod, tuple[TrainedMethod, ...]] = {"Full": ("LoRA", "QLoRA"), "LoRA": ("QLoRA",), "QLoRA": ()}
"""For each method, the methods that need less memory. The method that needs the most memory is first."""
NO_METHOD = "No method would fit."
SMALLER = "Choose a smaller model, or use a FineTuneProfile with a larger GPU."
"""The finding and the remedy for a job that fits a GPU with no settings."""
SHORTER = (0.75, 0.5, 0.25)
"""Shares of the longest row that are tried when no other setting makes the job fit."""
Lengths = NDArray[np.int64]


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


def loads(data: DataSize, global_batch_size: int, resolved: Resolved) -> list[Load]:
    """Returns the loads that the job can use, the largest first. Micro-batches have `resolved.micro_batch_tokens`
    tokens, then half of that, down to the longest row alone, and never more rows than one step. For each micro-batch,
    the tokens in generation are GENERATION_FACTOR times as many, then half of that, and never fewer than one row
    needs."""
    tokens, labels = (int(np.sort(lengths)[-global_batch_size:].sum()) for lengths in (data.tokens, data.labels))
    one, most = data.prompt + resolved.max_new_tokens, max(data.longest, resolved.micro_batch_tokens)
    return [
        Load(size, min(size, labels), max(one, GENERATION_FACTOR * together))
        for size in halved(max(data.longest, min(most, tokens)), data.longest)
        for together in halved(most, data.longest)
    ]


def halved(most: int, fewest: int) -> list[int]:
    """Returns `most`, half of `most`, and so on down to `fewest`."""
    sizes = [most]
    while sizes[-1] > fewest:
        sizes.append(max(fewest, sizes[-1] // 2))
    return sizes


CHECKPOINTING = {
    GradientCheckpointing.AUTO: (False, True),
    GradientCheckpointing.ENABLED: (True,),
    GradientCheckpointing.DISABLED: (False,),
}
"""Whether the trainer may use gradient checkpointing, in order of preference."""


def setups_of(spec: FineTuneJobSpec, resolved: Resolved) -> list[Setup]:
    """Returns the settings that decide the memory: one setup for each choice of the trainer, in order of preference."""
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
    )
    return [replace(setup, checkpointing=on) for on in CHECKPOINTING[spec.training.gradient_checkpointing]]


def sized(
    gpus: Sequence[GpuType], spec: FineTuneJobSpec, resolved: Resolved, shape: ModelShape, data: DataSize
) -> tuple[Resolved, list[Estimate]]:
    """Returns `resolved` with the settings that depend on memory, and the estimates.

    The evaluation uses micro-batches of `micro_batch_tokens`. This is the largest value with which the job is predicted
    to fit every GPU type that it fits at all. The value is unchanged if no GPU type fits, or if the profile does not
    set their memory."""
    setups, ladder = setups_of(spec, resolved), loads(data, spec.training.global_batch_size, resolved)
    held = [bytes_of(gpu.memory) for gpu in gpus if gpu.memory]
    plans = [plan for memory in held if (plan := first_fit(shape, setups, ladder, memory))]
    together = [plan.load.answering // GENERATION_FACTOR for plan in plans]
    resolved = resolved.model_copy(update={"micro_batch_tokens": min([resolved.micro_batch_tokens, *together])})
    resolved = resolved.model_copy(update={"base_memory": unquantized_memory(resolved, shape)})
    return resolved, estimates(gpus, spec, resolved, shape, data)


def estimates(
    gpus: Sequence[GpuType], spec: FineTuneJobSpec, resolved: Resolved, shape: ModelShape, data: DataSize
) -> list[Estimate]:
    """Returns one estimate for each GPU type, for the largest micro-batch that fits, or the smallest if none fits."""
    setups = setups_of(spec, resolved)
    ladder = loads(data, spec.training.global_batch_size, resolved)
    needed = unquantized_memory(resolved, shape)
    merging = base_memory(shape, resolved.micro_batch_tokens) if spec.output.merge else 0
    found = []
    for gpu in gpus:
        available = bytes_of(gpu.memory) if gpu.memory else inf
        plan = first_fit(shape, setups, ladder, available)
        if plan is None:
            least = gibibytes(predict(shape, setups[-1], ladder[-1]).total)
            instead = alternative(shape, setups[-1], ladder[-1], available, merging)
            found.append(Estimate(gpu_type=gpu.name, memory=least, fits=False, alternative=instead))
            continue
        if needed and merging > available:
            instead = (
                "spec.output.merge needs the model in bfloat16. Without spec.output.merge, the job would need "
                f"{gibibytes(plan.memory.total)}."
            )
            found.append(Estimate(gpu_type=gpu.name, memory=needed, fits=False, alternative=instead))
            continue
        peak = peak_flops([gpu.name, gpu.resource_name, *(gpu.node_selector or {}).values()])
        # Under QLoRA, the base model in bf16 is evaluated first if it fits. The base model in 4 bits is loaded later.
        models = 2 if needed and bytes_of(needed) <= available else 1
        gpus_of_pod = spec.compute.gpus_per_node
        work = divided(work_of(spec, resolved, data, plan.load, models), gpus_of_pod)
        seconds = peak and total_seconds(shape, plan.setup, work, peak)
        found.append(
            Estimate(
                gpu_type=gpu.name,
                memory=gibibytes(plan.memory.total),
                fits=True if gpu.memory else None,
                seconds=round(seconds) if seconds else None,
                cost=cost(seconds * gpus_of_pod, gpu.price_per_hour) if seconds and gpu.price_per_hour else None,
            )
        )
    return found


def alternative(shape: ModelShape, least: Setup, longest: Load, available: float, merging: float) -> str:
    """Returns a sentence with the first change of settings that makes the job fit. `least`: the setup that needs the
    least memory and does not fit. `longest`: the load of the longest row alone. `available`: the memory of the GPU in
    bytes. `merging`: the bytes that merging needs after QLoRA, or 0 without merging."""
    wanted = replace(least, checkpointing=True)
    options = [] if least.checkpointing else [("spec.training.gradientCheckpointing Auto", wanted, 1.0)]
    if least.method == "Full" and least.optimizer == "AdamW":
        options.append(("spec.training.optimizer PagedAdamW8bit", replace(wanted, optimizer="PagedAdamW8bit"), 1.0))
    options += [(f"spec.method.type {method}", replace(wanted, method=method), 1.0) for method in LIGHTER[least.method]]
    for share in SHORTER:
        text = f"spec.method.type QLoRA and spec.training.maxSequenceLength {int(longest.tokens * share):,}"
        options.append((text, replace(wanted, method="QLoRA"), share))
    for text, setup, share in options:
        tokens = int(longest.tokens * share)
        load = Load(tokens, min(tokens, longest.labels), int(longest.answering * share))
        if plan := first_fit(shape, [setup], [load], available):
            alone = setup.method == "QLoRA" and merging > available
            what = f"{text}{' and without spec.output.merge' * alone}"
            return f"With {what}, the job would need {gibibytes(plan.memory.total)}."
    return f"{NO_METHOD} {SMALLER}"


def require_fit(
    found: Sequence[Estimate], gpus: Sequence[GpuType], resolved: Resolved, shape: ModelShape, data: DataSize
) -> None:
    """Raises TrainerFailure DoesNotFit when the job fits no GPU type."""
    if not found or any(estimate.fits is not False for estimate in found):
        return
    best, gpu = max(zip(found, gpus, strict=True), key=lambda pair: bytes_of(pair[1].memory or "0"))
    fits_otherwise = not (best.alternative or "").startswith(NO_METHOD)
    raise TrainerFailure(
        FailureReason.DOES_NOT_FIT,
        f"The job needs about {best.memory} of GPU memory, but {gpu.name} has {gpu.memory}. The method is "
        f"{resolved.method}, the model has {shape.parameters / 1e9:.2g} billion parameters, and the longest row has "
        f"{data.longest:,} tokens. {best.alternative if fits_otherwise else NO_METHOD}",
        None if fits_otherwise else SMALLER,
    )


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
        micro_batches=resolved.total_steps * ceil(step / load.tokens),
        answers=data.answered * (2 + DRAWS * (Baseline.FEW_SHOT in spec.evaluation.baselines)),
        prompt_tokens=data.prompt,
        answer_tokens=resolved.max_new_tokens,
        answering=load.answering,
        loads=loads,
    )
