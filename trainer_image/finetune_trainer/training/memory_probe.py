"""Finds the largest micro-batch that fits into the GPU's memory, by trying before the first step.

The size of the micro-batches does not change the result of a step."""

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
from finetune_trainer.model.parameters.trainable import trainable_parameters, use_gradient_checkpointing
from finetune_trainer.pod.failure import TrainerFailure, failure_of
from finetune_trainer.preflight.hardware.prediction import MOST_TOKENS, halved
from finetune_trainer.ranks.group import gather
from finetune_trainer.ranks.shards import is_sharded
from finetune_trainer.tokens.row_store import lengths, supervised_counts
from finetune_trainer.training.loop import accumulate_gradients
from finetune_trainer.training.optimizer import state_bytes

FEWEST_TOKENS = 1024
"""Fewest tokens of a micro-batch without gradient checkpointing. Below, small matrices slow a GPU down more than
gradient checkpointing does."""


@dataclass(frozen=True)
class StepLayout:
    """The micro-batches of a step."""

    micro_batch_tokens: int
    gradient_checkpointing: bool
    packed: bool = True
    """Whether rows share a sequence. They do not if they would change each other's results."""


def plans(longest: int, most: int, checkpointing: GradientCheckpointing) -> list[StepLayout]:
    """Returns the plans to try, fastest first. Each plan has half the tokens of the plan before.

    The tokens of a micro-batch go from `most` down to `longest`, the length of the longest row. Under Auto the plans
    without gradient checkpointing end at FEWEST_TOKENS, and the plans with it follow."""
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
    model: PreTrainedModel,
    rows: Sequence[Example],
    training: Training,
    resolved: Resolved,
    accelerator: Accelerator,
    rows_repeat: bool = False,
) -> StepLayout:
    """Returns the first of `plans` that fits into the GPU's memory, and applies its gradient checkpointing to the
    model. It fits if it does on every rank. Weights and gradients stay unchanged. `rows_repeat`: whether a step may
    have a row twice.

    On a CPU it returns the plan of preflight without a trial, because there running out of memory ends the pod. If the
    weights are sharded over the ranks it does too, because a rank that runs out of memory leaves the others waiting
    for its shard.

    Raises TrainerFailure GPUOutOfMemory if no plan fits."""
    longest, packed = int(lengths(rows).max()), sharing(model).packed
    # If the longest row is processed alone, a larger micro-batch would contain only this row too.
    alone = longest > packed
    if on_cpu(accelerator) or is_sharded(model):
        sharded = None if on_cpu(accelerator) else resolved.sharded_micro_batch_tokens
        tokens = longest if alone else sharded or resolved.micro_batch_tokens
        plan = StepLayout(tokens, training.gradient_checkpointing in _checkpointed(model), packed > 0)
        use_gradient_checkpointing(model, plan.gradient_checkpointing)
        return plan
    step = int(np.sort(lengths(rows))[-training.global_batch_size :].sum())
    most = longest if alone else max(longest, min(training.micro_batch_tokens or MOST_TOKENS, step))
    reserved = state_bytes(model, training.optimizer)
    for plan in plans(longest, most, training.gradient_checkpointing):
        use_gradient_checkpointing(model, plan.gradient_checkpointing)
        shape = worst_micro_batch(lengths(rows), supervised_counts(rows), plan.micro_batch_tokens)
        # A second micro-batch runs while the gradients of the first one are in memory.
        batches = 1 if plan.micro_batch_tokens >= step and not (alone or rows_repeat) else 2
        if all(gather(fits(model, shape, plan, reserved, accelerator, batches))):
            return replace(plan, packed=packed > 0)
        how = " with gradient checkpointing" if plan.gradient_checkpointing else ""
        tried = f"A micro-batch of {plan.micro_batch_tokens:,} tokens{how}"
        print(f"{tried} does not fit into the GPU's memory.", flush=True)
    finding = f"The longest row has {longest:,} tokens and does not fit into the GPU's memory, even alone."
    raise TrainerFailure(FailureReason.GPU_OUT_OF_MEMORY, finding, agreed=True)


def after_earlier_job(earlier: StepLayout, own: StepLayout, training: Training) -> StepLayout:
    """Returns the plan of a job that goes on from the checkpoint of an earlier job. `own`: what fits into the memory of
    this job's GPU, and follows from its `training`.

    What `training` sets counts. Otherwise it is the plan that needs less memory: the GPU can be smaller than that of
    the earlier job, and the earlier job may have run out of memory in a step."""
    tokens = min(earlier.micro_batch_tokens, own.micro_batch_tokens)
    checkpointing = earlier.gradient_checkpointing or own.gradient_checkpointing
    return StepLayout(
        own.micro_batch_tokens if training.micro_batch_tokens is not None else tokens,
        checkpointing if training.gradient_checkpointing is GradientCheckpointing.AUTO else own.gradient_checkpointing,
        own.packed,
    )


def _checkpointed(model: PreTrainedModel) -> set[GradientCheckpointing]:
    """Returns with which settings a plan without a trial uses gradient checkpointing. A model is sharded because memory
    is short, and preflight has counted with gradient checkpointing then."""
    auto = {GradientCheckpointing.AUTO} if is_sharded(model) else set()
    return {GradientCheckpointing.ENABLED} | auto


def smaller(plan: StepLayout, longest: int, checkpointing: GradientCheckpointing) -> StepLayout:
    """Returns the plan to try after `plan` ran out of memory in a step: half the tokens, but at least `longest`, the
    length of the longest row. With that already, it is gradient checkpointing, unless the job disables it."""
    if plan.micro_batch_tokens > longest:
        return replace(plan, micro_batch_tokens=max(longest, plan.micro_batch_tokens // 2))
    return replace(plan, gradient_checkpointing=checkpointing is not GradientCheckpointing.DISABLED)


def on_cpu(accelerator: Accelerator) -> bool:
    """Whether training runs on a CPU, where running out of memory ends the pod instead of raising an error."""
    return bool(accelerator.device.type == "cpu")


def worst_micro_batch(lengths: NDArray[np.int64], labels: NDArray[np.int64], tokens: int) -> tuple[list[int], int]:
    """Returns the lengths of the documents in the largest possible micro-batch, and an upper bound on its labels.

    `lengths`, `labels`: of each row, shape [rows]. The documents are as long as the longest row and fill `tokens`
    tokens. The bound is the bound of the fractional knapsack: rows with the most labels per token come first."""
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
    model: PreTrainedModel,
    shape: tuple[list[int], int],
    plan: StepLayout,
    reserved: int,
    accelerator: Accelerator,
    batches: int = 2,
) -> bool:
    """Returns whether a step of `batches` such micro-batches fits, next to `reserved` bytes for the optimizer's state.
    More than two need no more memory than two."""
    rows = synthetic_rows(*shape, model.config.get_text_config().vocab_size) * batches
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
        # The frames of the exception hold the tensors, so memory can be freed only after the except block.
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
    """Returns rows of these lengths, with `labels` learned tokens in all rows together."""
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
