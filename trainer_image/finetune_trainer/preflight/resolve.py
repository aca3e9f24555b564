"""What the run uses where the spec left the choice open, by the rules the fields of `finetune_api.spec.job` state."""

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
    """Longest row in tokens: as given, or else the longest of the data within the model's context and 4096.

    Raises TrainerFailure SpecInvalid where more is asked for than the model's context."""
    if training.max_sequence_length is None:
        return min(longest, LONGEST_BY_DEFAULT, context or LONGEST_BY_DEFAULT)
    if context is not None and training.max_sequence_length > context:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"training.maxSequenceLength {training.max_sequence_length} is more than the model's context of {context}.",
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
    """Everything resolved, for rows that are already split and within `limit` tokens. `metrics`: as `choose_metrics`
    returns them."""
    training = spec.training
    steps = 0 if spec.method.type is MethodType.NONE else total_steps(len(train), training)
    longest = max(int(lengths(rows).max()) for rows in (train, test))
    answers = lengths(train) - prompt_lengths(train)
    require_validation(training, len(validation))
    # Auto begins with what it prefers, see lora_or_qlora.
    method = MethodType.LORA if spec.method.type is MethodType.AUTO else spec.method.type
    return Resolved(
        method=method,
        learning_rate=training.learning_rate or default_learning_rate(method, parameters),
        warmup_steps=warmup_steps(steps, training.warmup_ratio) if steps else 0,
        total_steps=steps,
        max_sequence_length=limit,
        # A row is never cut, so the longest has to fit whatever was asked for.
        micro_batch_tokens=max(longest, training.micro_batch_tokens or MICRO_BATCH_TOKENS),
        evaluate_every=evaluate_every(training, steps, len(train)) if steps and len(validation) else None,
        publish=training.publish or (Publish.BEST if len(validation) else Publish.LAST),
        max_new_tokens=spec.evaluation.generation.max_new_tokens or room_for(answers),
        prompt_format=prompt_format,
        metrics=list(metrics),
        parameters=parameters,
    )


def room_for(answers: Sequence[int] | NDArray[np.int64]) -> int:
    """Tokens for an answer half as long again as nearly all of those expected. `answers`: their lengths in tokens."""
    return ceil(1.5 * float(np.percentile(answers, 99)))


def require_validation(training: Training, rows: int) -> None:
    """Raises TrainerFailure SpecInvalid where the recipe looks at validation rows and there is none."""
    looking = {
        "earlyStopping": training.early_stopping is not None,
        "evaluateEvery": training.evaluate_every is not None,
        "publish Best": training.publish is Publish.BEST,
    }
    asked = [field for field, is_asked in looking.items() if is_asked]
    if asked and not rows:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"training.{asked[0]} needs validation rows, and there are none: name dataset.validation, or set "
            "dataset.split.validation to the share of train to hold out.",
        )


def evaluate_every(training: Training, steps: int, rows: int) -> int:
    """Steps between two measurements: as given, or a fifth of all, and at most an epoch's."""
    return training.evaluate_every or min(ceil(steps / 5), ceil(rows / training.global_batch_size))


def total_steps(rows: int, training: Training) -> int:
    """Optimizer steps: each epoch's last one takes the rows that are left."""
    steps = ceil(rows / training.global_batch_size) * training.epochs
    return min(steps, training.max_steps or steps)


def lora_or_qlora(resolved: Resolved, lora: Sequence[Estimate]) -> Resolved:
    """`resolved` with the method that Auto chooses, by what LoRA is predicted to take on each kind of GPU: LoRA where
    it fits one, or where nobody says what they hold, since 4-bit weights cost time and some quality; or else QLoRA."""
    told = [estimate for estimate in lora if estimate.fits is not None]
    fitting = next((estimate for estimate in told if estimate.fits), None)
    if fitting is None and told:
        least = f"over bfloat16 weights LoRA would need about {told[0].memory}, more than {told[0].gpu_type} has"
        return resolved.model_copy(update={"method": MethodType.QLORA, "method_reason": f"Auto chose QLoRA: {least}."})
    why = (
        f"it fits {fitting.gpu_type} with about {fitting.memory}"
        if fitting
        else "the profile does not say how much memory its GPUs have"
    )
    return resolved.model_copy(update={"method_reason": f"Auto chose LoRA: {why}."})


def default_learning_rate(method: MethodType, parameters: int) -> float:
    """The peak where the spec names none. LoRA wants about ten times the rate of full tuning, whose weights are already
    where they should be (Schulman et al. 2025, "LoRA Without Regret"); 1e-5 is what Llama 2 and 3 were tuned with."""
    if method is MethodType.FULL:
        return 1e-5
    return 1e-3 if parameters < SMALL_MODEL else 2e-4


def warmup_steps(steps: int, ratio: float | None = None) -> int:
    """Steps of warm-up: `ratio` of them, or else 3% or 10 of them, whichever is more, but at most a tenth."""
    if ratio is not None:
        return min(ceil(ratio * steps), steps - 1)
    return min(max(ceil(0.03 * steps), 10), floor(0.1 * steps))
