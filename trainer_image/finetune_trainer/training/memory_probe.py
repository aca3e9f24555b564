"""How much goes through the model at a time: tried out on the GPU before the first step, which it does not change."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from transformers import PreTrainedModel

from finetune_api.reasons import FailureReason
from finetune_api.spec.training import GradientCheckpointing, Training
from finetune_api.status.preflight import Resolved
from finetune_trainer.handover.prepared import Example
from finetune_trainer.model.isolation import sharing
from finetune_trainer.model.trainable import trainable_parameters, use_gradient_checkpointing
from finetune_trainer.pod.failure import TrainerFailure, failure_of
from finetune_trainer.preflight.prediction import halved
from finetune_trainer.tokens.row_store import lengths, supervised_counts
from finetune_trainer.training.loop import accumulate_gradients
from finetune_trainer.training.optimizer import state_bytes

MOST_TOKENS = 16_384
"""Tokens from which on more at a time no longer make a GPU faster."""
FEWEST_TOKENS = 1024
"""Tokens below which a GPU loses more by small matrices than by computing activations again."""


@dataclass(frozen=True)
class StepLayout:
    """How a step is laid out in memory."""

    micro_batch_tokens: int
    gradient_checkpointing: bool
    packed: bool = True
    """Whether rows share a sequence, which they do not where they would change each other."""


def plans(longest: int, most: int, checkpointing: GradientCheckpointing) -> list[StepLayout]:
    """What to try, best first, from `most` tokens down to `longest`, those of the longest row: half the tokens each
    time, and where the spec leaves it open gradient checkpointing before they get so few that the GPU idles."""
    kept = halved(most, longest if checkpointing is GradientCheckpointing.DISABLED else max(longest, FEWEST_TOKENS))
    match checkpointing:
        case GradientCheckpointing.DISABLED:
            return [StepLayout(tokens, False) for tokens in kept]
        case GradientCheckpointing.ENABLED:
            return [StepLayout(tokens, True) for tokens in halved(most, longest)]
        case GradientCheckpointing.AUTO:
            return [StepLayout(tokens, False) for tokens in kept] + [
                StepLayout(tokens, True) for tokens in halved(most, longest)
            ]


def find_plan(
    model: PreTrainedModel, rows: Sequence[Example], training: Training, resolved: Resolved, accelerator: Accelerator
) -> StepLayout:
    """The first of `plans` that the GPU's memory has room for; on a CPU, which has no such end but the pod's, what was
    planned. Leaves the model set to it, its weights and gradients as they were.

    Raises TrainerFailure GPUOutOfMemory where none has room."""
    longest, packed = int(lengths(rows).max()), sharing(model).packed
    # Where the longest row goes alone, more tokens than it has would be tried with it alone too.
    alone = longest > packed
    if on_cpu(accelerator):
        tokens = longest if alone else resolved.micro_batch_tokens
        plan = StepLayout(tokens, training.gradient_checkpointing is GradientCheckpointing.ENABLED, packed > 0)
        use_gradient_checkpointing(model, plan.gradient_checkpointing)
        return plan
    step = int(np.sort(lengths(rows))[-training.global_batch_size :].sum())
    most = longest if alone else max(longest, min(training.micro_batch_tokens or MOST_TOKENS, step))
    reserved = state_bytes(model, training.optimizer)
    for plan in plans(longest, most, training.gradient_checkpointing):
        use_gradient_checkpointing(model, plan.gradient_checkpointing)
        shape = worst_micro_batch(lengths(rows), supervised_counts(rows), plan.micro_batch_tokens)
        if fits(model, shape, plan, reserved, accelerator):
            return replace(plan, packed=packed > 0)
        how = " with gradient checkpointing" if plan.gradient_checkpointing else ""
        print(f"{plan.micro_batch_tokens:,} tokens at a time{how} are more than the GPU's memory holds.", flush=True)
    finding = f"The longest row, {longest:,} tokens, does not fit into the GPU's memory even alone."
    raise TrainerFailure(FailureReason.GPU_OUT_OF_MEMORY, finding)


def on_cpu(accelerator: Accelerator) -> bool:
    """Whether training runs where memory that runs out ends the pod rather than the allocation."""
    return bool(accelerator.device.type == "cpu")


def worst_micro_batch(lengths: NDArray[np.int64], labels: NDArray[np.int64], tokens: int) -> tuple[list[int], int]:
    """The lengths of documents that fill `tokens` tokens, as long as the longest row, and the most labels that rows of
    these lengths and labels can have among them (the fractional knapsack's bound: the densest rows first)."""
    longest = int(lengths.max())
    documents = [longest] * (tokens // longest) + ([tokens % longest] if tokens % longest > 1 else [])
    order = np.argsort(-labels / lengths, kind="stable")
    filled = np.cumsum(lengths[order])
    whole = int(np.searchsorted(filled, tokens, side="right"))
    most = int(labels[order][:whole].sum())
    if whole < len(order):
        left = tokens - (int(filled[whole - 1]) if whole else 0)
        most += -(-left * int(labels[order][whole]) // int(lengths[order][whole]))
    return documents, min(most, sum(documents) - len(documents))


def fits(
    model: PreTrainedModel, shape: tuple[list[int], int], plan: StepLayout, reserved: int, accelerator: Accelerator
) -> bool:
    """Whether a step of two such micro-batches fits, beside the `reserved` bytes that the optimizer will keep: the
    second one runs while the first one's gradients are there."""
    rows = synthetic_rows(*shape, model.config.get_text_config().vocab_size) * 2
    parameters = trainable_parameters(model)
    model.train()
    try:
        _take(model, rows, plan, reserved, accelerator)
        fitting = True
    except RuntimeError as error:
        if failure_of(error).reason is not FailureReason.GPU_OUT_OF_MEMORY:
            raise
        fitting = False
    for parameter in parameters:
        parameter.grad = None
    if accelerator.device.type == "cuda":
        # Only past the exception, whose frames held the tensors, is there anything to give back.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    return fitting


def _take(
    model: PreTrainedModel, rows: list[Example], plan: StepLayout, reserved: int, accelerator: Accelerator
) -> None:
    state = torch.empty(reserved, dtype=torch.uint8, device=accelerator.device)
    accumulate_gradients(model, rows, plan.micro_batch_tokens, accelerator)
    del state


def synthetic_rows(documents: Sequence[int], labels: int, vocabulary: int) -> list[Example]:
    """Rows of these lengths with `labels` learned tokens among them."""
    rows = []
    for length in documents:
        learned = min(labels, length - 1)
        labels -= learned
        rows.append(
            Example(
                input_ids=np.arange(length, dtype=np.int32) % vocabulary,
                supervised=np.arange(length) >= length - learned,
                prompt_length=1,
                messages=(),
                place="",
            )
        )
    return rows
