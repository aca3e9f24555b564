"""Resolves the settings that the spec leaves open. The fields of `finetune_api.spec.job` document the rules."""

from collections.abc import Sequence
from math import ceil, floor
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune_api.reasons import FailureReason
from finetune_api.spec.evaluation import MetricName
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.spec.method import MethodType
from finetune_api.spec.training import Publish, Training
from finetune_api.status.preflight import Estimate, Resolved
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.tokens.row_store import Example, lengths, prompt_lengths

LONGEST_BY_DEFAULT = 4096
SMALL_MODEL = 1_000_000_000
MICRO_BATCH_TOKENS = 2048


def sequence_limit(training: Training, longest: int, context: int | None) -> int:
    """Returns the maximum length of a row in tokens: training.maxSequenceLength, or by default the longest row, at most
    the model's context length and at most 4096.

    Raises TrainerFailure SpecInvalid when training.maxSequenceLength is larger than the model's context length."""
    if training.max_sequence_length is None:
        return min(longest, LONGEST_BY_DEFAULT, context or LONGEST_BY_DEFAULT)
    if context is not None and training.max_sequence_length > context:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"spec.training.maxSequenceLength is {training.max_sequence_length}, but the model's context length is "
            f"{context} tokens.",
            f"Set spec.training.maxSequenceLength to {context} or less.",
        )
    return training.max_sequence_length


def resolve(
    spec: FineTuneJobSpec,
    parameters: int,
    limit: int,
    prompt_format: Literal["ChatTemplate", "Plain"],
    metrics: Sequence[MetricName],
    *,
    train: Sequence[Example],
    test: Sequence[Example],
    validation: Sequence[Example] = (),
) -> Resolved:
    """Returns all resolved settings for rows that are already split and have at most `limit` tokens. `metrics`: the
    result of `choose_metrics`. Raises TrainerFailure SpecInvalid as `require_validation` does."""
    training = spec.training
    steps = 0 if spec.method.type is MethodType.NONE else total_steps(len(train), training)
    longest = max(int(lengths(rows).max()) for rows in (train, test))
    answers = lengths(train) - prompt_lengths(train)
    require_validation(training, len(validation))
    # Auto prefers LoRA. `lora_or_qlora` changes the method if LoRA does not fit.
    method = MethodType.LORA if spec.method.type is MethodType.AUTO else spec.method.type
    return Resolved(
        method=method,
        learning_rate=training.learning_rate or default_learning_rate(method, parameters),
        warmup_steps=warmup_steps(steps, training.warmup_ratio) if steps else 0,
        total_steps=steps,
        max_sequence_length=limit,
        # A row is never truncated, so a micro-batch must have room for the longest row.
        micro_batch_tokens=max(longest, training.micro_batch_tokens or MICRO_BATCH_TOKENS),
        evaluate_every=evaluate_every(training, steps, len(train)) if steps and len(validation) else None,
        publish=training.publish or (Publish.BEST if len(validation) else Publish.LAST),
        max_new_tokens=spec.evaluation.generation.max_new_tokens or room_for(answers),
        prompt_format=prompt_format,
        metrics=list(metrics),
        parameters=parameters,
    )


def room_for(answers: Sequence[int] | NDArray[np.int64]) -> int:
    """Returns the maximum number of new tokens: 1.5 times the 99th percentile of the lengths of `answers`, in
    tokens."""
    return ceil(1.5 * float(np.percentile(answers, 99)))


def require_validation(training: Training, rows: int) -> None:
    """Raises TrainerFailure SpecInvalid when the training settings need validation rows and there are none."""
    looking = {
        "earlyStopping": training.early_stopping is not None,
        "evaluateEvery": training.evaluate_every is not None,
        "publish Best": training.publish is Publish.BEST,
    }
    asked = [field for field, is_asked in looking.items() if is_asked]
    if asked and not rows:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"spec.training.{asked[0]} needs validation rows, but there are none.",
            "Set spec.dataset.validation, or set spec.dataset.split.validation to the share of spec.dataset.train to "
            "hold out.",
        )


def evaluate_every(training: Training, steps: int, rows: int) -> int:
    """Returns the optimizer steps between two validations: training.evaluateEvery, or by default a fifth of all steps,
    at most one epoch."""
    return training.evaluate_every or min(ceil(steps / 5), ceil(rows / training.global_batch_size))


def total_steps(rows: int, training: Training) -> int:
    """Returns the number of optimizer steps. The last step of each epoch uses the remaining rows."""
    steps = ceil(rows / training.global_batch_size) * training.epochs
    return min(steps, training.max_steps or steps)


def lora_or_qlora(resolved: Resolved, lora: Sequence[Estimate]) -> Resolved:
    """Returns `resolved` with the method that Auto chooses. `lora`: the predicted memory of LoRA on each GPU type that
    the job may use. Auto chooses LoRA if LoRA fits a GPU type, or if the profile does not set their memory. Otherwise
    Auto chooses QLoRA, whose 4-bit weights cost time and some quality."""
    known = [estimate for estimate in lora if estimate.fits is not None]
    fitting = next((estimate for estimate in known if estimate.fits), None)
    if fitting is None and known:
        names = " or ".join(estimate.gpu_type for estimate in known)
        why = f"LoRA with bfloat16 weights would need about {known[0].memory}, more than {names} has"
        chosen = {"method": MethodType.QLORA, "method_reason": f"Auto chose QLoRA because {why}."}
        return resolved.model_copy(update=chosen)
    why = (
        f"LoRA fits {fitting.gpu_type} and needs about {fitting.memory}"
        if fitting
        else "the profile does not set spec.gpuTypes[].memory"
    )
    return resolved.model_copy(update={"method_reason": f"Auto chose LoRA because {why}."})


def default_learning_rate(method: MethodType, parameters: int) -> float:
    """Returns the default of the peak learning rate. LoRA needs about 10 times the learning rate of full fine-tuning
    (Schulman et al. 2025, "LoRA Without Regret"). Llama 2 and 3 were fine-tuned with 1e-5."""
    if method is MethodType.FULL:
        return 1e-5
    return 1e-3 if parameters < SMALL_MODEL else 2e-4


def warmup_steps(steps: int, ratio: float | None = None) -> int:
    """Returns the warm-up steps: `ratio` of `steps`, or by default 3% of `steps`, at least 10 and at most a tenth."""
    if ratio is not None:
        return min(ceil(ratio * steps), steps - 1)
    return min(max(ceil(0.03 * steps), 10), floor(0.1 * steps))
