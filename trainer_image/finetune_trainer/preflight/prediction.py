"""What the job takes on each kind of GPU of the profile: memory, time and cost, before one is asked for."""

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
from finetune_trainer.sizing.run_time import Work, cost, peak_flops, total_seconds
from finetune_trainer.tokens.row_store import Example, lengths, prompt_lengths, supervised_counts

LIGHTER: dict[TrainedMethod, tuple[TrainedMethod, ...]] = {"Full": ("LoRA", "QLoRA"), "LoRA": ("QLoRA",), "QLoRA": ()}
"""Methods that need less memory than each, the nearest first."""
SHORTER = (0.75, 0.5, 0.25)
"""Shares of the longest row that are tried where no other setting makes a job fit."""
Lengths = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DataSize:
    """How long the rows are."""

    tokens: Lengths
    """Of each row to learn from."""
    labels: Lengths
    """Of these, those that are learned."""
    longest: int
    """Tokens of the longest row, held-out ones among them."""
    answered: int
    """Held-out rows that are answered."""
    prompt: int
    """Tokens of their longest prompt."""


def data_size(sides: Mapping[Side, Sequence[Example]], max_rows: int) -> DataSize:
    """Of the rows on each side of the split, of whose held-out ones at most `max_rows` are answered."""
    train, test = sides["train"], sides["test"]
    return DataSize(
        tokens=lengths(train),
        labels=supervised_counts(train),
        longest=max(int(lengths(rows).max(initial=1)) for rows in sides.values()),
        answered=min(len(test), max_rows),
        prompt=int(prompt_lengths(test).max(initial=0)),
    )


def loads(data: DataSize, global_batch_size: int, resolved: Resolved) -> list[Load]:
    """What the job can fall back on, the largest first: micro-batches of `resolved.micro_batch_tokens`, then of half,
    down to the longest row alone, none with more rows than a step has; and with each of them GENERATION_FACTOR times as
    many tokens to answer at a time, then half, but never less than one row takes."""
    tokens, labels = (int(np.sort(lengths)[-global_batch_size:].sum()) for lengths in (data.tokens, data.labels))
    one, most = data.prompt + resolved.max_new_tokens, max(data.longest, resolved.micro_batch_tokens)
    return [
        Load(size, min(size, labels), max(one, GENERATION_FACTOR * together))
        for size in halved(max(data.longest, min(most, tokens)), data.longest)
        for together in halved(most, data.longest)
    ]


def halved(most: int, fewest: int) -> list[int]:
    """`most`, then half of it, and so on down to `fewest`."""
    sizes = [most]
    while sizes[-1] > fewest:
        sizes.append(max(fewest, sizes[-1] // 2))
    return sizes


CHECKPOINTING = {
    GradientCheckpointing.AUTO: (False, True),
    GradientCheckpointing.ENABLED: (True,),
    GradientCheckpointing.DISABLED: (False,),
}
"""What the trainer may do, in order of preference."""


def setups_of(spec: FineTuneJobSpec, resolved: Resolved) -> list[Setup]:
    """What of the spec decides memory; one for each way the trainer may take, in order of preference."""
    lora, quantization = spec.method.lora, spec.method.quantization or Quantization()
    # What only evaluates needs no more than training an adapter would.
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
    """`resolved` with what follows from the sizes, and the estimates for it.

    Held-out rows are measured and answered by `micro_batch_tokens`: as many as the job is predicted to fit its GPU
    with, and as it was where it fits none, or where nobody says what they hold."""
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
    """One for each kind of GPU: of the largest micro-batch that fits it, or, where none does, of the smallest."""
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
                f"Without output.merge, which needs the model in bfloat16, {gibibytes(plan.memory.total)} would do."
            )
            found.append(Estimate(gpu_type=gpu.name, memory=needed, fits=False, alternative=instead))
            continue
        peak = peak_flops([gpu.name, gpu.resource_name, *(gpu.node_selector or {}).values()])
        # Under QLoRA the base model in bf16, where it fits, is loaded and measured before that in 4 bits is loaded.
        models = 2 if needed and bytes_of(needed) <= available else 1
        seconds = peak and total_seconds(shape, plan.setup, work_of(spec, resolved, data, plan.load, models), peak)
        found.append(
            Estimate(
                gpu_type=gpu.name,
                memory=gibibytes(plan.memory.total),
                fits=True if gpu.memory else None,
                seconds=round(seconds) if seconds else None,
                cost=cost(seconds, gpu.price_per_hour) if seconds and gpu.price_per_hour else None,
            )
        )
    return found


def alternative(shape: ModelShape, least: Setup, longest: Load, available: float, merging: float) -> str:
    """What to change so that the job fits: the first that is enough, in a sentence. `least`: what it does not fit
    with; `merging`: bytes that merging needs after QLoRA, 0 where nothing is merged."""
    wanted = replace(least, checkpointing=True)
    options = [] if least.checkpointing else [("training.gradientCheckpointing Auto", wanted, 1.0)]
    if least.method == "Full" and least.optimizer == "AdamW":
        options.append(("training.optimizer PagedAdamW8bit", replace(wanted, optimizer="PagedAdamW8bit"), 1.0))
    options += [(f"method.type {method}", replace(wanted, method=method), 1.0) for method in LIGHTER[least.method]]
    for share in SHORTER:
        text = f"method.type QLoRA with training.maxSequenceLength {int(longest.tokens * share):,}"
        options.append((text, replace(wanted, method="QLoRA"), share))
    for text, setup, share in options:
        tokens = int(longest.tokens * share)
        load = Load(tokens, min(tokens, longest.labels), int(longest.answering * share))
        if plan := first_fit(shape, [setup], [load], available):
            alone = setup.method == "QLoRA" and merging > available
            return f"{text}{' without output.merge' * alone} would need {gibibytes(plan.memory.total)}."
    return "No method would fit: choose a smaller model."


def require_fit(
    found: Sequence[Estimate], gpus: Sequence[GpuType], resolved: Resolved, shape: ModelShape, data: DataSize
) -> None:
    """Raises TrainerFailure DoesNotFit where the job fits no kind of GPU."""
    if not found or any(estimate.fits is not False for estimate in found):
        return
    best, gpu = max(zip(found, gpus, strict=True), key=lambda pair: bytes_of(pair[1].memory or "0"))
    raise TrainerFailure(
        FailureReason.DOES_NOT_FIT,
        f"{resolved.method} of a model of {shape.parameters / 1e9:.2g} billion parameters, with a longest row of "
        f"{data.longest:,} tokens, needs about {best.memory} of GPU memory; {gpu.name} has {gpu.memory}. "
        f"{best.alternative}",
    )


def unquantized_memory(resolved: Resolved, shape: ModelShape) -> str | None:
    """What a device must have for the base model to be measured in bf16 under QLoRA, as a quantity; None under other
    methods, which load it in bf16 anyway."""
    if resolved.method is not MethodType.QLORA:
        return None
    return gibibytes(base_memory(shape, resolved.micro_batch_tokens))


def work_of(spec: FineTuneJobSpec, resolved: Resolved, data: DataSize, load: Load, loads: int) -> Work:
    """What there is to compute in micro-batches of `load`, with the base model loaded `loads` times."""
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
